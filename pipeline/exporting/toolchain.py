"""llama.cpp's converter: where it is on this machine, or fetched once from a pinned source distribution. Light.

Guarantees: what is fetched has the pinned digest, and appears whole or not at all, however many processes ask at once.
A llama.cpp of the user's own or of Unsloth is read, never written. Does not build or fetch binaries.
"""

import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from filelock import FileLock

from tunewright.pipeline import files
from tunewright.pipeline.errors import InvalidInput, Unavailable
from tunewright.pipeline.exporting import programs
from tunewright.pipeline.workspace import Workspace

# No wheel holds the converter; this source distribution carries all of llama.cpp, of one known revision.
PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
VENDORED = PurePosixPath(f"llama_cpp_python-{VERSION}/vendor/llama.cpp")
WANTED = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion", "gguf-py", "LICENSE")
# The download, and for a moment the source that pip unpacks to read its metadata.
NEEDED_BYTES = 600_000_000
SETTING = "TUNEWRIGHT_LLAMA_CPP"


def find(workspace: Workspace) -> Path | None:
    """The folder of a llama.cpp with its converter, else None.

    Looks at `TUNEWRIGHT_LLAMA_CPP`, Unsloth's own place, then the data home's cache. Raises InvalidInput where the
    setting names a folder without a converter.
    """
    named = os.environ.get(SETTING)
    if named:
        if _is_toolchain(Path(named).expanduser()):
            return Path(named).expanduser().absolute()
        raise InvalidInput(
            "no_converter",
            f"{SETTING}={named!r} holds no converter.",
            allowed="It must name a llama.cpp folder with convert_hf_to_gguf.py, conversion/ and gguf-py/ "
            "(llama.cpp of 2026), or be unset: the converter is then fetched.",
        )
    unsloth = os.environ.get("UNSLOTH_LLAMA_CPP_PATH") or "~/.unsloth/llama.cpp"
    places = (Path(unsloth).expanduser().absolute(), _cached(workspace))
    return next((place for place in places if _is_toolchain(place)), None)


def provide(workspace: Workspace, log: Path, check_cancelled: Callable[[], None] = lambda: None) -> Path:
    """The folder of a llama.cpp with its converter, fetched into the data home's cache where there is none.

    Fetching takes some 77 MB of download, once per home; pip's output goes to `log`. Raises Unavailable, NoSpace,
    InvalidInput (see `find`) and what `check_cancelled` raises.
    """
    found = find(workspace)
    if found:
        return found
    # Waiting in slices, so that a cancel is heard while another process downloads.
    lock = FileLock(workspace.home.cache / "llama.cpp.lock", thread_local=False)
    while not lock.is_locked:
        check_cancelled()
        try:
            lock.acquire(timeout=programs.POLL_S)
        except TimeoutError:
            continue
    try:
        return find(workspace) or _fetch(workspace, log, check_cancelled)
    finally:
        lock.release()


def _cached(workspace: Workspace) -> Path:
    return workspace.home.cache / f"llama.cpp-{VERSION}"


def _is_toolchain(folder: Path) -> bool:
    needed = ("convert_hf_to_gguf.py", "conversion/base.py", "gguf-py/gguf/__init__.py")
    return all((folder / name).is_file() for name in needed)


def _fetch(workspace: Workspace, log: Path, check_cancelled: Callable[[], None]) -> Path:
    cache = workspace.home.cache
    files.require_space(cache, NEEDED_BYTES, "Fetching llama.cpp's converter")
    with TemporaryDirectory(prefix=files.PARTIAL, dir=cache) as temporary:
        _download(Path(temporary), log, check_cancelled)
        with files.new_folder(_cached(workspace)) as new:
            _extract(next(Path(temporary).glob("*.tar.gz")), new)
    return _cached(workspace)


def _download(folder: Path, log: Path, check_cancelled: Callable[[], None]) -> None:
    requirements = folder / "requirements.txt"
    files.write_text(requirements, f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n")
    command = [
        sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE, "--require-hashes",
        "--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--dest", str(folder),
        "--requirement", str(requirements),
    ]  # fmt: skip
    # pip unpacks beside the download rather than in a /tmp that may be small.
    if programs.run(command, log, check_cancelled, env={"TMPDIR": str(folder)}) != 0:
        raise Unavailable(
            "no_converter",
            f"GGUF needs llama.cpp's converter, and {PACKAGE} {VERSION}, which carries it, could not be downloaded "
            f"({programs.last_line(log)}).",
            allowed=f"Either reach a package index (PIP_INDEX_URL names a mirror), or set {SETTING} to a llama.cpp "
            "folder of this machine. Without GGUF, merged_16bit and lora work offline.",
            next='check_environment(), or merge_and_export(adapter_id="…", outputs=["merged_16bit"])',
            done=f"Nothing was exported. pip's output: {log}.",
        )


def _extract(archive: Path, folder: Path) -> None:
    """Copies the regular files below `WANTED` into `folder`; anything else in the archive is passed over."""
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if not member.isfile() or not path.is_relative_to(VENDORED) or ".." in path.parts:
                continue
            inside = path.relative_to(VENDORED)
            content = tar.extractfile(member)
            if inside.parts[0] in WANTED and content is not None:
                target = folder / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())

"""llama.cpp's converter and quantizer: where each is on this machine, or provided once, from pinned sources. Light.

Each is looked for by itself, in this order: `TUNEWRIGHT_LLAMA_CPP`, Unsloth's own installation, PATH, the cache.
Guarantees: what is fetched has the pinned digest; what is provided appears whole or not at all, however many processes
ask at once; a quantizer is believed only once it has run. A llama.cpp of the user's own is read, never written.
"""

import os
import shutil
import sys
import tarfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from filelock import FileLock

from tunewright.pipeline import files, settings
from tunewright.pipeline.errors import InvalidInput, TunewrightError, Unavailable
from tunewright.pipeline.exporting import programs, quantizer, quantizer_build

# No wheel holds the converter or the quantizer; this source distribution carries all of llama.cpp, of one revision.
PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
VENDORED = PurePosixPath(f"llama_cpp_python-{VERSION}/vendor/llama.cpp")
CONVERTER = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion", "gguf-py", "LICENSE")
QUANTIZER_SOURCES = ("CMakeLists.txt", "cmake", "common", "ggml", "include", "src", "tools", "vendor")
# The download (77 MB), and for a moment what pip unpacks of it to read its metadata; what is kept are 60 MB.
NEEDED_BYTES = 600_000_000
SETTING = "TUNEWRIGHT_LLAMA_CPP"
PROGRAM = "llama-quantize"
# Within a llama.cpp: where Unsloth copies it, where it is installed, where cmake builds it.
PROGRAM_PLACES = (PROGRAM, f"bin/{PROGRAM}", f"build/bin/{PROGRAM}")

Progress = Callable[[str, float, float], None]


def find() -> Path | None:
    """The folder of a llama.cpp with its converter, else None.

    Raises InvalidInput where `TUNEWRIGHT_LLAMA_CPP` names a folder without a converter.
    """
    named = _named()
    if named and not _has_converter(named):
        raise InvalidInput(
            "no_converter",
            f"{SETTING}={str(named)!r} holds no converter.",
            allowed="It must name a llama.cpp folder with convert_hf_to_gguf.py, conversion/ and gguf-py/ "
            "(llama.cpp of 2026), or be unset: the converter is then fetched.",
        )
    on_path = shutil.which(PROGRAM)
    beside_path = Path(on_path).resolve().parents[: len(PROGRAM_PLACES)] if on_path else []
    places = [named] if named else [_unsloths(), *beside_path, _cached()]
    return next((place for place in places if _has_converter(place)), None)


def find_quantizer() -> Path | None:
    """A `llama-quantize` that runs, else None.

    Raises InvalidInput where the one in the folder that `TUNEWRIGHT_LLAMA_CPP` names does not run.
    """
    named = _named()
    own = _program_in(named) if named else None
    if own and not quantizer.runs(own):
        raise InvalidInput(
            "broken_quantizer",
            f"{own}, in the folder that {SETTING} names, does not run or knows no {quantizer.NAMES[-1]}.",
            allowed=f"A working {PROGRAM} (llama.cpp of 2026), or none there: one is then found elsewhere or built.",
        )
    on_path = shutil.which(PROGRAM)
    found = (own, _program_in(_unsloths()), Path(on_path) if on_path else None, _program_in(_cached()))
    return next((program for program in found if program and quantizer.runs(program)), None)


def provide(log: Path, check_cancelled: Callable[[], None] = lambda: None) -> Path:
    """The folder of a llama.cpp with its converter, fetched into the cache where there is none.

    Fetching takes some 77 MB of download, once per machine; pip's output goes to `log`. Raises Unavailable, NoSpace,
    InvalidInput (see `find`) and what `check_cancelled` raises.
    """
    found = find()
    if found:
        return found
    with _locked(check_cancelled):
        return find() or _sources(log, check_cancelled)


def provide_quantizer(
    log: Path,
    check_cancelled: Callable[[], None] = lambda: None,
    progress: Progress = lambda phase, done, total: None,
) -> Path:
    """A `llama-quantize` that runs, built into the cache where there is none: some five minutes on two cores, once.

    The compiler's output goes to `log`. Raises Unavailable (no compiler, no
    package index, a build that fails), NoSpace, InvalidInput (see `find_quantizer`) and what `check_cancelled` raises.
    """
    found = find_quantizer()
    if found:
        return found
    quantizer_build.require_compiler()
    with _locked(check_cancelled):
        # Another process may have built it in the meantime.
        found = find_quantizer()
        if found:
            return found
        progress("fetching llama.cpp", 0, 0)
        sources = _sources(log, check_cancelled)
        program = sources / PROGRAM_PLACES[1]
        quantizer_build.build(sources, program, log, check_cancelled, progress)
        return program


def install(say: Callable[[str], None]) -> dict[str, str]:
    """Provides both, telling `say` how far it is; returns where the `converter` and the `quantizer` are.

    Raises as `provide` and `provide_quantizer` do. Their output goes to `llama.cpp.log` in the cache.
    """
    settings.cache_home().mkdir(mode=0o700, parents=True, exist_ok=True)
    log = settings.cache_home() / "llama.cpp.log"
    said = ""

    def progress(phase: str, done: float, total: float) -> None:
        nonlocal said
        step = f"{phase} {done:.0f}/{total:.0f}" if total else phase
        if step != said:
            said = step
            say(step)

    progress("looking for the converter", 0, 0)
    converter = provide(log)
    progress("looking for the quantizer", 0, 0)
    return {"converter": str(converter), "quantizer": str(provide_quantizer(log, progress=progress))}


def main() -> int:
    """The command line's `tunewright toolchain`; returns the exit status."""

    def say(step: str) -> None:
        sys.stderr.write(f"{step}\n")

    try:
        found = install(say)
    except TunewrightError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.writelines(f"{name}: {place}\n" for name, place in found.items())
    return 0


def state() -> dict[str, str]:
    """What is there, in words for `check_environment`: `converter` and `quantizer`. Builds and fetches nothing."""
    to_build = f"no: built by the first export that needs it, about {quantizer_build.MINUTES} minutes"
    if not quantizer_build.has_compiler():
        to_build = "no: nor a C++ compiler to build it with (gguf:f16, bf16 and q8_0 need none)"
    return {
        "converter": _stated(find, "no: fetched by the first export that needs it, 77 MB"),
        "quantizer": _stated(find_quantizer, to_build),
    }


def _stated(look: Callable[[], Path | None], otherwise: str) -> str:
    try:
        found = look()
    except InvalidInput as error:
        return f"no: {error.what}"
    return f"yes: {found}" if found else otherwise


def _named() -> Path | None:
    named = os.environ.get(SETTING)
    return Path(named).expanduser().absolute() if named else None


def _unsloths() -> Path:
    return Path(os.environ.get("UNSLOTH_LLAMA_CPP_PATH") or "~/.unsloth/llama.cpp").expanduser().absolute()


def _cached() -> Path:
    return settings.cache_home() / f"llama.cpp-{VERSION}-{SHA256[:8]}"


def _has_converter(folder: Path) -> bool:
    needed = ("convert_hf_to_gguf.py", "conversion/base.py", "gguf-py/gguf/__init__.py")
    return all((folder / name).is_file() for name in needed)


def _program_in(folder: Path) -> Path | None:
    return next((folder / place for place in PROGRAM_PLACES if (folder / place).is_file()), None)


@contextmanager
def _locked(check_cancelled: Callable[[], None]) -> Generator[None]:
    """The cache to oneself. Waits in slices, so that a cancel is heard while another process downloads or builds."""
    cache = settings.cache_home()
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = FileLock(cache / "llama.cpp.lock", thread_local=False)
    while not lock.is_locked:
        check_cancelled()
        try:
            lock.acquire(timeout=programs.POLL_S)
        except TimeoutError:
            continue
    try:
        # Nobody else is at work here: what is half-made was left by a process that died.
        for left in cache.glob(f"{files.PARTIAL}*llama.cpp-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        lock.release()


def _sources(log: Path, check_cancelled: Callable[[], None]) -> Path:
    """The folder in the cache with the converter and the quantizer's sources, fetched where it is not there yet."""
    if not _cached().is_dir():
        cache = settings.cache_home()
        files.require_space(cache, NEEDED_BYTES, "Fetching llama.cpp")
        with TemporaryDirectory(prefix=f"{files.PARTIAL}llama.cpp-", dir=cache) as temporary:
            _download(Path(temporary), log, check_cancelled)
            with files.new_folder(_cached()) as new:
                _extract(next(Path(temporary).glob("*.tar.gz")), new)
    return _cached()


def _download(folder: Path, log: Path, check_cancelled: Callable[[], None]) -> None:
    requirements = folder / "requirements.txt"
    files.write_text(requirements, f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n")
    command = [*programs.PIP, "download", "--no-deps", "--no-binary", PACKAGE, "--require-hashes"]
    command += ["--progress-bar", "off", "--dest", str(folder), "--requirement", str(requirements)]
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
    """Copies the regular files that are wanted into `folder`; anything else in the archive is passed over."""
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if not member.isfile() or not path.is_relative_to(VENDORED) or ".." in path.parts:
                continue
            inside = path.relative_to(VENDORED)
            content = tar.extractfile(member)
            if inside.parts[0] in (*CONVERTER, *QUANTIZER_SOURCES) and content is not None:
                target = folder / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())

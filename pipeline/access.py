"""Which files of this machine may be read for a caller.

May be read: what lies in the folder the server was started in (see `settings.working_folder`), in the data home's
folders, in the Hub's cache, and in what the user allowed by `--allow-dir` or `TUNEWRIGHT_ALLOW_DIRS`. Links are
followed before that is judged. Never: a data home's own files (database, secrets, locks), the kernel's (`/proc`,
`/sys`).

Guarantees of `readable` that it says nothing of what lies outside, not even whether it is there; of `open_real` that
no link was put in the way since. Not guaranteed: hard links to files elsewhere, and mounts, which look like any file;
where there is no `/proc`, a folder on the way that is swapped for a link at the very moment of opening.
"""

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from io import FileIO
from itertools import takewhile
from pathlib import Path

from tunewright.pipeline import settings
from tunewright.pipeline.errors import InvalidInput
from tunewright.pipeline.workspace import Workspace

KERNELS = (Path("/proc"), Path("/sys"))
DATABASE = "tunewright.db"
GLOB_CHARACTERS = "*?["
# Below one folder, of a model or a benchmark.
MAX_ENTRIES = 100_000


def readable(workspace: Workspace | None, path: Path) -> Path:
    """The real path, links resolved, of what may be read; it need not be there. Relative paths count from here.

    Without a workspace no data home's folders are allowed. Raises InvalidInput: `path_not_allowed`, `invalid_path`.
    """
    real = _real(path)
    if not _is_allowed(workspace, real):
        raise _refused(path.absolute(), real)
    return real


def is_readable(workspace: Workspace | None, path: Path) -> bool:
    """Whether `readable` would give the path. Raises InvalidInput `invalid_path`."""
    return _is_allowed(workspace, _real(path))


def readable_folder(workspace: Workspace | None, folder: Path) -> Path:
    """As `readable`, for a folder of which a library will read whatever lies in it: every link in it is judged too.

    Raises InvalidInput, also `folder_too_large` above MAX_ENTRIES.
    """
    real, looked_at = readable(workspace, folder), 0
    for here, folders, names in os.walk(real):
        looked_at += len(folders) + len(names)
        if looked_at > MAX_ENTRIES:
            raise InvalidInput(
                "folder_too_large",
                f"Below {folder} there are more than {MAX_ENTRIES:,} files and folders.",
                allowed="Name the folder itself, not one around it.",
            )
        for name in (*folders, *names):
            if (entry := Path(here, name)).is_symlink():
                readable(workspace, entry)
    return real


def looked_at(path: Path) -> list[Path]:
    """What is looked at for a path that may be a glob: itself, and the folder that a glob is looked up from."""
    return [path] if path.exists() else [path, _before_stars(path)]


def _before_stars(path: Path) -> Path:
    return Path(*takewhile(lambda part: not set(part) & set(GLOB_CHARACTERS), path.parts))


def open_real(real: Path) -> FileIO | None:
    """The regular file that `readable` gave, unbuffered; None for a device, a pipe or a socket, which is not opened.

    Raises OSError, also where a link has come into its path since.
    """
    # Opening a pipe or a terminal would wait for ever, and some devices act on being opened.
    if not stat.S_ISREG(real.stat().st_mode):
        return None
    descriptor = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    own_name = Path(f"/proc/self/fd/{descriptor}")
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or (own_name.is_symlink() and own_name.readlink() != real):
            raise OSError(f"{real} was replaced while it was being opened")
        return os.fdopen(descriptor, "rb", buffering=0)
    except BaseException:
        os.close(descriptor)
        raise


def allow(folders: Iterable[str | Path]) -> None:
    """Lets this process, and those that it starts from now on, read below these folders too.

    Sets TUNEWRIGHT_ALLOW_DIRS. Raises InvalidInput for a name that cannot stand in it.
    """
    named = [str(_real(Path(folder))) for folder in folders]
    for folder in named:
        if os.pathsep in folder:
            raise InvalidInput(
                "invalid_path", f"{folder!r} holds {os.pathsep!r}, which separates folders.",
                allowed="Allow the folder around it, or a link to it.",
            )  # fmt: skip
    kept = dict.fromkeys([*map(str, settings.allowed_folders()), *named])
    os.environ[settings.ALLOW_DIRS] = os.pathsep.join(kept)


def allowed_here() -> list[str]:
    """What this process may read because of where and how it was started: for a job, whose worker starts elsewhere."""
    here = settings.working_folder()
    return list(dict.fromkeys(map(str, (*settings.allowed_folders(), *([here] if here else [])))))


def _real(path: Path) -> Path:
    try:
        real = path.expanduser().resolve()
        with suppress(PermissionError):  # whoever opens it says so
            real.exists()
        return real
    except (OSError, RuntimeError, ValueError) as error:  # too long, links in a circle, ~ of nobody, a zero byte
        raise InvalidInput(
            "invalid_path", f"{str(path)[:200]!r} is no path: {error!s:.80}.", allowed="A path on this machine."
        ) from error


def _is_allowed(workspace: Workspace | None, real: Path) -> bool:
    if any(real.is_relative_to(kernels) for kernels in KERNELS) or _is_homes_own(real):
        return False
    here, home = settings.working_folder(), workspace.home if workspace else None
    folders = [*settings.allowed_folders(), *([here] if here else [])]
    folders += [home.datasets, home.jobs, home.adapters, home.exports, home.models, home.cache] if home else []
    return any(real.is_relative_to(folder.resolve()) for folder in folders) or real.is_relative_to(_hub_cache())


def _is_homes_own(real: Path) -> bool:
    """Whether it is a file that lies beside the database of a data home, this one's or another."""
    try:
        return (real.parent / DATABASE).exists() and not real.is_dir()
    except PermissionError:  # what cannot be looked at cannot be opened either
        return False


def _hub_cache() -> Path:
    # Late: it takes a while to import, and is asked last.
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE).resolve()


def _refused(path: Path, real: Path) -> InvalidInput:
    if _is_homes_own(real):
        return InvalidInput(
            "path_not_allowed", f"{path} is one of the data home's own files.",
            allowed="Datasets, adapters and exports in it are named by their ids.", next="list_artifacts()",
        )  # fmt: skip
    leads = f" leads to {real}, which" if real != path else ""
    allowed, here = allowed_here(), settings.working_folder()
    searched = _before_stars(real)
    is_glob = searched != real
    around = searched if is_glob or not real.suffix else real.parent
    wanted = str(around)
    if settings.is_broad(around):
        # A folder that holds the whole home is not to be opened for some files in it.
        wanted = "<a folder with these files alone>" if is_glob else str(real)
    where = f": {', '.join(allowed)}" if allowed else "; the host started it in none"
    return InvalidInput(
        "path_not_allowed",
        f"{path}{leads} lies outside the folders that this server may read{where}.",
        allowed=f"The user allows it by adding --allow-dir {wanted} to the server's arguments in the host's settings, "
        f"or {settings.ALLOW_DIRS}={wanted} to its environment, and starting it again"
        f"{f'; or by copying it into {here}' if here else ''}.",
        next="tell the user, then the same call again",
        done="Nothing was read.",
    )

"""Writing so that a reader, or the next process after a kill, sees a whole file or folder or none."""

import errno
import json
import os
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunewright.pipeline.errors import NoSpace

PARTIAL = ".partial-"
# How SQLite, safetensors and torch.save (which names no cause) say that nothing more could be written.
DISK_FULL = ("disk is full", "No space left on device", "] . unexpected pos ")
STALE_PARTIAL_S = 24 * 3600


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of writing says that there is no room, or no more of it for this user."""
    numbered = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, NoSpace) or numbered or says_disk_full(str(error))


def says_disk_full(text: str) -> bool:
    """Whether a message, or the end of a log, does."""
    return any(words in text for words in DISK_FULL)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 `text` beside `path` and renames it over; durable after return."""
    partial = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")
    try:
        # Its owner's alone from the first moment: chat.json holds a secret.
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def log_end(path: Path, size: int) -> str:
    """The last `size` bytes of a log, from the beginning of a line; empty where there is none yet.

    A line that began earlier is left out: with its beginning it may have lost what shows that a key in it is one.
    """
    if not path.exists():
        return ""
    with path.open("rb") as file:
        begin = max(0, file.seek(0, 2) - size)
        file.seek(begin)
        text = file.read(size).decode("utf-8", errors="replace")
    return text.partition("\n")[2] if begin else text


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def new_folder(final: Path, owner: str | None = None) -> Generator[Path]:
    """A folder to fill that becomes `final` when the block ends and vanishes when it raises.

    A kill leaves it; where an `owner` is named (else it is this process) the owner's next attempt begins by removing
    it. Raises FileExistsError where `final` exists: ids are never reused.
    """
    if final.exists():
        raise FileExistsError(final)
    partial = final.with_name(f"{PARTIAL}{owner or os.getpid()}-{final.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_stale_partials(parent: Path) -> None:
    """Removes what killed processes left half-written more than a day ago. Younger ones may be in use."""
    for entry in parent.glob(f"{PARTIAL}*"):
        if time.time() - entry.stat().st_mtime > STALE_PARTIAL_S:
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)


def size_bytes(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())


def require_space(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Raises NoSpace, with both numbers, unless the disk under `folder` has `needed_bytes` free and 100 MB more."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    reserve = 100_000_000
    if free < needed_bytes + reserve:
        raise NoSpace(
            "no_disk_space",
            f"{purpose} needs {(needed_bytes + reserve) / 1e9:.2f} GB under {folder}, {free / 1e9:.2f} GB are free.",
            allowed="Free some space, or move the data home (TUNEWRIGHT_HOME) to a larger disk.",
            next='list_artifacts() and delete_artifact(artifact_id="…", confirm=true)',
            done="Nothing was written.",
        )

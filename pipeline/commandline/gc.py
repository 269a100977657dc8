"""`tunewright gc`: deletes what nothing can use any more, and says what it is and how large.

Guarantees: what an active or interrupted job uses stays, also one that starts meanwhile; an adapter or an export is
taken for unlisted only where the database is whole, lists others of the kind and names it nowhere; each thing leaves
its name in one step. Does not delete datasets, finished artifacts or logs: `delete_artifact` does.
"""

import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tunewright.pipeline import files, jobs, processes
from tunewright.pipeline.commandline.console import console, opening, printable, size
from tunewright.pipeline.ids import PREFIX
from tunewright.pipeline.jobs import State
from tunewright.pipeline.settings import Home, cache_home
from tunewright.pipeline.store import Row, Store
from tunewright.pipeline.training import checkpoints
from tunewright.pipeline.workspace import Workspace

DAY_S = 24 * 3600
DELETED = f"{files.PARTIAL}deleted-"
IN_USE = (*jobs.ACTIVE, State.INTERRUPTED)


@dataclass(frozen=True)
class Waste:
    """Something to delete, and why nothing needs it."""

    path: Path
    why: str
    size_bytes: int


def collect(home: str | None, *, dry_run: bool, older_than_days: int | None) -> int:
    """Deletes, or with `dry_run` shows; returns the exit status.

    `older_than_days` adds what could still be used but was not for so long. Raises what opening the home does.
    """
    with opening():
        # Not Workspace.open, which removes old partial folders by itself: here they are to be shown first.
        opened = Home.open(home)
        workspace = Workspace(opened, Store(opened.database))
    # Under the lock, so that no job is resumed between the look and the deed; renaming is quick.
    with jobs.spawn_lock(workspace):
        found = list(find(workspace, older_than_days))
        hidden = [] if dry_run else [_hide(waste.path) for waste in found]
    _show(found, dry_run=dry_run)
    left = [path for path in hidden if not _is_gone(path)]
    for path in left:
        sys.stderr.write(f"{path} could not be deleted\n")
    return 1 if left else 0


def find(workspace: Workspace, older_than_days: int | None) -> Iterator[Waste]:
    """What there is to delete. The caller holds the spawn lock while it deletes."""
    using = workspace.store.rows(f"SELECT * FROM jobs WHERE state IN ({','.join('?' * len(IN_USE))})", *IN_USE)
    yield from _partials(workspace, using)
    yield from _unlisted(workspace, using)
    yield from _checkpoints(workspace, older_than_days)
    if older_than_days is not None and not using:
        yield from _caches(workspace, older_than_days)


def _show(found: list[Waste], *, dry_run: bool) -> None:
    from rich.table import Table

    total = size(sum(waste.size_bytes for waste in found))
    if found:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("SIZE", justify="right", no_wrap=True)
        table.add_column("WHAT", overflow="fold")
        table.add_column("WHY")
        for waste in found:
            table.add_row(size(waste.size_bytes), printable(str(waste.path)), waste.why)
        console().print(table)
    sys.stdout.write(f"{'Would free' if dry_run else 'Freed'} {total}.\n")


def _hide(path: Path) -> Path:
    """Out of sight in one step; a kill afterwards leaves what the next collection takes."""
    if path.name.startswith(DELETED):
        return path
    hidden = path.with_name(f"{DELETED}{time.time_ns()}-{path.name}")
    path.rename(hidden)
    return hidden


def _is_gone(path: Path) -> bool:
    """Deletes; returns whether nothing is left. Another process may be deleting the same."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    return not path.exists()


def _waste(path: Path, why: str) -> Waste:
    try:
        return Waste(path, why, files.size_bytes(path))
    except FileNotFoundError:  # another process is deleting it
        return Waste(path, why, 0)


def _partials(workspace: Workspace, using: list[Row]) -> Iterator[Waste]:
    home = workspace.home
    in_home = (home.root, home.datasets, home.jobs, home.adapters, home.exports, home.models, home.cache)
    for parent in (*in_home, cache_home()):
        for path in sorted(parent.glob(f"{files.PARTIAL}*")):
            if path.name.startswith(DELETED):
                yield _waste(path, "was being deleted")
            elif not _is_being_written(path, using):
                yield _waste(path, "half-made; its writer is gone")


def _is_being_written(path: Path, using: list[Row]) -> bool:
    """Its name begins with its writer: a process or a job (`files.new_folder`). Of another it is old age that tells."""
    owned = path.name.removeprefix(files.PARTIAL)
    owner = owned.partition("-")[0]
    if owner.isdecimal():
        return processes.start_time(int(owner)) is not None
    if owned.startswith(f"{PREFIX['job']}-"):
        return any(owned.startswith(f"{row['id']}-") for row in using)
    return time.time() - path.stat().st_mtime < files.STALE_PARTIAL_S


def _unlisted(workspace: Workspace, using: list[Row]) -> Iterator[Waste]:
    store, home = workspace.store, workspace.home
    if [row["quick_check"] for row in store.rows("PRAGMA quick_check(1)")] != ["ok"]:
        return
    # A job that finds its finished work, or is about to list it, has made it since it was submitted.
    since = min((row["created_at"] for row in using), default=time.time())
    for kind, parent in (("adapter", home.adapters), ("export", home.exports)):
        if not store.artifacts(kind, limit=1):
            continue
        for path in sorted(parent.glob(f"{PREFIX[kind]}-*")):
            if path.stat().st_mtime < since and not _is_named(workspace, path.name):
                yield _waste(path, f"no {kind} of this name is listed")


def _is_named(workspace: Workspace, name: str) -> bool:
    """Whether the artifact is listed, or another that is was made of it, or a job works on it."""
    named = "SELECT 1 FROM artifacts WHERE id=?1 OR instr(document, ?1) OR instr(parents, ?1) LIMIT 1"
    return bool(workspace.store.rows(named, name)) or bool(jobs.naming(workspace, name, *IN_USE))


def _checkpoints(workspace: Workspace, older_than_days: int | None) -> Iterator[Waste]:
    ended = (State.SUCCEEDED, State.FAILED, State.CANCELLED)
    for row in workspace.store.rows("SELECT * FROM jobs WHERE state IN (?,?,?) ORDER BY seq", *ended):
        path = checkpoints.folder(jobs.folder(workspace, row["id"]))
        if not path.is_dir():
            continue
        age_s = time.time() - (row["ended_at"] or row["created_at"])
        if row["state"] == State.SUCCEEDED:
            yield _waste(path, "checkpoints of a job that has succeeded")
        elif jobs.deleted_input(workspace, row["id"]):
            yield _waste(path, "checkpoints of a job that cannot be resumed")
        elif older_than_days is not None and age_s >= older_than_days * DAY_S:
            yield _waste(path, f"checkpoints of a {row['state']} job; resumed, it would begin anew")


def _caches(workspace: Workspace, older_than_days: int) -> Iterator[Waste]:
    """What can be made or fetched again. Other homes share the user's cache: their jobs are not seen from here, so what
    was used lately stays.
    """
    for parent in (workspace.home.cache, cache_home()):
        for path in sorted(parent.glob("*")) if parent.is_dir() else ():
            if path.is_dir() and time.time() - _last_use(path) >= older_than_days * DAY_S:
                yield _waste(path, "a cache; made or fetched again when it is needed")


def _last_use(folder: Path) -> float:
    """When anything in it was last written or, where the disk keeps that, a file of it was read."""
    # Of a folder the time of reading is that of this very look.
    entries = [(each.is_dir(), each.lstat()) for each in (folder, *folder.rglob("*"))]
    return max(at.st_mtime if is_folder else max(at.st_atime, at.st_mtime) for is_folder, at in entries)

"""The doctor's look at the data home: rights, disk, database, jobs and leases. Changes nothing, and makes no home."""

import os
import shutil
import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tunewright.pipeline import environment, jobs, lease
from tunewright.pipeline.chat import protocol
from tunewright.pipeline.commandline import gc
from tunewright.pipeline.commandline.console import duration, size
from tunewright.pipeline.commandline.findings import Finding, failure, ok, warning
from tunewright.pipeline.jobs import State
from tunewright.pipeline.settings import Home
from tunewright.pipeline.store import MIGRATIONS, Store
from tunewright.pipeline.workspace import Workspace

# Too little to write even an event.
FULL_GIB = 0.2
# Longer than any step, evaluation or upload goes on without a word.
SILENT_S = 30 * 60
WASTE_BYTES = 10**9
ANOTHER = "Another home: --home DIR or TUNEWRIGHT_HOME."


def examine(home: str | None) -> Iterator[Finding]:
    """Everything about the home at `home` (see `Home.open`)."""
    root = Path(home or os.environ.get("TUNEWRIGHT_HOME") or "~/.tunewright").expanduser().absolute()
    yield _disk(root)
    folder = _folder(root)
    yield folder
    if folder.level == "failure" or not root.is_dir():
        return
    database = _database(root / "tunewright.db")
    if database is None:
        return
    yield database
    # One of an older schema would be changed by looking into it.
    if database.level == "ok":
        workspace = Workspace(Home(root), Store(root / "tunewright.db"))
        yield from _jobs(workspace)
        yield _device(workspace)
        yield _waste(workspace)
        workspace.store.close()


def _disk(root: Path) -> Finding:
    existing = next(path for path in (root, *root.parents) if path.exists())
    free_gib = shutil.disk_usage(existing).free / environment.GIB
    told = f"{free_gib:.1f} GiB free at {existing}"
    if free_gib < FULL_GIB:
        return failure("disk", told, "Free some space; `tunewright gc` helps.")
    if free_gib < environment.LOW_DISK_GIB:
        return warning("disk", f"{told}; an 8B model needs about 40 GiB to train and export", ANOTHER)
    return ok("disk", told)


def _folder(root: Path) -> Finding:
    if not root.exists():
        parent = next(path for path in root.parents if path.exists())
        if not os.access(parent, os.W_OK):
            return failure("home", f"{root} is not there, and {parent} cannot be written", ANOTHER)
        return ok("home", f"{root} will be made by the first job")
    if not root.is_dir() or not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        return failure("home", f"{root} is no folder that this user can write", ANOTHER)
    if any(root.iterdir()) and not (root / "datasets").is_dir():
        return failure("home", f"{root} holds other things than Tunewright's", ANOTHER)
    if os.name != "nt" and (mode := stat.S_IMODE(root.stat().st_mode)) & 0o077:
        return warning("home", f"{root} can be read by others (mode {mode:o})", f"chmod 700 {root}")
    return ok("home", str(root))


def _database(path: Path) -> Finding | None:
    """None where there is none yet."""
    if not path.exists():
        return None
    mend = f"Restore it, or move {path} away: the files stay, but are no longer listed."
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            health = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.Error as error:
        return failure("database", f"{path}: {error}", mend)
    if health != "ok":
        return failure("database", f"{path} is damaged: {health}", mend)
    if version > len(MIGRATIONS):
        known = f"schema {version}, this Tunewright knows up to {len(MIGRATIONS)}"
        return failure("database", known, "Update Tunewright.")
    if version < len(MIGRATIONS):
        return warning(
            "database", f"schema {version} of {len(MIGRATIONS)}", "Nothing to do: the next start migrates it."
        )
    return ok("database", f"whole, schema {version}")


def _jobs(workspace: Workspace) -> Iterator[Finding]:
    active = workspace.store.rows("SELECT * FROM jobs WHERE state IN (?,?) ORDER BY seq", *jobs.ACTIVE)
    stuck = [finding for row in active if (finding := _stuck(row))]
    for row in workspace.store.rows("SELECT id FROM jobs WHERE state=? ORDER BY seq", State.INTERRUPTED):
        stuck.append(warning("jobs", f"{row['id']} is interrupted", f"tunewright resume {row['id']}"))
    yield from stuck
    if not stuck:
        yield ok("jobs", f"{len(active)} under way, none stuck")


def _stuck(row: jobs.Row) -> Finding | None:
    job_id = row["id"]
    if not jobs.is_worker_alive(row):
        return warning("jobs", f"{job_id} is {row['state']}, its worker is dead", f"tunewright status {job_id}")
    silent_s = time.time() - (row["progress"] or {}).get("at", row["started_at"] or time.time())
    if row["state"] == State.RUNNING and silent_s > SILENT_S:
        mend = f"tunewright logs {job_id} --tail 20; then tunewright cancel {job_id}, and resume it"
        return warning("jobs", f"{job_id} has said nothing for {duration(silent_s)}", mend)
    return None


def _device(workspace: Workspace) -> Finding:
    """Whether every lease that is held has a holder who may: the kernel frees a dead one's, so none is ever stale."""
    host = protocol.find_host(workspace)
    running = workspace.store.rows("SELECT * FROM jobs WHERE state=? AND needs_device=1", State.RUNNING)
    known = {row["pid"] for row in running if jobs.is_worker_alive(row)} | ({host.pid} if host else set[int]())
    held: list[str] = []
    for device in lease.devices():
        lock = lease.try_take(workspace, device)
        if lock is not None:
            lock.release()
            continue
        held.append(device.name)
        holders = _holders(workspace.home.root / f"{device.name}.lock")
        strangers = [pid for pid in holders if pid not in known]
        if strangers or not known:
            named = ", ".join(map(_process, strangers)) or "a process that runs no job"
            return warning("lease", f"{device.name} is held by {named}", "End it, if it is not a job that just ends.")
    return ok("lease", f"{', '.join(held)} in use" if held else "free")


def _holders(lock: Path) -> list[int]:
    """The processes that hold a lock on the file, as Linux tells; empty elsewhere."""
    table = Path("/proc/locks")
    if not table.is_file():
        return []
    inode = str(lock.stat().st_ino)
    rows = (line.split() for line in table.read_text(encoding="utf-8").splitlines() if "->" not in line)
    return [int(row[4]) for row in rows if row[5].rpartition(":")[2] == inode]


def _process(pid: int) -> str:
    try:
        return f"process {pid} ({psutil.Process(pid).name()})"
    except psutil.Error:
        return f"process {pid}"


def _waste(workspace: Workspace) -> Finding:
    total = sum(waste.size_bytes for waste in gc.find(workspace, None))
    if total > WASTE_BYTES:
        return warning("leftovers", f"{size(total)} that nothing can use any more", "tunewright gc")
    return ok("leftovers", size(total))

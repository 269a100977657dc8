"""What must hold after every fault, seen from outside: in the store, the files, the kernel's processes and locks.

Each check returns what is wrong in words, so that nothing found is the same as all is well.
"""

import json
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
from faults.scenes import digest
from faults.world import MARK, World

from tunewright.pipeline import files, jobs, processes
from tunewright.pipeline.chat import protocol
from tunewright.pipeline.store import Row

LOCKS = Path("/proc/locks")


def marked(mark: str) -> list[psutil.Process]:
    """Every living process that the world's servers started, however far down, whoever its parent is now."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found += [process] if process.status() != psutil.STATUS_ZOMBIE else []
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def violations(world: World, server: int, submitted: set[str], *, at_rest: bool = False) -> list[str]:
    """All that is wrong. `server` is the live server's pid, `submitted` the jobs that there must be; `at_rest` says
    that no job is active, so that nothing may be under way either.
    """
    rows = world.workspace.store.rows("SELECT * FROM jobs")
    known = _known(world, server, rows)
    return [
        *_of_store(world), *_of_jobs(rows, submitted, at_rest=at_rest), *_of_processes(world, known),
        *_of_locks(world, known), *_of_files(world, rows, at_rest=at_rest),
    ]  # fmt: skip


def _of_store(world: World) -> Iterator[str]:
    checked = world.workspace.store.rows("PRAGMA quick_check")
    if checked != [{"quick_check": "ok"}]:
        yield f"the database is damaged: {checked}"


def _of_jobs(rows: list[Row], submitted: set[str], *, at_rest: bool) -> Iterator[str]:
    for lost in submitted - {row["id"] for row in rows}:
        yield f"{lost} is lost"
    for row in rows:
        if row["state"] in jobs.ACTIVE and not jobs.is_worker_alive(row):
            yield f"{row['id']} is stuck: {row['state']} without a worker"
        if row["state"] in jobs.ACTIVE and at_rest:
            yield f"{row['id']} is {row['state']}, and nothing should be under way"
        if row["state"] in ("failed", "interrupted") and not (row["error"] or {}).get("next"):
            yield f"{row['id']} is {row['state']} without a word of what to do: {row['error']}"
        if row["state"] == "succeeded" and row["result"] is None:
            yield f"{row['id']} has succeeded without a result"


def _known(world: World, server: int, rows: list[Row]) -> dict[int, str]:
    """The processes that may live, by pid: workers and the chat host with what each started, and the server, whose own
    children are just these.
    """
    heads = {row["pid"]: row["id"] for row in rows if row["state"] in jobs.ACTIVE and jobs.is_worker_alive(row)}
    host = protocol.find_host(world.workspace)
    if host:
        heads[host.pid] = "chat host"
    known: dict[int, str] = {}
    for pid, name in heads.items():
        try:
            known |= {
                child.pid: name for child in psutil.Process(pid).children(recursive=True) if child.pid not in heads
            }
        except psutil.NoSuchProcess:
            continue
    return known | heads | {server: "server"}


def _of_processes(world: World, known: dict[int, str]) -> Iterator[str]:
    for process in marked(world.mark):
        try:
            if process.pid not in known:
                yield f"an orphan: {process.pid} {' '.join(process.cmdline())[:200]}"
        except psutil.NoSuchProcess:
            continue


def _of_locks(world: World, known: dict[int, str]) -> Iterator[str]:
    """A lock's holder lives and has work to do; the device's is a worker or the chat host."""
    places = {path.stat().st_ino: path for path in world.home.glob("*.lock")}
    device = world.home.stat().st_dev
    for line in LOCKS.read_text(encoding="utf-8").splitlines():
        _, kind, _, _, pid, place, *_ = line.replace("-> ", "").split()
        major, minor, inode = place.split(":")
        if kind != "FLOCK" or (int(major, 16), int(minor, 16)) != (os.major(device), os.minor(device)):
            continue
        path, holder = places.get(int(inode)), known.get(int(pid))
        if path and (holder is None or (path.name == "cpu.lock" and holder == "server")):
            yield f"{path.name} is held by {pid} ({holder or 'nobody that should live'})"


def _of_files(world: World, rows: list[Row], *, at_rest: bool) -> Iterator[str]:
    home, store = world.workspace.home, world.workspace.store
    artifacts = {row["id"]: row for row in store.artifacts()}
    # Between a folder's last name and its row lies a moment, which only its own job may be in.
    active = {tail(row["id"]) for row in rows if row["state"] in jobs.ACTIVE}
    active |= {row["spec"].get("dataset_id", "") for row in rows if row["state"] in jobs.ACTIVE}
    for parent in (home.datasets, home.adapters, home.exports):
        for entry in sorted(parent.iterdir()):
            if entry.name.startswith(files.PARTIAL):
                if at_rest:
                    yield f"left behind: {entry.relative_to(home.root)}"
            elif entry.name not in artifacts and not {entry.name, tail(entry.name)} & active:
                yield f"{entry.relative_to(home.root)} has no row"
    for row in artifacts.values():
        if row["kind"] != "publication":
            yield from _of_artifact(row)
    for path in [*home.root.glob("*.json"), *home.jobs.glob("job-*/*.json")]:
        try:
            # Gone since it was listed is no fault: a chat host that leaves takes its address along.
            with suppress(FileNotFoundError):
                json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            yield f"{path.relative_to(home.root)} is torn"


def tail(id: str) -> str:
    return id.rpartition("-")[2]


def _of_artifact(row: Row) -> Iterator[str]:
    folder = Path(row["document"]["path"])
    if not folder.is_dir():
        yield f"{row['id']} has a row and no folder"
        return
    for path in folder.rglob("*"):
        if path.suffix == ".safetensors" and not _is_whole(path):
            yield f"{path} is torn"
        if path.suffix == ".parquet" and path.read_bytes()[-4:] != b"PAR1":
            yield f"{path} is torn"
    if row["kind"] == "export":
        for file in row["document"]["files"]:
            path = Path(file["path"])
            if files.size_bytes(path) != file["bytes"] or ("sha256" in file and digest(path) != file["sha256"]):
                yield f"{path} is not what its row says"


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    with path.open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    return path.stat().st_size == 8 + size + max(ends, default=0)


def is_alive(pid: int) -> bool:
    return processes.start_time(pid) is not None

"""Jobs: rows in the store with a folder and a worker, from submission to a terminal state.

    queued → running → succeeded | failed | cancelled | interrupted
    interrupted → queued, by itself (at most MAX_RESTARTS times) or by `resume`

A job lives without any server. Whoever looks at the store first after a worker died (`reconcile`) marks its job
interrupted and starts it again; training goes on from its last checkpoint. Every change is one transaction.
"""

import json
import shutil
import time
from enum import StrEnum
from pathlib import Path
from typing import Any

from filelock import FileLock

from tunewright.pipeline import files, processes
from tunewright.pipeline.errors import Conflict, call
from tunewright.pipeline.ids import new_id
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

MAX_RESTARTS = 3
WORKER_MODULE = "tunewright.pipeline.worker"


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


ACTIVE = (State.QUEUED, State.RUNNING)
RESUMABLE = (State.INTERRUPTED, State.FAILED, State.CANCELLED)


def folder(workspace: Workspace, job_id: str) -> Path:
    return workspace.home.jobs / job_id


def log_path(workspace: Workspace, job_id: str) -> Path:
    return folder(workspace, job_id) / "worker.log"


def spawn_lock(workspace: Workspace) -> FileLock:
    """Held while a worker is started and its pid stored, so that no other process takes the job for abandoned."""
    return FileLock(workspace.home.root / "spawn.lock", thread_local=False)


def submit(workspace: Workspace, kind: str, name: str, spec: dict[str, Any], *, needs_device: bool) -> Row:
    """Stores a job of `kind` (see `worker.stage`) and starts its worker. Returns the job's row at once."""
    job_id = new_id("job", name)
    with files.new_folder(folder(workspace, job_id)) as new:
        files.write_json(new / "spec.json", {"kind": kind, **spec})
    with spawn_lock(workspace):
        workspace.store.execute(
            "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at) VALUES (?,?,?,?,?,?)",
            job_id, kind, State.QUEUED, needs_device, json.dumps(spec), time.time(),
        )  # fmt: skip
        workspace.store.add_event(job_id, "info", "submitted", f"{kind} submitted.")
        _start_worker(workspace, job_id)
    return workspace.store.job(job_id)


def _start_worker(workspace: Workspace, job_id: str) -> None:
    """Starts the worker and stores its identity. The caller holds the spawn lock."""
    if workspace.inline:
        from tunewright.pipeline.worker import start_inline

        pid = start_inline(workspace, job_id)
    else:
        arguments = ["--home", str(workspace.home.root), "--job", job_id]
        pid = processes.start_detached(WORKER_MODULE, arguments, log_path(workspace, job_id))
    workspace.store.execute("UPDATE jobs SET pid=?, pid_started=? WHERE id=?", pid, processes.start_time(pid), job_id)


def move(workspace: Workspace, job_id: str, sources: tuple[State, ...], to: State, **columns: Any) -> bool:
    """Moves the job to `to` if it is in one of `sources`, setting `columns` (JSON text already encoded) with it.

    Returns whether it moved: two processes that try the same change cannot both succeed.
    """
    sets = "".join(f", {column}=?" for column in columns)
    marks = ",".join("?" * len(sources))
    sql = f"UPDATE jobs SET state=?{sets} WHERE id=? AND state IN ({marks})"
    return workspace.store.execute(sql, to, *columns.values(), job_id, *sources) == 1


def is_worker_alive(row: Row) -> bool:
    return processes.is_alive(row["pid"], row["pid_started"])


def reconcile(workspace: Workspace) -> list[str]:
    """Finds active jobs whose worker is dead and starts them again, or marks them. Returns their ids.

    A job that was asked to cancel becomes `cancelled`; one that was restarted MAX_RESTARTS times stays `interrupted`.
    """
    active = "SELECT * FROM jobs WHERE state IN ('queued','running')"
    if all(is_worker_alive(row) for row in workspace.store.rows(active)):
        return []
    touched: list[str] = []
    with spawn_lock(workspace):
        for row in workspace.store.rows(active):
            if not is_worker_alive(row):
                _take_up(workspace, row)
                touched.append(row["id"])
    return touched


def _take_up(workspace: Workspace, row: Row) -> None:
    job_id, store = row["id"], workspace.store
    if row["cancel"]:
        if move(workspace, job_id, ACTIVE, State.CANCELLED, ended_at=time.time()):
            store.add_event(job_id, "info", "cancelled", "Cancelled; its worker was no longer alive.")
            grant_wish(workspace, job_id, row["cancel"])
        return
    error = {
        "code": "worker_died",
        "what": f"The worker of {job_id} ended without a word while the job was {row['state']} "
        "(killed, out of host memory, or the machine restarted).",
        "allowed": f"Its log: {log_path(workspace, job_id)}.",
        "next": call("resume_job", job_id=job_id),
        "done": "Checkpoints and metrics are kept.",
    }
    if not move(workspace, job_id, ACTIVE, State.INTERRUPTED, error=json.dumps(error), ended_at=time.time()):
        return
    store.add_event(job_id, "warning", "interrupted", error["what"])
    if row["restarts"] < MAX_RESTARTS:
        columns = {"error": None, "ended_at": None, "restarts": row["restarts"] + 1}
        if move(workspace, job_id, (State.INTERRUPTED,), State.QUEUED, **columns):
            store.add_event(
                job_id, "info", "restarted", f"Started again by itself ({row['restarts'] + 1} of {MAX_RESTARTS})."
            )
            _start_worker(workspace, job_id)


def cancel(workspace: Workspace, job_id: str, *, keep_checkpoint: bool = True) -> Row:
    """Asks an active job to stop at its next safe point; an interrupted one is cancelled at once.

    Raises Conflict where the job has ended already.
    """
    row = workspace.store.job(job_id)
    job_id = row["id"]
    wish = "keep" if keep_checkpoint else "discard"
    asked = workspace.store.execute(
        "UPDATE jobs SET cancel=? WHERE id=? AND state IN ('queued','running')", wish, job_id
    )
    if asked:
        workspace.store.add_event(job_id, "info", "cancel_asked", f"Cancel asked for; checkpoints: {wish}.")
        reconcile(workspace)
    elif not _cancel_interrupted(workspace, job_id, wish):
        row = workspace.store.job(job_id)
        raise Conflict(
            "job_ended",
            f"{job_id} is {row['state']} already.",
            allowed="Only queued, running or interrupted jobs can be cancelled.",
            next=call("get_status", job_id=job_id),
        )
    return workspace.store.job(job_id)


def _cancel_interrupted(workspace: Workspace, job_id: str, wish: str) -> bool:
    # Under the lock, so that a resume at this moment does not lose the checkpoints it goes on from.
    with spawn_lock(workspace):
        moved = move(workspace, job_id, (State.INTERRUPTED,), State.CANCELLED, cancel=wish, ended_at=time.time())
        if moved:
            grant_wish(workspace, job_id, wish)
    return moved


def grant_wish(workspace: Workspace, job_id: str, wish: str | None) -> None:
    """Deletes the checkpoints of a cancelled job where its cancel asked to `discard` them."""
    if wish == "discard":
        shutil.rmtree(folder(workspace, job_id) / "checkpoints", ignore_errors=True)


def resume(workspace: Workspace, job_id: str) -> Row:
    """Queues an interrupted, failed or cancelled job again; training goes on from its last checkpoint.

    Raises Conflict where the job is active or has succeeded.
    """
    row = workspace.store.job(job_id)
    job_id = row["id"]
    columns = {"error": None, "ended_at": None, "cancel": None, "restarts": 0, "pid": None, "pid_started": None}
    with spawn_lock(workspace):
        if not move(workspace, job_id, RESUMABLE, State.QUEUED, **columns):
            raise Conflict(
                "job_not_resumable",
                f"{job_id} is {workspace.store.job(job_id)['state']}.",
                allowed=f"Only {', '.join(RESUMABLE)} jobs can be resumed.",
                next=call("get_status", job_id=job_id),
            )
        workspace.store.add_event(job_id, "info", "resumed", "Resumed.")
        _start_worker(workspace, job_id)
    return workspace.store.job(job_id)


def newest(workspace: Workspace, limit: int = 20) -> list[Row]:
    """Jobs, newest first."""
    return workspace.store.rows("SELECT * FROM jobs ORDER BY seq DESC LIMIT ?", limit)

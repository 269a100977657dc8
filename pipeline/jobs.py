"""Jobs: rows in the store with a folder and a worker, from submission to a terminal state.

    queued → running → succeeded | failed | cancelled | interrupted
    interrupted → queued, by itself (at most MAX_RESTARTS times without progress) or by `resume`

A job lives without any server. Whoever looks at the store first after a worker died (`reconcile`) marks its job
interrupted and starts it again; training goes on from its last checkpoint. A worker that had written a checkpoint gives
its job all its restarts back: an unsteady machine must not strand a long run. Every change is one transaction.
"""

import json
import logging
import shutil
import time
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

from filelock import FileLock

from tunewright.pipeline import access, files, host_memory, processes
from tunewright.pipeline.errors import Conflict, NoSpace, call
from tunewright.pipeline.ids import free_id
from tunewright.pipeline.store import Row
from tunewright.pipeline.training import checkpoints
from tunewright.pipeline.workspace import Workspace

log = logging.getLogger("tunewright")
MAX_RESTARTS = 3
WORKER_MODULE = "tunewright.pipeline.worker"
# Codes of events that say how a worker ended before its job was done, and that what the job works on was deleted.
INTERRUPTED, HOST_MEMORY_OUT = "interrupted", "host_memory_out"
INPUT_DELETED = "input_deleted"
# Of a log, in which a worker that could not store its end has told it.
LOG_END_BYTES = 2000
# Never in the server's own process, where a training may have rewritten transformers (`inference/loading`).
OWN_PROCESS = ("validate", "benchmark")


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
    job_id = free_id("job", name, workspace.home.jobs)
    with files.new_folder(folder(workspace, job_id)) as new:
        # Its worker starts in another folder, and may be started again by another server.
        files.write_json(new / "spec.json", {"kind": kind, "allowed": access.allowed_here(), **spec})
    with spawn_lock(workspace):
        workspace.store.add_job(job_id, kind, State.QUEUED, spec, needs_device=needs_device)
        # Without room the job is stored all the same, and `reconcile` starts it once there is some.
        with suppress(NoSpace):
            _start_worker(workspace, job_id)
    return workspace.store.job(job_id)


def _start_worker(workspace: Workspace, job_id: str) -> None:
    """Starts the worker and stores its identity. The caller holds the spawn lock. Raises NoSpace on a full disk."""
    try:
        _spawn(workspace, job_id)
    except OSError as error:
        if isinstance(error, NoSpace) or not files.is_disk_full(error):
            raise
        raise NoSpace(
            "no_disk_space", f"The disk of {workspace.home.root} is full: {job_id} cannot be started.",
            allowed="Free some space on it; then the job begins.", next="list_artifacts()",
        ) from error  # fmt: skip


def _spawn(workspace: Workspace, job_id: str) -> None:
    host_memory.remember(folder(workspace, job_id))
    if workspace.inline and workspace.store.job(job_id)["kind"] not in OWN_PROCESS:
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
    if row["pid"] is None and not row["cancel"]:
        # Whoever took the job died, or the disk was full, before a worker was its own: it has not begun. Where it
        # cannot begin for another reason it counts as dead, or looking at jobs would fail for ever.
        try:
            return _start_worker(workspace, job_id)
        except NoSpace:
            raise
        except OSError:
            log.exception("could not start the worker of %s", job_id)
    if row["cancel"]:
        if move(workspace, job_id, ACTIVE, State.CANCELLED, ended_at=time.time()):
            grant_wish(workspace, job_id, row["cancel"])
            message = f"Cancelled; its worker was no longer alive. Resumed, it goes on {start_point(workspace, row)}."
            store.add_event(job_id, "info", "cancelled", message)
        return
    error = _death(workspace, row)
    if not move(workspace, job_id, ACTIVE, State.INTERRUPTED, error=json.dumps(error), ended_at=time.time()):
        return
    code = HOST_MEMORY_OUT if error["code"] == HOST_MEMORY_OUT else INTERRUPTED
    store.add_event(job_id, "warning", code, error["what"])
    restarts = 0 if _has_progressed(workspace, row) else row["restarts"]
    if restarts < MAX_RESTARTS:
        columns = {"error": None, "ended_at": None, "progress": None, "restarts": restarts + 1}
        if move(workspace, job_id, (State.INTERRUPTED,), State.QUEUED, **columns):
            message = f"Started again by itself ({restarts + 1} of {MAX_RESTARTS}), {start_point(workspace, row)}."
            store.add_event(job_id, "info", "restarted", message)
            _start_worker(workspace, job_id)


def _death(workspace: Workspace, row: Row) -> dict[str, str]:
    """The error of a job whose worker is dead: what is known of why, and from where it can go on."""
    job_id = row["id"]
    died = f"The worker of {job_id} ended without a word while the job was {row['state']}"
    its_log = f"Its log: {log_path(workspace, job_id)}."
    if host_memory.has_killed(folder(workspace, job_id)):
        code = HOST_MEMORY_OUT
        what = f"{died}: host memory ran out, and the kernel killed a process for it."
        allowed = f"Close what else takes memory, or train a smaller model or shorter sequences. {its_log}"
    elif files.says_disk_full(files.log_end(log_path(workspace, job_id), LOG_END_BYTES)):
        code, what = "no_disk_space", f"{died}: its disk was full."
        allowed = f"Free some space on it, then it goes on. {its_log}"
    else:
        code, what, allowed = "worker_died", f"{died} (killed, or the machine restarted).", its_log
    return {
        "code": code,
        "what": what,
        "allowed": allowed,
        "next": call("resume_job", job_id=job_id),
        "done": f"Metrics are kept; it goes on {start_point(workspace, row)}.",
    }


def died_of_memory(workspace: Workspace, job_id: str) -> bool:
    """Whether the job's last worker was, as it seems, killed because host memory had run out."""
    ends = (INTERRUPTED, HOST_MEMORY_OUT, State.FAILED, State.CANCELLED)
    sql = "SELECT code FROM events WHERE job_id=? AND code IN (?,?,?,?) ORDER BY id DESC LIMIT 1"
    return [row["code"] for row in workspace.store.rows(sql, job_id, *ends)] == [HOST_MEMORY_OUT]


def _has_progressed(workspace: Workspace, row: Row) -> bool:
    """Whether the job's last worker has written a checkpoint."""
    checkpoint = checkpoints.last(folder(workspace, row["id"]))
    if checkpoint is None:
        return False
    # Not the process's start time: that is counted from the boot, and drifts from the files' clock.
    sql = "SELECT max(at) AS at FROM events WHERE job_id=? AND code IN ('submitted','restarted','resumed')"
    return checkpoints.written_at(checkpoint) > workspace.store.rows(sql, row["id"])[0]["at"]


def start_point(workspace: Workspace, row: Row) -> str:
    """From where the job goes on when it is started again, to be put behind a verb: `from the checkpoint of step 8`."""
    if row["kind"] == "export":
        return "from the beginning"
    if row["kind"] != "finetune":
        return "with what it had finished"
    checkpoint = checkpoints.last(folder(workspace, row["id"]))
    if checkpoint is None:
        return "from step 0, as it has no checkpoint"
    return f"from the checkpoint of step {checkpoints.steps(checkpoint)}"


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
            message = f"Cancelled. Resumed, it goes on {start_point(workspace, workspace.store.job(job_id))}."
            workspace.store.add_event(job_id, "info", "cancelled", message)
    return moved


def grant_wish(workspace: Workspace, job_id: str, wish: str | None) -> None:
    """Deletes the checkpoints of a cancelled job where its cancel asked to `discard` them."""
    if wish == "discard":
        shutil.rmtree(folder(workspace, job_id) / "checkpoints", ignore_errors=True)


def resume(workspace: Workspace, job_id: str) -> Row:
    """Queues an interrupted, failed or cancelled job again; training goes on from its last checkpoint.

    Raises Conflict where the job is active or has succeeded, or where something that it works on was deleted.
    """
    row = workspace.store.job(job_id)
    job_id = row["id"]
    columns = dict.fromkeys(("error", "ended_at", "progress", "cancel", "pid", "pid_started")) | {"restarts": 0}
    with spawn_lock(workspace):
        gone = deleted_input(workspace, job_id)
        if gone:
            raise Conflict(
                "job_not_resumable", f"{job_id} cannot be resumed: {gone}", allowed="Begin anew with what is there.",
                next="list_artifacts()",
            )  # fmt: skip
        if not move(workspace, job_id, RESUMABLE, State.QUEUED, **columns):
            raise Conflict(
                "job_not_resumable",
                f"{job_id} is {workspace.store.job(job_id)['state']}.",
                allowed=f"Only {', '.join(RESUMABLE)} jobs can be resumed.",
                next=call("get_status", job_id=job_id),
            )
        workspace.store.add_event(job_id, "info", "resumed", f"Resumed {start_point(workspace, row)}.")
        _start_worker(workspace, job_id)
    return workspace.store.job(job_id)


def deleted_input(workspace: Workspace, job_id: str) -> str | None:
    """A sentence where something that the job works on was deleted, so that it can never be resumed; else None."""
    sql = "SELECT message FROM events WHERE job_id=? AND code=? ORDER BY id LIMIT 1"
    return next((row["message"] for row in workspace.store.rows(sql, job_id, INPUT_DELETED)), None)


def naming(workspace: Workspace, artifact_id: str, *states: State) -> list[Row]:
    """The jobs in one of `states` whose spec names the artifact, by its id or a path to it, newest first."""
    marks = ",".join("?" * len(states))
    named = "(instr(spec, ?) OR instr(spec, ?) OR instr(spec, ?))"
    sql = f"SELECT * FROM jobs WHERE state IN ({marks}) AND {named} ORDER BY seq DESC"
    return workspace.store.rows(sql, *states, f'"{artifact_id}"', f'/{artifact_id}"', f"/{artifact_id}/")


def newest(workspace: Workspace, limit: int = 20) -> list[Row]:
    """Jobs, what runs first, then the newest."""
    return workspace.store.rows("SELECT * FROM jobs ORDER BY state='running' DESC, seq DESC LIMIT ?", limit)

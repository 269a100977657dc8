"""Jobs with real, detached workers. They wait for the device that a test holds or fail fast; none imports torch."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from threading import Barrier, Thread

import psutil
import pytest
from filelock import FileLock
from standins.checkpoints import write_checkpoint

from tunewright.pipeline import files, host_memory, jobs, lease, processes
from tunewright.pipeline.errors import Conflict
from tunewright.pipeline.jobs import MAX_RESTARTS, State
from tunewright.pipeline.lease import Device
from tunewright.pipeline.store import Row
from tunewright.pipeline.training import checkpoints
from tunewright.pipeline.workspace import Workspace

# Fails within a second, at the first thing that the stage asks the store for.
KIND, SPEC = "publish_ollama", {"export_id": "ex-none-0000", "model_name": "none"}
CPU = Device(None)
WAITING_MB = 50

Eventually = Callable[..., None]
RunPython = Callable[..., str]


def kill(row: Row, eventually: Eventually) -> None:
    os.kill(row["pid"], signal.SIGKILL)
    eventually(lambda: not jobs.is_worker_alive(row))


def codes(workspace: Workspace, job_id: str) -> list[str]:
    return [event["code"] for event in workspace.store.events(job_id)]


def state(workspace: Workspace, job_id: str) -> str:
    return workspace.store.job(job_id)["state"]


@pytest.fixture(autouse=True)
def no_worker_left(workspace: Workspace) -> Iterator[None]:
    yield
    for row in workspace.store.rows("SELECT * FROM jobs"):
        if jobs.is_worker_alive(row) and row["pid"] != os.getpid():
            process = psutil.Process(row["pid"])
            process.kill()
            process.wait(10)


@pytest.fixture
def device(workspace: Workspace, no_worker_left: None) -> Iterator[FileLock]:
    """The machine's one device, held by the test: jobs that need it wait in their workers."""
    lock = lease.try_take(workspace, CPU)
    assert lock is not None
    yield lock
    lock.release()


@pytest.fixture
def wait_in_line(workspace: Workspace, device: FileLock, eventually: Eventually) -> Callable[..., Row]:
    """Submits a job and returns its row once its worker stands in line for the device."""

    def submitted(kind: str = KIND) -> Row:
        row = jobs.submit(workspace, kind, "test", SPEC, needs_device=True)
        eventually(lambda: "waiting" in codes(workspace, row["id"]))
        return workspace.store.job(row["id"])

    return submitted


def test_a_job_that_cannot_do_its_work_fails_with_the_reason(workspace: Workspace, eventually: Eventually) -> None:
    job = jobs.submit(workspace, KIND, "My model", SPEC, needs_device=False)
    assert job["state"] == State.QUEUED and job["id"].startswith("job-my-model-")
    eventually(lambda: state(workspace, job["id"]) == State.FAILED)
    ended = workspace.store.job(job["id"])
    assert ended["error"]["code"] == "artifact_not_found" and "'ex-none-0000'" in ended["error"]["what"]
    assert ended["error"]["next"] == 'list_artifacts(kind="export")'
    assert ended["created_at"] <= ended["started_at"] <= ended["ended_at"]
    assert codes(workspace, job["id"]) == ["submitted", "started", "failed"]


def test_an_unforeseen_failure_says_where_its_traceback_stands(workspace: Workspace, eventually: Eventually) -> None:
    job = jobs.submit(workspace, "no_such_kind", "test", {}, needs_device=False)
    eventually(lambda: state(workspace, job["id"]) == State.FAILED)
    error = workspace.store.job(job["id"])["error"]
    log = jobs.log_path(workspace, job["id"])
    assert error["code"] == "internal_error"
    assert error["what"] == "ValueError: unknown kind of job: no_such_kind."
    assert str(log) in error["allowed"] and "Traceback" not in str(error)
    assert "Traceback (most recent call last)" in log.read_text(encoding="utf-8")


def test_a_job_outlives_the_process_that_submitted_it(
    workspace: Workspace, device: FileLock, run_python: RunPython, eventually: Eventually
) -> None:
    code = """
import os, signal, sys
from tunewright.pipeline import jobs
from tunewright.pipeline.workspace import Workspace
row = jobs.submit(Workspace.open(sys.argv[1]), "publish_ollama", "test", {}, needs_device=True)
print(row["id"], os.getpid(), os.getpgid(0), flush=True)
os._exit(0)
"""
    job_id, submitter, group = run_python(code, workspace.home.root).split()
    eventually(lambda: "waiting" in codes(workspace, job_id))
    row = workspace.store.job(job_id)
    assert processes.start_time(int(submitter)) is None
    assert jobs.is_worker_alive(row)
    assert os.getpgid(row["pid"]) == row["pid"] != int(group), "a signal to the server's group must not reach it"


def test_a_waiting_worker_is_small(wait_in_line: Callable[[], Row]) -> None:
    job = wait_in_line()
    assert psutil.Process(job["pid"]).memory_info().rss / 1e6 < WAITING_MB


def test_jobs_for_one_device_run_one_after_another_in_order(
    workspace: Workspace, device: FileLock, wait_in_line: Callable[[], Row], eventually: Eventually
) -> None:
    waiting = [wait_in_line()["id"] for _ in range(3)]
    assert [state(workspace, job_id) for job_id in waiting] == ["queued"] * 3
    device.release()
    eventually(lambda: all(state(workspace, job_id) == State.FAILED for job_id in waiting))
    rows = [workspace.store.job(job_id) for job_id in waiting]
    for earlier, later in pairwise(rows):
        assert earlier["ended_at"] <= later["started_at"]


class StillWaiting(Exception):
    pass


def polls(count: int) -> Callable[[], None]:
    """A `check_cancelled` that gives up the wait for the device at its `count`-th call."""
    calls = iter(range(count))

    def check() -> None:
        if next(calls, None) is None:
            raise StillWaiting

    return check


def test_a_later_job_leaves_a_free_device_to_an_earlier_one(
    workspace: Workspace, device: FileLock, wait_in_line: Callable[[], Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = wait_in_line(), wait_in_line()
    os.kill(first["pid"], signal.SIGSTOP)  # alive and first, but it does not take the device
    device.release()
    monkeypatch.setattr(lease, "POLL_S", 0.001)
    with pytest.raises(StillWaiting), lease.hold_device(workspace, second["id"], polls(20)):
        pytest.fail("overtook")
    with lease.hold_device(workspace, first["id"], polls(20)) as held:
        assert held == CPU
        assert lease.try_take(workspace, CPU) is None


def test_a_dead_worker_does_not_hold_up_the_jobs_behind_it(
    workspace: Workspace, device: FileLock, wait_in_line: Callable[[], Row], eventually: Eventually
) -> None:
    first, second = wait_in_line(), wait_in_line()
    kill(first, eventually)
    device.release()
    eventually(lambda: state(workspace, second["id"]) == State.FAILED)
    assert state(workspace, first["id"]) == State.QUEUED, "nobody has reconciled yet"


def test_a_job_that_needs_no_device_does_not_wait_for_it(
    workspace: Workspace, device: FileLock, wait_in_line: Callable[[], Row], eventually: Eventually
) -> None:
    waiting = wait_in_line()
    free = jobs.submit(workspace, KIND, "test", SPEC, needs_device=False)
    eventually(lambda: state(workspace, free["id"]) == State.FAILED)
    assert state(workspace, waiting["id"]) == State.QUEUED


def test_a_job_is_cancelled_while_it_waits(
    workspace: Workspace, wait_in_line: Callable[[], Row], eventually: Eventually
) -> None:
    job = wait_in_line()
    jobs.cancel(workspace, job["id"])
    eventually(lambda: state(workspace, job["id"]) == State.CANCELLED)
    row = workspace.store.job(job["id"])
    assert row["started_at"] is None and row["ended_at"] and row["error"] is None
    eventually(lambda: not jobs.is_worker_alive(job))


def test_another_server_on_the_home_sees_and_cancels_the_same_job(
    workspace: Workspace, wait_in_line: Callable[[], Row], eventually: Eventually
) -> None:
    job = wait_in_line()
    other = Workspace.open(workspace.home.root)
    assert other.store.job(job["id"]) == job
    assert [row["id"] for row in jobs.newest(other)] == [job["id"]]
    assert jobs.reconcile(other) == []
    jobs.cancel(other, job["id"][:-1])
    eventually(lambda: state(workspace, job["id"]) == State.CANCELLED)
    other.store.close()


def test_an_ended_job_cannot_be_cancelled(workspace: Workspace, eventually: Eventually) -> None:
    job = jobs.submit(workspace, KIND, "test", SPEC, needs_device=False)
    eventually(lambda: state(workspace, job["id"]) == State.FAILED)
    with pytest.raises(Conflict) as caught:
        jobs.cancel(workspace, job["id"])
    assert str(caught.value).startswith(f"job_ended: {job['id']} is failed already.")
    assert workspace.store.job(job["id"])["cancel"] is None


def test_a_killed_worker_is_replaced_by_itself(
    workspace: Workspace, wait_in_line: Callable[[], Row], eventually: Eventually
) -> None:
    job = wait_in_line()
    workspace.store.execute("UPDATE jobs SET progress=?", '{"phase": "training", "done": 30, "total": 60}')
    kill(job, eventually)
    assert jobs.reconcile(workspace) == [job["id"]]
    again = workspace.store.job(job["id"])
    assert (again["state"], again["restarts"], again["error"]) == (State.QUEUED, 1, None)
    assert not again["progress"] or again["progress"].get("done") != 30, "what was done is not done any more"
    assert again["pid"] != job["pid"] and jobs.is_worker_alive(again)
    assert jobs.reconcile(workspace) == []
    assert codes(workspace, job["id"])[:4] == ["submitted", "waiting", "interrupted", "restarted"]


def test_a_job_whose_workers_keep_dying_is_interrupted_until_somebody_resumes_it(
    workspace: Workspace, wait_in_line: Callable[[], Row], eventually: Eventually
) -> None:
    job_id = wait_in_line()["id"]
    for _ in range(MAX_RESTARTS + 1):
        kill(workspace.store.job(job_id), eventually)
        assert jobs.reconcile(workspace) == [job_id]
    row = workspace.store.job(job_id)
    assert (row["state"], row["restarts"]) == (State.INTERRUPTED, MAX_RESTARTS)
    assert row["error"]["code"] == "worker_died"
    assert row["error"]["next"] == f'resume_job(job_id="{job_id}")'
    assert row["ended_at"] is not None
    assert jobs.reconcile(workspace) == []

    resumed = jobs.resume(workspace, job_id)
    assert (resumed["state"], resumed["restarts"], resumed["error"]) == (State.QUEUED, 0, None)
    assert jobs.is_worker_alive(resumed)


def test_a_worker_that_had_written_a_checkpoint_gives_its_job_all_restarts_back(
    workspace: Workspace, wait_in_line: Callable[..., Row], eventually: Eventually
) -> None:
    job_id = wait_in_line("finetune")["id"]
    for checkpoint, restarts in ((None, 1), (None, 2), (5, 1), (None, 2), (10, 1), (None, 2), (None, 3), (None, 3)):
        row = workspace.store.job(job_id)
        if checkpoint:
            written = write_checkpoint(jobs.folder(workspace, job_id), checkpoint)
            # The clock of files is coarser than time.time().
            os.utime(written / checkpoints.STATE, (time.time(), time.time()))
        kill(row, eventually)
        jobs.reconcile(workspace)
        assert workspace.store.job(job_id)["restarts"] == restarts
    assert state(workspace, job_id) == State.INTERRUPTED
    assert workspace.store.job(job_id)["error"]["done"].endswith("it goes on from the checkpoint of step 10.")


def test_a_checkpoint_cut_short_is_no_progress(
    workspace: Workspace, wait_in_line: Callable[..., Row], eventually: Eventually
) -> None:
    job = wait_in_line("finetune")
    (write_checkpoint(jobs.folder(workspace, job["id"]), 5) / "optimizer.pt").write_bytes(b"PK")
    workspace.store.execute("UPDATE jobs SET restarts=?", MAX_RESTARTS)
    kill(job, eventually)
    jobs.reconcile(workspace)
    assert state(workspace, job["id"]) == State.INTERRUPTED


def kernel_kills(workspace: Workspace, job_id: str, tmp_path: Path) -> None:
    """Puts a counter of one's own under the worker's, and lets it rise as the kernel does when it has killed."""
    counter = tmp_path / "memory.events"
    counter.write_text("oom 3\noom_kill 3\n", encoding="utf-8")
    files.write_json(jobs.folder(workspace, job_id) / host_memory.REMEMBERED, {"counter": str(counter), "kills": 2})


def test_a_worker_that_the_kernel_killed_for_memory_is_said_to_be_and_its_successor_knows(
    workspace: Workspace, wait_in_line: Callable[..., Row], eventually: Eventually, tmp_path: Path
) -> None:
    job = wait_in_line()
    job_id = job["id"]
    assert (jobs.folder(workspace, job_id) / host_memory.REMEMBERED).is_file()
    assert not jobs.died_of_memory(workspace, job_id)
    kernel_kills(workspace, job_id, tmp_path)
    workspace.store.execute("UPDATE jobs SET restarts=?", MAX_RESTARTS)
    kill(job, eventually)
    jobs.reconcile(workspace)
    row = workspace.store.job(job_id)
    assert (row["state"], row["error"]["code"]) == (State.INTERRUPTED, "host_memory_out")
    assert "host memory ran out" in row["error"]["what"]
    assert jobs.died_of_memory(workspace, job_id)

    kill(jobs.resume(workspace, job_id), eventually)
    jobs.reconcile(workspace)
    assert not jobs.died_of_memory(workspace, job_id), "the last one was killed by a person"
    assert codes(workspace, job_id)[-3:] == ["resumed", "interrupted", "restarted"]


def test_only_ended_jobs_are_resumed(
    workspace: Workspace, wait_in_line: Callable[[], Row], eventually: Eventually
) -> None:
    job = wait_in_line()
    with pytest.raises(Conflict) as caught:
        jobs.resume(workspace, job["id"])
    assert "job_not_resumable" in str(caught.value) and "is queued" in str(caught.value)
    assert workspace.store.job(job["id"])["pid"] == job["pid"]
    jobs.cancel(workspace, job["id"])
    eventually(lambda: state(workspace, job["id"]) == State.CANCELLED)
    resumed = jobs.resume(workspace, job["id"])
    assert (resumed["state"], resumed["cancel"]) == (State.QUEUED, None)


def test_two_servers_that_find_a_dead_worker_at_once_start_one_new_one(
    workspace: Workspace, wait_in_line: Callable[[], Row], eventually: Eventually
) -> None:
    job = wait_in_line()
    kill(job, eventually)
    start, touched = Barrier(4), []

    def reconcile() -> None:
        own = Workspace.open(workspace.home.root)
        start.wait(10)
        touched.extend(jobs.reconcile(own))
        own.store.close()

    threads = [Thread(target=reconcile) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert touched == [job["id"]]
    assert workspace.store.job(job["id"])["restarts"] == 1
    assert codes(workspace, job["id"]).count("restarted") == 1


def test_a_job_is_not_taken_for_abandoned_while_it_is_being_submitted(workspace: Workspace, device: FileLock) -> None:
    done: list[bool] = []

    def reconcile_until_done() -> None:
        while not done:
            jobs.reconcile(workspace)
        workspace.store.close()

    thread = Thread(target=reconcile_until_done)
    thread.start()
    try:
        rows = [jobs.submit(workspace, KIND, "test", SPEC, needs_device=True) for _ in range(5)]
    finally:
        done.append(True)
        thread.join(20)
    assert [workspace.store.job(row["id"])["restarts"] for row in rows] == [0] * 5


def test_a_worker_that_is_not_the_one_written_down_leaves(
    workspace: Workspace, wait_in_line: Callable[[], Row]
) -> None:
    job = wait_in_line()
    before = codes(workspace, job["id"])
    command = [sys.executable, "-P", "-m", jobs.WORKER_MODULE, "--home", str(workspace.home.root), "--job", job["id"]]
    finished = subprocess.run(command, capture_output=True, timeout=60)
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert codes(workspace, job["id"]) == before
    assert workspace.store.job(job["id"]) == job


def test_a_reused_pid_is_not_taken_for_the_worker(workspace: Workspace, wait_in_line: Callable[[], Row]) -> None:
    job = wait_in_line()
    workspace.store.execute("UPDATE jobs SET pid=?, pid_started=pid_started-60 WHERE id=?", os.getppid(), job["id"])
    assert not jobs.is_worker_alive(workspace.store.job(job["id"]))
    psutil.Process(job["pid"]).kill()


def test_a_cancelled_job_with_a_dead_worker_is_cancelled_not_restarted(
    workspace: Workspace, wait_in_line: Callable[[], Row], eventually: Eventually
) -> None:
    job = wait_in_line()
    kill(job, eventually)
    row = jobs.cancel(workspace, job["id"])
    assert (row["state"], row["restarts"]) == (State.CANCELLED, 0)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("found", ["worker alive", "worker dead", "interrupted"])
def test_cancelling_keeps_or_discards_checkpoints_as_asked(
    workspace: Workspace, wait_in_line: Callable[[], Row], eventually: Eventually, found: str, keep: bool
) -> None:
    job = wait_in_line()
    kept = checkpoints.folder(jobs.folder(workspace, job["id"])) / "checkpoint-10"
    kept.mkdir(parents=True)
    if found != "worker alive":
        kill(job, eventually)
    if found == "interrupted":
        assert jobs.move(workspace, job["id"], jobs.ACTIVE, State.INTERRUPTED)
    jobs.cancel(workspace, job["id"], keep_checkpoint=keep)
    eventually(lambda: state(workspace, job["id"]) == State.CANCELLED)
    assert kept.exists() == keep


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("found", ["worker alive", "worker dead", "interrupted"])
def test_a_cancel_and_a_resume_say_from_where_the_job_goes_on(
    workspace: Workspace, wait_in_line: Callable[..., Row], eventually: Eventually, found: str, keep: bool
) -> None:
    job = wait_in_line("finetune")
    write_checkpoint(jobs.folder(workspace, job["id"]), 10)
    if found != "worker alive":
        kill(job, eventually)
    if found == "interrupted":
        assert jobs.move(workspace, job["id"], jobs.ACTIVE, State.INTERRUPTED)
    jobs.cancel(workspace, job["id"], keep_checkpoint=keep)
    eventually(lambda: "cancelled" in codes(workspace, job["id"]))
    eventually(lambda: not jobs.is_worker_alive(job))
    jobs.resume(workspace, job["id"])
    said = {event["code"]: event["message"] for event in workspace.store.events(job["id"])}
    where = "from the checkpoint of step 10." if keep else "from step 0, as it has no checkpoint."
    assert said["cancelled"].endswith(f"Resumed, it goes on {where}")
    assert said["resumed"] == f"Resumed {where}"


def test_a_job_of_another_kind_takes_up_what_it_had_finished(
    workspace: Workspace, wait_in_line: Callable[..., Row]
) -> None:
    assert jobs.start_point(workspace, wait_in_line()) == "with what it had finished"


def test_an_inline_job_runs_in_this_process(workspace: Workspace, eventually: Eventually) -> None:
    inline = Workspace(workspace.home, workspace.store, inline=True)
    job = jobs.submit(inline, KIND, "test", SPEC, needs_device=True)
    assert job["pid"] == os.getpid()
    eventually(lambda: state(inline, job["id"]) == State.FAILED)
    assert inline.store.job(job["id"])["error"]["code"] == "artifact_not_found"
    eventually(lambda: (lock := lease.try_take(inline, CPU)) is not None and lock.release() is None)

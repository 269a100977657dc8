"""Jobs seen and steered from a terminal: by the console script, on a home with jobs in its store."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tunewright.pipeline import jobs, lease
from tunewright.pipeline.workspace import Workspace

CONSOLE = str(Path(sys.executable).with_name("tunewright"))
TIMEOUT_S = 60
Tunewright = Callable[..., subprocess.CompletedProcess[str]]
Job = Callable[..., str]
ERROR = {
    "code": "out_of_memory", "what": "It did not fit.", "allowed": "Lower batch_size.",
    "next": 'resume_job(job_id="job-numbers-0000")', "done": "",
}  # fmt: skip


@pytest.fixture
def home(workspace: Workspace) -> list[str]:
    return ["--home", str(workspace.home.root)]


def log_of(workspace: Workspace, job_id: str, content: bytes) -> Path:
    path = jobs.log_path(workspace, job_id)
    path.write_bytes(content)
    return path


def start(environment: dict[str, str], *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [CONSOLE, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        encoding="utf-8", env=environment,
    )  # fmt: skip


def test_the_overview_names_every_job_with_state_and_progress(
    tunewright: Tunewright, job: Job, home: list[str]
) -> None:
    done = job("succeeded", age_s=7200)
    running = job("running", progress={"phase": "training", "done": 40, "total": 200, "at": 0, "eta_s": 303})
    for arguments in (["status", *home], [*home, "status"]):
        shown = tunewright(*arguments)
        assert (shown.returncode, shown.stderr) == (0, "")
        lines = shown.stdout.splitlines()
        assert lines[1].split()[:3] == [running, "finetune", "running"]
        assert "training 40/200, 5 min 03 s left" in lines[1]
        assert lines[2].split()[:3] == [done, "finetune", "succeeded"]
        assert "2 h 00 min ago" in lines[2]
        assert "\x1b" not in shown.stdout


def test_an_empty_home_has_no_jobs_yet(tunewright: Tunewright, home: list[str]) -> None:
    shown = tunewright("status", *home)
    assert shown.returncode == 0
    assert shown.stdout.startswith("No jobs yet")


def test_one_job_shows_its_numbers_events_and_what_to_do(
    tunewright: Tunewright, workspace: Workspace, job: Job, home: list[str]
) -> None:
    job_id = job("failed", error=ERROR)
    workspace.store.add_metric(job_id, "train", 1, {"loss": 1.5, "tokens_per_s": 812.0})
    workspace.store.add_event(job_id, "warning", "cut", "Rows were \x1b[31mcut\x07.")
    shown = tunewright("status", job_id[:-2], *home)
    assert shown.returncode == 0
    for part in (job_id, "failed", "loss 1.5", "812 tokens/s", "out_of_memory: It did not fit. Lower batch_size.",
                 f"Next: tunewright resume {job_id}", "warning cut: Rows were cut.", "worker.log"):  # fmt: skip
        assert part in shown.stdout
    assert "\x1b" not in shown.stdout


def test_an_unknown_job_is_said_with_the_nearest_and_a_command(
    tunewright: Tunewright, job: Job, home: list[str]
) -> None:
    job_id = job("succeeded")
    for command in ("status", "logs", "cancel", "resume"):
        refused = tunewright(command, "job-numbers-9999", *home)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith("job_not_found: ")
        assert job_id in refused.stderr
        assert "Next: tunewright status" in refused.stderr


def test_a_terminal_gets_colours_and_a_pipe_none(
    job: Job, home: list[str], user_environment: dict[str, str], tunewright: Tunewright
) -> None:
    job("succeeded")
    ours, theirs = pty.openpty()
    environment = {**user_environment, "TERM": "xterm-256color", "COLUMNS": "120"}
    subprocess.run([CONSOLE, "status", *home], stdout=theirs, env=environment, timeout=TIMEOUT_S, check=True)
    shown = os.read(ours, 1 << 16)
    os.close(ours)
    os.close(theirs)
    assert b"\x1b[32msucceeded" in shown
    assert "\x1b" not in tunewright("status", *home, TERM="xterm-256color").stdout


def test_a_watched_job_is_a_line_for_each_change_until_it_ends(
    workspace: Workspace, job: Job, home: list[str], user_environment: dict[str, str]
) -> None:
    job_id = job("running", progress={"phase": "training", "done": 1, "total": 9, "at": 0})
    with start(user_environment, "status", job_id, "--watch", *home) as watching:
        assert watching.stdout is not None
        assert f"{job_id} finetune running training 1/9" in watching.stdout.readline()
        workspace.store.execute("UPDATE jobs SET state='succeeded', ended_at=1 WHERE id=?", job_id)
        assert "succeeded" in watching.stdout.readline()
        assert watching.wait(TIMEOUT_S) == 0


def test_a_watched_job_that_fails_is_told_by_the_exit_status(tunewright: Tunewright, job: Job, home: list[str]) -> None:
    job_id = job("failed", error=ERROR)
    watched = tunewright("status", job_id, "--watch", *home)
    assert watched.returncode == 1
    assert "failed" in watched.stdout


@pytest.mark.parametrize("command", [["status", "--watch"], ["logs", "--follow", "job-numbers-0000"]])
def test_ctrl_c_ends_a_watch_without_a_traceback(
    workspace: Workspace, job: Job, home: list[str], user_environment: dict[str, str], command: list[str]
) -> None:
    log_of(workspace, job("running"), b"begun\n")
    with start(user_environment, *command, *home) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate(timeout=TIMEOUT_S)
        assert (watching.returncode, errors) == (130, "")


def test_logs_are_whole_lines_that_cannot_steer_the_terminal(
    tunewright: Tunewright, workspace: Workspace, job: Job, home: list[str]
) -> None:
    job_id = job("succeeded")
    log_of(workspace, job_id, b"one\r\n\x1b]0;title\x07two\x1b[2J\n 10%\r 20%\nbad \xff\nlast")
    assert tunewright("logs", job_id, *home).stdout == "one\ntwo\n 10%\n 20%\nbad \ufffd\nlast\n"
    assert tunewright("logs", job_id, "--tail", 2, *home).stdout == "bad \ufffd\nlast\n"
    assert tunewright("logs", job_id, "--tail", 0, *home).stdout == ""
    silent = tunewright("logs", job("queued"), *home)
    assert silent.stdout == "" and "is empty. What became of it: tunewright status job-" in silent.stderr


def test_a_followed_log_ends_with_its_job_and_loses_nothing(
    workspace: Workspace, job: Job, home: list[str], user_environment: dict[str, str]
) -> None:
    job_id = job("running")
    path = log_of(workspace, job_id, b"old\none\n")
    with start(user_environment, "logs", job_id, "-f", "--tail", "1", *home) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "one\n"
        with path.open("ab") as log:
            log.write(b"two\nhalf")
        assert following.stdout.readline() == "two\n"
        with path.open("ab") as log:
            log.write(b" and half\nend")
        workspace.store.execute("UPDATE jobs SET state='succeeded' WHERE id=?", job_id)
        rest, errors = following.communicate(timeout=TIMEOUT_S)
        assert (rest, errors, following.returncode) == ("half and half\nend\n", "", 0)


def test_a_reader_that_has_seen_enough_ends_the_command_in_silence(
    workspace: Workspace, job: Job, home: list[str], user_environment: dict[str, str]
) -> None:
    job_id = job("succeeded")
    log_of(workspace, job_id, b"line\n" * 200_000)
    with start(user_environment, "logs", job_id, *home) as writing:
        assert writing.stdout is not None and writing.stderr is not None
        assert writing.stdout.readline() == "line\n"
        writing.stdout.close()
        assert writing.stderr.read() == ""
        assert writing.wait(TIMEOUT_S) == 1


def test_cancel_asks_a_running_job_to_stop(
    tunewright: Tunewright, workspace: Workspace, job: Job, home: list[str]
) -> None:
    job_id = job("running")
    asked = tunewright("cancel", job_id, "--discard", *home)
    assert (asked.returncode, asked.stdout) == (0, f"{job_id}: will stop at its next safe point\n")
    assert workspace.store.job(job_id)["cancel"] == "discard"
    ended = tunewright("cancel", job("failed", error=ERROR), *home)
    assert ended.returncode == 1
    assert ended.stderr.startswith("job_ended: ")


def test_resume_queues_a_job_again(
    tunewright: Tunewright, workspace: Workspace, job: Job, home: list[str], eventually: Callable[..., None]
) -> None:
    (device,) = lease.devices()
    # Held, so that the worker waits and imports nothing heavy.
    lock = lease.try_take(workspace, device)
    assert lock is not None
    try:
        job_id = job("failed", error=ERROR)
        resumed = tunewright("resume", job_id, *home)
        assert (resumed.returncode, resumed.stderr) == (0, "")
        assert resumed.stdout == f"{job_id}: queued, goes on from step 0, as it has no checkpoint\n"
        assert tunewright("cancel", job_id, *home).returncode == 0
        eventually(lambda: workspace.store.job(job_id)["state"] == "cancelled", timeout_s=TIMEOUT_S)
    finally:
        lock.release()


def test_a_home_that_cannot_be_used_is_said_with_what_looks_into_it(tunewright: Tunewright, tmp_path: Path) -> None:
    file = tmp_path / "no-folder"
    file.touch()
    for command in (["status"], ["gc"], ["logs", "job-x"]):
        refused = tunewright(*command, "--home", file)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith("home_unusable: ")
        assert refused.stderr.endswith("\nNext: tunewright doctor\n")
        assert refused.stderr.count("\n") == 2


def test_looking_takes_up_a_job_whose_worker_was_killed(
    tunewright: Tunewright, workspace: Workspace, job: Job, home: list[str]
) -> None:
    job_id = job("running", pid=2**22 + 1, cancel="keep")
    assert "cancelled" in tunewright("status", *home).stdout
    assert workspace.store.job(job_id)["state"] == "cancelled"


def test_no_command_reaches_the_old_error_form(tunewright: Tunewright, home: list[str]) -> None:
    # What agents are told to call means nothing in a shell.
    told = tunewright("resume", "job-none", *home).stderr
    assert "get_status(" not in told
    assert json.dumps("job-none") not in told

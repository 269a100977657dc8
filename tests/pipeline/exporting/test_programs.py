"""Running another program: its end is ours, and ours is its."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tunewright.pipeline.errors import Cancelled
from tunewright.pipeline.exporting import programs

START_TIMEOUT_S = 30
# Says the number of its process and of one that it started.
LONG = "sleep 600 & echo $$ $!; wait"


def started(log: Path) -> list[psutil.Process]:
    return [psutil.Process(int(pid)) for pid in log.read_text(encoding="utf-8").split()]


def test_the_status_is_the_programs_and_its_output_is_added_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert programs.run(["sh", "-c", "echo one; exit 3"], log, lambda: None) == 3
    assert programs.run(["sh", "-c", "cat; echo $WORD >&2"], log, lambda: None, env={"WORD": "two"}) == 0
    assert log.read_text(encoding="utf-8") == "one\ntwo\n"
    assert programs.last_line(log) == "two" and programs.tail(log, 3) == b"wo\n"
    assert programs.last_line(tmp_path / "none") == "it said nothing"


def test_a_program_that_is_not_there_is_a_failure_with_its_name(tmp_path: Path) -> None:
    assert programs.run(["/no/such/program"], tmp_path / "log", lambda: None) != 0
    assert "/no/such/program" in programs.last_line(tmp_path / "log")


def test_a_cancel_kills_the_program_and_what_it_started(tmp_path: Path, eventually: Callable[..., None]) -> None:
    log = tmp_path / "log"

    def cancelled() -> None:
        if log.read_text(encoding="utf-8"):
            raise Cancelled("job-x")

    with pytest.raises(Cancelled):
        programs.run(["sh", "-c", LONG], log, cancelled)
    first, *others = log.read_text(encoding="utf-8").split()
    assert not psutil.pid_exists(int(first))
    eventually(lambda: all(is_gone(int(pid)) for pid in others))


def test_a_program_that_will_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "END_TIMEOUT_S", 0.1)
    log = tmp_path / "log"

    def cancelled() -> None:
        if log.read_text(encoding="utf-8"):
            raise Cancelled("job-x")

    with pytest.raises(Cancelled):
        programs.run(["sh", "-c", "trap '' TERM; echo $$; while :; do sleep 600; done"], log, cancelled)
    assert not psutil.pid_exists(int(log.read_text(encoding="utf-8")))


def test_a_killed_process_takes_the_program_with_it(tmp_path: Path, eventually: Callable[..., None]) -> None:
    log = tmp_path / "log"
    code = (
        "import sys; from pathlib import Path; from tunewright.pipeline.exporting import programs; "
        "programs.run(['sh', '-c', sys.argv[2]], Path(sys.argv[1]), lambda: None)"
    )
    with subprocess.Popen([sys.executable, "-P", "-c", code, str(log), LONG]) as process:
        eventually(lambda: log.is_file() and log.read_text(encoding="utf-8").endswith("\n"), START_TIMEOUT_S)
        running = started(log)
        assert len(running) == 2
        process.send_signal(signal.SIGKILL)
    eventually(lambda: all(is_gone(one.pid) for one in running))


def is_gone(pid: int) -> bool:
    """Ended; where nobody collects orphans it stays as a zombie."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True

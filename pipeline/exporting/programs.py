"""Running another program to its end: output to a log, killed with its children when the job is cancelled. Light."""

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

# How soon a cancel is noticed.
POLL_S = 0.5
TAIL_BYTES = 4000


def run(
    command: Sequence[str], log: Path, check_cancelled: Callable[[], None], *, env: dict[str, str] | None = None
) -> int:
    """Runs `command`, appending its output to `log`, and returns its exit status.

    `env` goes over this process's environment. What `check_cancelled` raises kills the program and is raised.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd=log.parent,
            env={**os.environ, **(env or {})},
        )  # fmt: skip
    try:
        while True:
            try:
                return process.wait(timeout=POLL_S)
            except subprocess.TimeoutExpired:
                check_cancelled()
    finally:
        if process.poll() is None:
            # Its own session: the group is the program and whatever it started.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def last_line(log: Path) -> str:
    """The last line of a log that says something, at most 300 characters; for error messages."""
    tail = log.read_bytes()[-TAIL_BYTES:].decode("utf-8", errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"

"""Running another program to its end: output to a log, killed with its children when the job is cancelled. Light.

Guarantees: the program does not outlive the process that runs it, however that ends: what is killed in an export must
not go on writing while its next attempt does. What a program puts into process groups of its own, it must end itself.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

# How soon a cancel is noticed.
POLL_S = 0.5
TAIL_BYTES = 4000
# `sh -c LEASH sh COMMAND…`: a shell that waits for the end of our pipe, which the kernel closes when we die, beside the
# command itself, which takes the shell's place and so its process number and exit status.
LEASH = 'exec 3<&0; { trap "" TERM; read -r _ <&3; kill -TERM 0; sleep 3; kill -KILL 0; } & exec "$@" 3<&- </dev/null'
# ninja, asked to end, ends its compilers too, which it keeps in process groups of their own.
END_TIMEOUT_S = 3
PIP = (sys.executable, "-P", "-m", "pip", "--no-input", "--disable-pip-version-check")


def run(
    command: Sequence[str], log: Path, check_cancelled: Callable[[], None], *, env: dict[str, str] | None = None
) -> int:
    """Runs `command`, appending its output to `log`, and returns its exit status.

    `env` goes over this process's environment. What `check_cancelled` raises kills the program and is raised.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", LEASH, "sh", *command], stdin=subprocess.PIPE, stdout=output, stderr=output,
            start_new_session=True, cwd=log.parent, env={**os.environ, **(env or {})},
        )  # fmt: skip
    try:
        while True:
            try:
                return process.wait(timeout=POLL_S)
            except subprocess.TimeoutExpired:
                check_cancelled()
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its own session: the group is the program, whatever it started, and the shell that waits beside it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin:
        process.stdin.close()


def last_line(log: Path) -> str:
    """The last line of a log that says something, at most 300 characters; for error messages."""
    lines = [line.strip() for line in tail(log).decode("utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def tail(log: Path, size_bytes: int = TAIL_BYTES) -> bytes:
    """The last `size_bytes` of a log; nothing where there is none yet."""
    if not log.is_file():
        return b""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - size_bytes))
        return file.read()

"""Starting processes that outlive the server, and telling whether one still lives."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

# psutil derives a start time from the boot time, which may move by some hundredths when the clock is adjusted.
START_TIME_TOLERANCE_S = 1.0

_children: list[subprocess.Popen[bytes]] = []


def start_detached(module: str, arguments: Sequence[str], log: Path, *, env: dict[str, str] | None = None) -> int:
    """Starts `python -P -m module arguments` in its own session; returns its pid.

    Its output is appended to `log`; it inherits none of this process's standard streams, so the MCP wire stays closed
    to it, and a signal to this process's group does not reach it.
    """
    # Children that have ended are collected here, one by one: waiting for any child would steal the exit status that
    # another thread's subprocess.run waits for.
    _children[:] = [child for child in _children if child.poll() is None]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, close_fds=True,
            cwd=log.parent, env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
        )  # fmt: skip
    _children.append(process)
    return process.pid


def start_time(pid: int) -> float | None:
    """When process `pid` started, seconds since the epoch; None where there is none, or only a zombie."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def is_alive(pid: int | None, started: float | None) -> bool:
    """Whether the process that had `pid` and started at `started` still lives; a reused pid does not count."""
    if pid is None or started is None:
        return False
    now = start_time(pid)
    return now is not None and abs(now - started) < START_TIME_TOLERANCE_S

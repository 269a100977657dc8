"""The console script as a person runs it, in a home folder and a data home of its own; jobs in the store to look at."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tunewright.pipeline.workspace import Workspace

CONSOLE = str(Path(sys.executable).with_name("tunewright"))
TIMEOUT_S = 60
# What would lead the commands to files or services of whoever runs the tests.
CALLERS_OWN = ("TUNEWRIGHT_HOME", "TUNEWRIGHT_ALLOW_DIRS", "CLAUDE_CONFIG_DIR", "CODEX_HOME", "XDG_CONFIG_HOME", "UV")

Finished = subprocess.CompletedProcess[str]
Tunewright = Callable[..., Finished]


@pytest.fixture
def user_home(tmp_path: Path) -> Path:
    folder = tmp_path / "user"
    folder.mkdir()
    return folder


@pytest.fixture
def user_environment(user_home: Path, tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in CALLERS_OWN}
    # Neither the caller's claude, nor their caches, nor their token.
    empty = tmp_path / "bin"
    empty.mkdir()
    own = {"HOME": str(user_home), "PATH": f"{empty}:/usr/bin:/bin", "HF_HOME": str(tmp_path / "hf"),
           "TUNEWRIGHT_CACHE": str(tmp_path / "cache"), "HF_TOKEN": ""}  # fmt: skip
    return {**kept, **own}


@pytest.fixture
def tunewright(user_environment: dict[str, str], tmp_path: Path) -> Tunewright:
    """`tunewright("status", JOB, cwd=…, VARIABLE="…")`: the command's exit status, output and errors."""

    def run(*arguments: object, cwd: Path = tmp_path, **more: str) -> Finished:
        return subprocess.run(
            [CONSOLE, *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8",
            timeout=TIMEOUT_S, cwd=cwd, env={**user_environment, **more},
        )  # fmt: skip

    return run


@pytest.fixture
def job(workspace: Workspace) -> Callable[..., str]:
    """`job(state, kind="finetune", age_s=9, pid=None, **columns)`: a job in the store; returns its id.

    An active one has this test's process for its worker, so that nobody takes it for abandoned.
    """

    def insert(state: str, kind: str = "finetune", name: str = "numbers", age_s: float = 9, **columns: Any) -> str:
        job_id = f"job-{name}-{len(workspace.store.rows('SELECT id FROM jobs')):04}"
        folder = workspace.home.jobs / job_id
        folder.mkdir()
        (folder / "spec.json").write_text("{}", encoding="utf-8")
        now = time.time()
        row: dict[str, Any] = {
            "id": job_id, "kind": kind, "state": state, "needs_device": 1, "spec": "{}", "created_at": now - age_s,
            "started_at": now - age_s + 1, "pid": os.getpid(), "pid_started": psutil.Process().create_time(),
            "ended_at": None if state in ("queued", "running") else now - age_s + 2,
        }  # fmt: skip
        row |= {key: json.dumps(value) if isinstance(value, dict) else value for key, value in columns.items()}
        sql = f"INSERT INTO jobs({','.join(row)}) VALUES ({','.join('?' * len(row))})"
        workspace.store.execute(sql, *row.values())
        return job_id

    return insert

"""The command line as a person has it, in a home folder and a data home of its own; jobs in the store to look at."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tunewright.pipeline.workspace import Workspace

CONSOLE = str(Path(sys.executable).with_name("tunewright"))
TIMEOUT_S = 60
# What would lead the commands to files or services of whoever runs the tests.
CALLERS_OWN = ("TUNEWRIGHT_HOME", "TUNEWRIGHT_ALLOW_DIRS", "CLAUDE_CONFIG_DIR", "CODEX_HOME", "XDG_CONFIG_HOME", "UV")

# Runs each command in a fork, which saves the imports and the taking down of what was imported: ten times what most
# commands do.
FORKS = """
import json, multiprocessing, os, signal, sys
import psutil, rich.console, rich.table
from tunewright import server
from tunewright.pipeline.commandline import doctor, gc, install, jobs, parser, reach_checks
from tunewright.pipeline.publishing import ollama_client
def run(argv, cwd, environment, output, errors, timeout_s):
    signal.alarm(timeout_s)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = argv
    for number, file, mode in ((0, os.devnull, os.O_RDONLY), (1, output, os.O_WRONLY), (2, errors, os.O_WRONLY)):
        os.dup2(os.open(file, mode | os.O_CREAT | os.O_TRUNC), number)
    server.main()
for line in sys.stdin:
    command = multiprocessing.get_context("fork").Process(target=run, args=json.loads(line))
    command.start()
    command.join()
    print(command.exitcode, flush=True)
"""

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


@pytest.fixture(scope="session")
def forks() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-P", "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        yield process


@pytest.fixture
def tunewright(forks: subprocess.Popen[str], user_environment: dict[str, str], tmp_path: Path) -> Tunewright:
    """`tunewright("status", JOB, cwd=…, VARIABLE="…")`: the command's exit status, output and errors."""

    def run(*arguments: object, cwd: Path = tmp_path, **more: str) -> Finished:
        command = [CONSOLE, *map(str, arguments)]
        output, errors = (tmp_path / name for name in (".output", ".errors"))
        assert forks.stdin and forks.stdout
        asked = [command, str(cwd), {**user_environment, **more}, str(output), str(errors), TIMEOUT_S]
        forks.stdin.write(json.dumps(asked) + "\n")
        forks.stdin.flush()
        status = int(forks.stdout.readline())
        return Finished(command, status, output.read_text(encoding="utf-8"), errors.read_text(encoding="utf-8"))

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

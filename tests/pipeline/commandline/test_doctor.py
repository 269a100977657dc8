"""The doctor on homes, hosts and services in every condition; by the console script."""

import json
import os
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from standins.hub_server import HubStandIn
from standins.ollama_server import OllamaStandIn

from tunewright.pipeline import lease
from tunewright.pipeline.commandline import machine_checks
from tunewright.pipeline.workspace import Workspace

Tunewright = Callable[..., subprocess.CompletedProcess[str]]
Job = Callable[..., str]
Findings = dict[str, list[tuple[str, str, str]]]
Examine = Callable[..., tuple[int, Findings]]
TOKEN = "hf_" + "OnlyInThisTest" * 3


@pytest.fixture
def examine(tunewright: Tunewright, workspace: Workspace) -> Examine:
    """`status, findings = examine(…)`: of each name the (level, what, mend) of its lines."""

    def run(home: Path = workspace.home.root, **environment: str) -> tuple[int, Findings]:
        done = tunewright("doctor", "--json", "--home", home, **environment)
        assert done.stderr == ""
        found: Findings = {}
        for line in json.loads(done.stdout):
            assert (line["mend"] == "") == (line["level"] == "ok")
            found.setdefault(line["name"], []).append((line["level"], line["what"], line["mend"]))
        return done.returncode, found

    return run


def test_every_part_has_a_line_and_a_fit_machine_has_no_failure(examine: Examine) -> None:
    status, found = examine()
    assert status == 0
    parts = """python, packages, gpu, torch, unsloth, gguf converter, gguf quantizer, gguf runtime, disk, home,
        database, jobs, lease, leftovers, ollama, hub, hosts"""
    assert set(found) == {part.strip() for part in parts.split(",")}
    for name in ("python", "packages", "unsloth", "home", "database", "jobs", "lease"):
        assert [level for level, _, _ in found[name]] == ["ok"], found[name]
    for name in ("gpu", "ollama", "hub", "hosts"):
        assert found[name][0][0] == "warning", found[name]


def test_people_get_a_line_for_each_and_how_to_mend_it(tunewright: Tunewright, workspace: Workspace) -> None:
    shown = tunewright("--home", workspace.home.root, "doctor")
    lines = shown.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("warning  ollama: no answer"))
    assert lines[at + 1].strip().startswith("→ ollama serve")
    assert "\x1b" not in shown.stdout


def test_a_home_that_is_not_there_is_no_fault_and_is_not_made(examine: Examine, tmp_path: Path) -> None:
    status, found = examine(tmp_path / "new" / "home")
    assert status == 0
    assert found["home"][0][0] == "ok"
    assert "database" not in found
    assert not (tmp_path / "new").exists()


def test_a_folder_of_somebody_else_is_no_home(examine: Examine, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter.txt").touch()
    status, found = examine(tmp_path / "letters")
    assert status == 1
    assert found["home"][0][0] == "failure"


def test_a_home_that_others_can_read_is_said(examine: Examine, workspace: Workspace) -> None:
    workspace.home.root.chmod(0o755)
    status, found = examine()
    assert status == 0
    assert found["home"][0][2] == f"chmod 700 {workspace.home.root}"


def test_a_damaged_database_fails_and_is_left_alone(examine: Examine, workspace: Workspace) -> None:
    workspace.store.close()
    workspace.home.database.write_bytes(b"no database " * 1000)
    status, found = examine()
    assert status == 1
    assert found["database"][0][0] == "failure"
    assert "jobs" not in found
    assert workspace.home.database.read_bytes() == b"no database " * 1000


def test_a_database_of_a_newer_tunewright_fails_and_is_left_alone(examine: Examine, workspace: Workspace) -> None:
    workspace.store.execute("PRAGMA user_version=999")
    status, found = examine()
    assert status == 1
    assert "999" in found["database"][0][1]
    workspace.store.close()
    with sqlite3.connect(workspace.home.database) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (999,)
    connection.close()


def test_stuck_jobs_are_named_with_the_command_that_helps(examine: Examine, workspace: Workspace, job: Job) -> None:
    dead = job("running", pid=2**22 + 1)
    silent = job("running", progress={"phase": "training", "done": 1, "total": 2, "at": 1000.0})
    interrupted = job("interrupted")
    job("failed")
    status, found = examine()
    assert status == 0
    told = {what.split()[0]: (level, mend) for level, what, mend in found["jobs"]}
    assert set(told) == {dead, silent, interrupted}
    assert {level for level, _ in told.values()} == {"warning"}
    assert told[dead][1] == f"tunewright status {dead}"
    assert f"tunewright cancel {silent}" in told[silent][1]
    assert told[interrupted][1] == f"tunewright resume {interrupted}"
    # The doctor looks; it takes up nothing.
    assert workspace.store.job(dead)["state"] == "running"


def test_a_lease_held_by_a_stranger_is_named_and_a_jobs_is_not(
    examine: Examine, workspace: Workspace, job: Job
) -> None:
    (device,) = lease.devices()
    lock = lease.try_take(workspace, device)
    assert lock is not None
    try:
        level, what, _ = examine()[1]["lease"][0]
        assert level == "warning"
        assert f"process {os.getpid()} (" in what
        job("running")  # this very process is its worker
        assert examine()[1]["lease"][0] == ("ok", "cpu in use", "")
    finally:
        lock.release()


def test_hosts_are_found_with_programs_that_are_there_gone_or_files_that_are_broken(
    tunewright: Tunewright, examine: Examine, user_home: Path
) -> None:
    assert tunewright("install", "codex").returncode == 0
    status, found = examine()
    assert status == 0
    assert found["host codex"][0][0] == "ok"
    assert "hosts" not in found
    (user_home / ".cursor").mkdir()
    (user_home / ".cursor" / "mcp.json").write_text("{", encoding="utf-8")
    (user_home / ".claude.json").write_text(
        '{"mcpServers": {"tunewright": {"command": "/gone/tunewright"}}}', encoding="utf-8"
    )
    status, found = examine()
    assert status == 1
    assert found["host cursor"][0][0] == "warning"
    level, what, mend = found["host claude-code"][0]
    assert (level, mend) == ("failure", "tunewright install claude-code --force")
    assert "/gone/tunewright" in what


def test_the_hub_and_its_token_are_tried(examine: Examine) -> None:
    with HubStandIn(token=TOKEN) as hub:
        _, found = examine(HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
        assert found["hub"][0][0] == "ok"
        status, found = examine(HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN[:-1])
        assert status == 1
        assert found["hub"][0][:2] == ("failure", f"{hub.url} refuses the token")
    _, found = examine(HF_HUB_OFFLINE="1")
    assert found["hub"][0] == ("ok", "not used: HF_HUB_OFFLINE is set", "")


def test_neither_token_nor_password_is_ever_shown(tunewright: Tunewright, workspace: Workspace) -> None:
    secrets = {"HF_TOKEN": TOKEN, "HF_ENDPOINT": "http://me:S3cret@127.0.0.1:9",
               "OLLAMA_HOST": "http://me:S3cret@127.0.0.1:9"}  # fmt: skip
    shown = tunewright("doctor", "--home", workspace.home.root, **secrets)
    assert TOKEN not in shown.stdout + shown.stderr
    assert "S3cret" not in shown.stdout + shown.stderr


def test_ollama_is_asked_for_its_version(examine: Examine) -> None:
    with OllamaStandIn() as ollama:
        _, found = examine(OLLAMA_HOST=ollama.url)
        assert found["ollama"][0][0] == "ok"
        assert ollama.url in found["ollama"][0][1]


def test_packages_outside_their_bounds_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["rich>=99", "no-such-package", "anyio>=4", 'nothing>=1; extra == "x"']
    monkeypatch.setattr(machine_checks, "requires", lambda _: asked)
    python, packages = machine_checks.software()
    assert python.level == "ok"
    assert packages.level == "failure"
    assert "(needs >=99)" in packages.what
    assert "no-such-package is missing" in packages.what
    assert "anyio" not in packages.what
    assert "nothing" not in packages.what

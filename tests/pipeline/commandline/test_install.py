"""Connecting every host: its file missing, with other servers in it, broken; twice; with another entry there."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline.commandline import hosts, jsonc
from tunewright.pipeline.commandline.hosts import HOSTS

CONSOLE = str(Path(sys.executable).with_name("tunewright"))
TIMEOUT_S = 60
Tunewright = Callable[..., subprocess.CompletedProcess[str]]

USER_FILES = {
    "claude-code": ".claude.json",
    "claude-desktop": ".config/Claude/claude_desktop_config.json",
    "cursor": ".cursor/mcp.json",
    "vscode": ".config/Code/User/mcp.json",
    "codex": ".codex/config.toml",
}
PROJECT_FILES = {
    "claude-code": ".mcp.json",
    "cursor": ".cursor/mcp.json",
    "vscode": ".vscode/mcp.json",
    "codex": ".codex/config.toml",
}
EVERY_HOST = pytest.mark.parametrize("host", USER_FILES)
OTHERS_TOML = (
    '# mine\nmodel = "gpt"  # best\n\n[mcp_servers.other]\ncommand = "node"\n\n[projects."/a"]\ntrust = "yes"\n'
)


def held(file: Path) -> dict[str, Any]:
    text = file.read_text(encoding="utf-8")
    return tomllib.loads(text) if file.suffix == ".toml" else jsonc.loads(text)


def entry_in(file: Path, host: str) -> dict[str, Any]:
    return held(file)[HOSTS[host].key]["tunewright"]


def others(host: str) -> str:
    """A file of the host with a server and settings of somebody else's."""
    if host == "codex":
        return OTHERS_TOML
    return (
        f'{{\n  // mine\n  "theme": "dark",\n  "{HOSTS[host].key}": {{\n    "other": {{"command": "node"}}\n  }}\n}}\n'
    )


def put(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


@EVERY_HOST
def test_a_host_without_a_file_gets_one_with_the_entry(tunewright: Tunewright, user_home: Path, host: str) -> None:
    done = tunewright("install", host)
    assert (done.returncode, done.stderr) == (0, "")
    file = user_home / USER_FILES[host]
    assert str(file) in done.stdout
    entry = entry_in(file, host)
    assert (entry["command"], entry["args"]) == (CONSOLE, [])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir() if path.is_file()] == [file.name]


@EVERY_HOST
def test_everything_else_in_the_file_stays_and_the_old_one_is_kept(
    tunewright: Tunewright, user_home: Path, host: str
) -> None:
    file = user_home / USER_FILES[host]
    put(file, others(host))
    file.chmod(0o640)
    assert tunewright("install", host).returncode == 0
    entry = entry_in(file, host)
    before, after = (tomllib.loads if host == "codex" else jsonc.loads)(others(host)), held(file)
    before[HOSTS[host].key]["tunewright"] = entry
    assert after == before
    assert ("# mine" if host == "codex" else "// mine") in file.read_text(encoding="utf-8")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    [kept] = file.parent.glob("*.bak")
    assert kept.read_text(encoding="utf-8") == others(host)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o640


@EVERY_HOST
def test_twice_changes_nothing(tunewright: Tunewright, user_home: Path, host: str) -> None:
    file = user_home / USER_FILES[host]
    put(file, others(host))
    assert tunewright("install", host).returncode == 0
    first = file.read_bytes()
    again = tunewright("install", host)
    assert again.returncode == 0
    assert "already" in again.stdout
    assert file.read_bytes() == first
    assert len(list(file.parent.glob("*.bak"))) == 1


@EVERY_HOST
def test_a_broken_file_is_refused_and_left_alone(tunewright: Tunewright, user_home: Path, host: str) -> None:
    file = user_home / USER_FILES[host]
    put(file, '{"mcpServers": {"other": ')
    refused = tunewright("install", host, "--force")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"host_file_broken: {file} is not valid: ")
    assert "Traceback" not in refused.stderr
    assert file.read_text(encoding="utf-8") == '{"mcpServers": {"other": '
    assert [path.name for path in file.parent.iterdir() if path.is_file()] == [file.name]


@EVERY_HOST
def test_another_entry_is_shown_and_replaced_only_by_force(tunewright: Tunewright, user_home: Path, host: str) -> None:
    file = user_home / USER_FILES[host]
    put(file, others(host))
    assert tunewright("install", host, "--home", "/elsewhere").returncode == 0
    old = file.read_text(encoding="utf-8")
    refused = tunewright("install", host)
    assert refused.returncode == 1
    assert refused.stderr.startswith("other_entry: ")
    assert "/elsewhere" in refused.stderr
    assert file.read_text(encoding="utf-8") == old
    assert tunewright("install", host, "--force").returncode == 0
    assert entry_in(file, host)["args"] == []
    assert "other" in held(file)[HOSTS[host].key]


@EVERY_HOST
def test_a_dry_run_shows_the_entry_and_writes_nothing(tunewright: Tunewright, user_home: Path, host: str) -> None:
    shown = tunewright("install", host, "--dry-run")
    assert shown.returncode == 0
    assert str(user_home / USER_FILES[host]) in shown.stdout
    snippet = shown.stdout.split("\n", 1)[1]
    parsed = tomllib.loads(snippet) if host == "codex" else json.loads(snippet)
    assert parsed[HOSTS[host].key]["tunewright"]["command"] == CONSOLE
    assert list(user_home.iterdir()) == []


@pytest.mark.parametrize("host", PROJECT_FILES)
def test_a_projects_entry_goes_into_the_project(
    tunewright: Tunewright, user_home: Path, tmp_path: Path, host: str
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    assert tunewright("install", host, "--scope", "project", cwd=project).returncode == 0
    assert entry_in(project / PROJECT_FILES[host], host)["command"] == CONSOLE
    assert list(user_home.iterdir()) == []


def test_claude_desktop_has_no_projects_and_says_so(tunewright: Tunewright) -> None:
    refused = tunewright("install", "claude-desktop", "--scope", "project")
    assert refused.returncode == 1
    assert refused.stderr.startswith("no_such_scope: Claude Desktop")


def test_the_entry_says_what_the_host_would_not_know(tunewright: Tunewright, tmp_path: Path) -> None:
    arguments = ("--home", "data home", "install", "generic", "--allow-dir", "~/x")
    shown = tunewright(*arguments, TUNEWRIGHT_ALLOW_DIRS="/named", TUNEWRIGHT_HOME="/not/this")
    entry = json.loads(shown.stdout)["mcpServers"]["tunewright"]
    allowed = ["--allow-dir", "/named", "--allow-dir", f"{tmp_path}/user/x"]
    assert entry["args"] == ["--home", f"{tmp_path}/data home", *allowed]
    entry = json.loads(tunewright("install", "generic", TUNEWRIGHT_HOME="/named").stdout)["mcpServers"]["tunewright"]
    assert entry["args"] == ["--home", "/named"]


def test_the_entry_as_it_was_written_starts_a_server(
    tunewright: Tunewright, user_home: Path, tmp_path: Path, user_environment: dict[str, str]
) -> None:
    assert tunewright("install", "cursor", "--home", tmp_path / "data", "--allow-dir", tmp_path).returncode == 0
    entry = entry_in(user_home / ".cursor/mcp.json", "cursor")
    asked = {
        "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "0"},
        },
    }  # fmt: skip
    served = subprocess.run(
        [entry["command"], *entry["args"]], input=json.dumps(asked) + "\n", capture_output=True, encoding="utf-8",
        timeout=TIMEOUT_S, cwd="/", env={**user_environment, "PATH": "/nowhere"},
    )  # fmt: skip
    assert json.loads(served.stdout.splitlines()[0])["result"]["serverInfo"]["name"] == "tunewright"
    assert (tmp_path / "data" / "tunewright.db").is_file()


def test_secrets_of_another_entry_are_not_shown(tunewright: Tunewright, user_home: Path) -> None:
    put(
        user_home / ".cursor/mcp.json",
        '{"mcpServers": {"tunewright": {"command": "x", "env": {"HF_TOKEN": "hf_abc"}}}}',
    )
    refused = tunewright("install", "cursor")
    assert refused.returncode == 1
    assert "HF_TOKEN" in refused.stderr
    assert "hf_abc" not in refused.stdout + refused.stderr


def test_a_file_that_is_a_link_stays_one(tunewright: Tunewright, user_home: Path) -> None:
    real = user_home / "dotfiles" / "mcp.json"
    put(real, others("cursor"))
    (user_home / ".cursor").mkdir()
    (user_home / ".cursor/mcp.json").symlink_to(real)
    assert tunewright("install", "cursor").returncode == 0
    assert (user_home / ".cursor/mcp.json").is_symlink()
    assert entry_in(real, "cursor")["command"] == CONSOLE


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_said(tunewright: Tunewright, user_home: Path) -> None:
    (user_home / ".cursor").mkdir(mode=0o500)
    refused = tunewright("install", "cursor")
    assert refused.returncode == 1
    assert refused.stderr.startswith("host_file_unwritable: ")


CLAUDE = """#!/bin/sh
printf '%s\\n' "$@" >> "$HOME/called"
exit ${CLAUDE_STATUS:-0}
"""


@pytest.fixture
def claude(tmp_path: Path, user_environment: dict[str, str]) -> None:
    """A program of that name on the PATH, which writes down how it is called."""
    program = tmp_path / "bin" / "claude"
    program.write_text(CLAUDE, encoding="utf-8")
    program.chmod(0o755)


@pytest.mark.usefixtures("claude")
def test_claude_code_is_asked_to_write_its_own_file(tunewright: Tunewright, user_home: Path) -> None:
    shown = tunewright("install", "claude-code", "--dry-run")
    assert f"mcp add --scope user tunewright -- {CONSOLE}" in shown.stdout
    assert not (user_home / "called").exists()
    assert tunewright("install", "claude-code", "--home", "/data").returncode == 0
    called = (user_home / "called").read_text(encoding="utf-8").splitlines()
    assert called == ["mcp", "add", "--scope", "user", "tunewright", "--", CONSOLE, "--home", "/data"]
    assert not (user_home / ".claude.json").exists()


@pytest.mark.usefixtures("claude")
def test_by_force_claude_code_removes_the_other_entry_first(tunewright: Tunewright, user_home: Path) -> None:
    put(user_home / ".claude.json", '{"mcpServers": {"tunewright": {"type": "stdio", "command": "old", "args": []}}}')
    assert tunewright("install", "claude-code", "--force").returncode == 0
    called = (user_home / "called").read_text(encoding="utf-8").splitlines()
    assert called[:6] == ["mcp", "remove", "--scope", "user", "tunewright", "mcp"]


@pytest.mark.usefixtures("claude")
def test_what_claude_code_refuses_is_said(tunewright: Tunewright) -> None:
    refused = tunewright("install", "claude-code", CLAUDE_STATUS="3")
    assert refused.returncode == 1
    assert refused.stderr.startswith("claude_failed: ")


@pytest.mark.skipif(shutil.which("claude") is None, reason="no claude here")
def test_the_real_claude_code_takes_the_entry(tunewright: Tunewright, user_home: Path) -> None:
    path = os.environ["PATH"]
    assert tunewright("install", "claude-code", PATH=path).returncode == 0
    assert entry_in(user_home / ".claude.json", "claude-code")["command"] == CONSOLE
    assert "already" in tunewright("install", "claude-code", PATH=path).stdout


@pytest.mark.parametrize(
    ("platform", "host", "expected"),
    [
        ("darwin", "claude-desktop", "Library/Application Support/Claude/claude_desktop_config.json"),
        ("darwin", "vscode", "Library/Application Support/Code/User/mcp.json"),
        ("win32", "claude-desktop", "AppData/Roaming/Claude/claude_desktop_config.json"),
        ("win32", "vscode", "AppData/Roaming/Code/User/mcp.json"),
        ("linux", "vscode", ".config/Code/User/mcp.json"),
        ("darwin", "codex", ".codex/config.toml"),
    ],
)
def test_each_system_has_its_own_places(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, platform: str, host: str, expected: str
) -> None:
    for variable in ("APPDATA", "XDG_CONFIG_HOME", "CODEX_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hosts.config_file(HOSTS[host], "user", folder=tmp_path, platform=platform) == tmp_path / expected


def test_from_uvx_it_is_uvx_that_the_host_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache, uvx = tmp_path / "cache", tmp_path / "bin" / "uvx"
    put(cache / "CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55")
    put(uvx, "")
    monkeypatch.setattr(sys, "prefix", str(cache / "archive-v0" / "abc"))
    monkeypatch.setenv("UV", str(uvx.with_name("uv")))
    command = hosts.launch_command()
    # Installed from this clone, so the clone is what uvx must be given.
    assert command == [str(uvx), "--from", str(Path(__file__).parents[3]), "tunewright"]
    monkeypatch.delenv("UV")
    with pytest.raises(RuntimeError, match="no_lasting_program"):
        hosts.launch_command()

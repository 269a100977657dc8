"""What CI makes of the official conformance suite: its verdict, its data file, the relay, npm out of reach."""

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]
CI = REPOSITORY / ".ci"
TIMEOUT_S = 60


def load(name: str) -> ModuleType:
    """A module of `.ci/conformance`, which is no package."""
    spec = importlib.util.spec_from_file_location(f"conformance_{name}", CI / "conformance" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


verdict, relay = load("verdict"), load("relay")
EXPECTED = verdict.Expected(
    frozenset({"ping", "stateless"}), frozenset({"audio"}), frozenset({"text"}), frozenset({"stateless:excused"})
)


def results(folder: Path, **scenarios: list[tuple[str, str]]) -> dict[str, Any]:
    """What `verdict.read` makes of results as the suite writes them: checks and how they ended, by scenario."""
    for name, checks in scenarios.items():
        at = folder / f"server-{name}-2026-11-22T01-33-24-249Z"
        at.mkdir()
        written = [{"id": check, "status": status, "description": f"about {check}"} for check, status in checks]
        (at / "checks.json").write_text(json.dumps(written), encoding="utf-8")
    return verdict.read(folder)


def test_a_run_as_expected_surprises_nobody(tmp_path: Path) -> None:
    found = results(
        tmp_path, ping=[("ping", "SUCCESS"), ("wire-schema-valid", "SUCCESS"), ("more", "INFO"), ("rare", "SKIPPED")],
        stateless=[("discover", "SUCCESS"), ("excused", "FAILURE")],
        audio=[("audio", "FAILURE"), ("wire-schema-valid", "SUCCESS")],
        text=[("text", "SUCCESS"), ("advice", "WARNING")],
    )  # fmt: skip
    assert verdict.surprises(found, EXPECTED) == []
    assert verdict.never_run([found], EXPECTED) == []


@pytest.mark.parametrize(
    ("name", "checks", "surprise"),
    [
        ("ping", [("ping", "FAILURE")], "ping:ping fails: FAILURE: about ping"),
        ("ping", [("ping", "SUCCESS"), ("advice", "WARNING")], "ping:advice fails: WARNING"),
        ("ping", [("ping", "SUCCESS"), ("ping", "FAILURE"), ("ping", "SUCCESS")], "ping:ping fails"),
        ("ping", [("ping", "SKIPPED")], "ping: applies, and nothing of it was checked"),
        ("stateless", [("a", "SUCCESS"), ("excused", "SUCCESS")], "stateless:excused fails no more"),
        ("stateless", [("a", "SUCCESS")], "stateless:excused fails no more"),
        ("stateless", [("a", "FAILURE"), ("b", "SUCCESS"), ("excused", "FAILURE")], "stateless:a fails"),
        ("audio", [("audio", "SUCCESS"), ("wire-schema-valid", "SUCCESS")], "audio: passes, and"),
        ("audio", [("audio", "FAILURE"), ("wire-schema-valid", "FAILURE")], "audio:wire-schema-valid fails"),
        ("text", [("text", "FAILURE")], "text: fails, and so says something: FAILURE: about text"),
        ("new", [("new", "SUCCESS")], "new: scenarios.toml does not say whether it applies"),
    ],
)
def test_whatever_is_not_as_the_file_says_is_a_surprise(
    name: str, checks: list[tuple[str, str]], surprise: str, tmp_path: Path
) -> None:
    found = verdict.surprises(results(tmp_path, **{name: checks}), EXPECTED)
    assert any(line.startswith(surprise) for line in found), found


def test_a_scenario_that_no_run_held_is_a_surprise(tmp_path: Path) -> None:
    found = results(tmp_path, ping=[("ping", "SUCCESS")], text=[("text", "SUCCESS")])
    assert [line.partition(":")[0] for line in verdict.never_run([found, {}], EXPECTED)] == ["audio", "stateless"]


def test_a_folder_that_is_none_of_the_suites_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "renamed").mkdir()
    (tmp_path / "renamed" / "checks.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="renamed"):
        verdict.read(tmp_path)


def test_every_scenario_stands_in_one_list_and_every_exception_has_its_reason(tmp_path: Path) -> None:
    path = CI / "conformance" / "scenarios.toml"
    expected = verdict.Expected.read(path)
    assert {"tools-list", "server-stateless", "server-initialize", "http-header-validation"} <= expected.apply
    text = path.read_text(encoding="utf-8")
    assert text.count("\n[[") == text.count('\nwhy = "')
    for table, key, name in (("do_not_apply", "scenarios", "ping"), ("excused", "checks", "tools-call-audio:some")):
        more = tmp_path / "scenarios.toml"
        more.write_text(f'{text}\n[[{table}]]\nwhy = "x"\n{key} = ["{name}"]\n', encoding="utf-8")
        with pytest.raises(ValueError, match=name):
            verdict.Expected.read(more)


def test_every_test_that_the_reasons_name_is_there() -> None:
    text = (CI / "conformance" / "scenarios.toml").read_text(encoding="utf-8")
    named = [word.rstrip('."') for word in text.split() if word.startswith("tests/")]
    assert named
    assert [name for name in named if not (REPOSITORY / name).is_file()] == []


# The relay

REQUEST = b"POST /mcp?a=b HTTP/1.1\r\nHost: evil.example\r\nConnection: keep-alive\r\nX-Odd:   spaced  \r\n\r\nbody"


@pytest.mark.anyio
async def test_the_relay_adds_the_token_and_passes_the_rest_as_it_comes() -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    has_left = asyncio.Event()

    async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await heard.put(await reader.readuntil(b"body"))
        writer.write(b"first")
        await writer.drain()
        assert await reader.read() == b""  # until the client hangs up
        has_left.set()
        writer.close()

    async with asyncio.timeout(TIMEOUT_S), await asyncio.start_server(upstream, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with relay.adding_token(port, "secret") as relayed:
            reader, writer = await asyncio.open_connection("127.0.0.1", relayed)
            writer.write(REQUEST)
            head, _, body = (await heard.get()).partition(b"\r\n\r\n")
            lines = head.split(b"\r\n")
            assert lines[0] == b"POST /mcp?a=b HTTP/1.1"
            assert {b"Authorization: Bearer secret", b"Connection: close", b"Host: evil.example"} <= set(lines)
            assert b"X-Odd:   spaced  " in lines and b"Connection: keep-alive" not in lines
            assert body == b"body"
            # While the answer has no end yet.
            assert await reader.readexactly(5) == b"first"
            writer.close()
            await has_left.wait()


# Packages that cannot be had


def test_without_npms_registry_the_command_fails_and_says_so(tmp_path: Path) -> None:
    pins = tmp_path / "package.json"
    pins.write_text('{"private": true, "dependencies": {"@anthropic-ai/mcpb": "2.1.2"}}', encoding="utf-8")
    nowhere = {"NPM_CONFIG_REGISTRY": "http://127.0.0.1:9", "NPM_CONFIG_FETCH_RETRIES": "0"}
    finished = subprocess.run(
        [sys.executable, CI / "packaging" / "node.py", tmp_path, "mcpb", "--version"], capture_output=True,
        encoding="utf-8", timeout=TIMEOUT_S, env={**os.environ, **nowhere},
    )  # fmt: skip
    assert finished.returncode == 1
    assert finished.stderr.startswith("npm cannot install") and "Nothing was checked." in finished.stderr
    assert list((REPOSITORY / ".cache" / "node").glob(f"{tmp_path.name}-*")) == []

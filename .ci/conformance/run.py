"""The official conformance suite and the inspector's strict listing against this server over HTTP, in both eras.

`python .ci/conformance/run.py` starts `tunewright serve --http` on a free port, with a token and a home of its own, and
ends with 1 where anything is not as `scenarios.toml` says. Needs the npm registry once (`../packaging/node.py`).
Guarantees that no process is left behind, and that the caller's home is not touched.
"""

import asyncio
import json
import os
import re
import signal
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType

from relay import adding_token
from verdict import Expected, Scenario, never_run, read, surprises

HERE = Path(__file__).parent
NODE = (sys.executable, str(HERE.parent / "packaging" / "node.py"), str(HERE))
INSTALL_TIMEOUT_S, RUN_TIMEOUT_S, STOP_S = 700, 300, 10
# The handshake's revisions, then the stateless one. What a revision requires includes its extensions; the suite has no
# such set for the oldest.
RUNS = {
    "2025-06-18": ("--suite", "all", "--spec-version", "2025-06-18"),
    "2025-11-25": ("--requirements", "2025-11-25"),
    "2026-07-28": ("--requirements", "2026-07-28"),
}
ERAS = ("legacy", "modern")
LISTENS = re.compile(r"serves http://127\.0\.0\.1:(\d+)/mcp\.")
SUMMARY = re.compile(r"^[✓✗] (\S+): \d+ passed, \d+ failed", re.MULTILINE)


class Failed(Exception):
    """Something could not be run at all: nothing can be said of the server."""


async def output(*command: str, timeout_s: float, cwd: Path, may_fail: bool = False) -> tuple[str, str]:
    """What a program wrote on stdout and stderr. Raises Failed where it fails, unless it may, or takes too long.

    Its HOME is `cwd`, where the inspector keeps a catalogue; npm has to find the caller's `.npmrc`.
    """
    env = {**os.environ, "NPM_CONFIG_USERCONFIG": str(Path.home() / ".npmrc"), "HOME": str(cwd)}
    process = await asyncio.create_subprocess_exec(
        *command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, cwd=cwd, env=env, start_new_session=True
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = (text.decode() for text in await process.communicate())
    except TimeoutError:
        raise Failed(f"{' '.join(command[2:5])} … did not end within {timeout_s} s") from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode != 0 and not may_fail:
        raise Failed(f"{' '.join(command[2:5])} … ended with {process.returncode}:\n{out[-2000:]}{err[-4000:]}")
    return out, err


@asynccontextmanager
async def serving(folder: Path) -> AsyncGenerator[tuple[int, str]]:
    """The server's port and token. Raises Failed where it does not start, or does not end when it is told to."""
    log = folder / "server.log"
    home = folder / "home"
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "tunewright.server", "--home", str(home), "serve", "--http", "--port", "0",
            stdin=DEVNULL, stdout=DEVNULL, stderr=stderr, cwd=folder,
        )  # fmt: skip
    try:
        port = await _port(process, log)
        yield port, (home / "http-token").read_text(encoding="utf-8").strip()
        process.terminate()
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        raise Failed(f"the server did not start, or end, in time:\n{log.read_text(encoding='utf-8')}") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _port(process: asyncio.subprocess.Process, log: Path) -> int:
    async with asyncio.timeout(RUN_TIMEOUT_S):
        while process.returncode is None:
            if listens := LISTENS.search(log.read_text(encoding="utf-8")):
                return int(listens[1])
            await asyncio.sleep(0.05)
    raise Failed(f"the server ended with {process.returncode}:\n{log.read_text(encoding='utf-8')}")


async def conformance(revision: str, port: int, folder: Path) -> dict[str, Scenario]:
    """The results of one run of the suite. Raises Failed where it did not come to its end."""
    results = folder / revision
    out, err = await output(
        *NODE, "conformance", "server", "--url", f"http://127.0.0.1:{port}/mcp", *RUNS[revision], "-o", str(results),
        timeout_s=RUN_TIMEOUT_S, cwd=folder, may_fail=True,
    )  # fmt: skip
    told, found = set(SUMMARY.findall(out)), read(results)
    if not told or told != found.keys():
        raise Failed(f"the suite told of {sorted(told)} and wrote of {sorted(found)}:\n{out[-2000:]}{err[-2000:]}")
    return found


async def listing(era: str, port: int, token: str, folder: Path) -> tuple[set[str], int]:
    """The tools that the inspector lists in strict mode, which fails at an error, and how much it warns of."""
    out, err = await output(
        *NODE, "mcp-inspector", "--cli", "--server-url", f"http://127.0.0.1:{port}/mcp", "--header",
        f"Authorization: Bearer {token}", "--protocol-era", era, "--method", "tools/list", "--strict", "--format",
        "json", timeout_s=RUN_TIMEOUT_S, cwd=folder,
    )  # fmt: skip
    return {tool["name"] for tool in json.loads(out)["result"]["tools"]}, err.count("Warning: ")


def row(revision: str, results: Mapping[str, Scenario], expected: Expected) -> str:
    """A line of the table: how many scenarios of each kind the run held."""
    kinds = (expected.apply, expected.say_nothing, expected.do_not_apply)
    return f"{revision:12}" + "".join(f"{len(results.keys() & kind):14}" for kind in kinds)


async def run(folder: Path) -> list[str]:
    """Runs everything and prints the table; returns the surprises."""
    expected = Expected.read(HERE / "scenarios.toml")
    await output(*NODE, timeout_s=INSTALL_TIMEOUT_S, cwd=folder)
    runs: dict[str, dict[str, Scenario]] = {}
    found: list[str] = []
    async with serving(folder) as (port, token), adding_token(port, token) as relayed:
        sys.stdout.write(f"{'scenarios':12}{'apply':>14}{'say nothing':>14}{'do not apply':>14}\n")
        for revision in RUNS:
            runs[revision] = await conformance(revision, relayed, folder)
            found += [f"{revision} {line}" for line in surprises(runs[revision], expected)]
            sys.stdout.write(f"{row(revision, runs[revision], expected)}\n")
        found += never_run(runs.values(), expected)
        listed: dict[str, set[str]] = {}
        for era in ERAS:
            listed[era], warnings = await listing(era, port, token, folder)
            sys.stdout.write(f"inspector, {era}: {len(listed[era])} tools, no error, {warnings} warnings\n")
    if not listed["legacy"] or listed["legacy"] != listed["modern"]:
        found.append(f"the inspector lists different tools, or none, in the two eras: {listed}")
    return found


def leave(number: int, _: FrameType | None) -> None:
    """Ends by an exception when CI cancels the command: programs that run and folders go along."""
    sys.exit(128 + number)


def main() -> int:
    signal.signal(signal.SIGTERM, leave)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tunewright-conformance-") as folder:
        try:
            found = asyncio.run(run(Path(folder)))
        except Failed as failure:
            sys.stdout.write(f"FAILED: {failure}\n")
            return 1
    sys.stdout.write("".join(f"SURPRISE: {line}\n" for line in found))
    sys.stdout.write(f"{len(found)} surprises, {time.monotonic() - began:.0f} s\n")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())

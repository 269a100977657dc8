"""The server as a process on stdio: every way to start it, a clean wire amid noise, and how it ends."""

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline import jobs, lease
from tunewright.pipeline.workspace import Workspace

REPOSITORY = Path(__file__).parents[1]
TIMEOUT_S = 60
MODULE = [sys.executable, "-P", "-m", "tunewright.server"]
SCRIPT = [sys.executable, str(REPOSITORY / "server.py")]
CONSOLE = [str(Path(sys.executable).with_name("tunewright"))]

# Serves as the console script does, among libraries that print in every way there is, from the first import on.
NOISY = """
import atexit, ctypes, os, subprocess, sys, threading
from importlib.abc import MetaPathFinder
from tunewright.server import main
from tunewright.pipeline import artifacts

libc = ctypes.CDLL(None)

def make_noise(where):
    print("noise: print " + where)  # in one write, so that the thread cannot come between its words
    print("noise: flushed print " + where, flush=True)
    os.write(1, b"noise: descriptor\\n")
    libc.printf(b"noise: printf, buffered by C\\n")
    subprocess.run(["echo", "noise: child"], check=True)

def chatter():
    while True:
        os.write(1, b"noise: thread\\n")
        threading.Event().wait(0.001)

class NoisyImports(MetaPathFinder):
    begun = False
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] not in sys.stdlib_module_names and not NoisyImports.begun:
            NoisyImports.begun = True
            make_noise("import")
            atexit.register(make_noise, "atexit")
            threading.Thread(target=chatter, daemon=True).start()

def page(*arguments, found=artifacts.page):
    make_noise("tool")
    return found(*arguments)

artifacts.page = page
sys.meta_path.insert(0, NoisyImports())
main()
"""

# A tool's library that takes the whole process for its own.
EXITING = """
import sys
from tunewright.pipeline import artifacts
from tunewright.server import main

artifacts.page = lambda *_: sys.exit("the library is done")
main()
"""


class Server:
    """A running server seen from the other end of its pipes; a thread reads, so that every wait has a limit."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[str] = []
        self._arrived: queue.Queue[str | None] = queue.Queue()
        self._requests = 0
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.lines.append(line)
            self._arrived.put(line)
        self._arrived.put(None)

    def send(self, method: str, params: dict[str, Any] | None = None, **more: Any) -> None:
        self.write(json.dumps({"jsonrpc": "2.0", "method": method, "params": params or {}, **more}))

    def write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ask(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Sends a request and returns the result of its answer; what else arrives meanwhile is kept in `lines`."""
        self._requests += 1
        self.send(method, params, id=self._requests)
        while (line := self._arrived.get(timeout=TIMEOUT_S)) is not None:
            message = json.loads(line)
            if message.get("id") == self._requests:
                return message["result"]
        pytest.fail(f"{method} was not answered: the server ended")

    def tool(self, name: str, **arguments: Any) -> dict[str, Any]:
        return self.ask("tools/call", {"name": name, "arguments": arguments})

    def close_stdin(self) -> int:
        """Ends the conversation as a client does; returns the exit status once all output is read."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.wait()

    def wait(self) -> int:
        status = self.process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        return status


Serving = Callable[..., Any]


@pytest.fixture
def stderr_file(tmp_path: Path) -> Path:
    return tmp_path / "stderr.txt"


@pytest.fixture
def serving(tmp_path: Path, stderr_file: Path) -> Serving:
    """`with serving(command) as server`: started over a home of its own and past the handshake."""

    @contextmanager
    def start(command: list[str], *arguments: str) -> Generator[Server]:
        home = ["--home", str(tmp_path / "home")]
        with (
            stderr_file.open("w", encoding="utf-8") as errors,
            subprocess.Popen(
                [*command, *home, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                encoding="utf-8", cwd=tmp_path, env=dict(os.environ),
            ) as process,
        ):  # fmt: skip
            server = Server(process)
            try:
                client = {"name": "test", "version": "0"}
                asked = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client}
                assert server.ask("initialize", asked)["serverInfo"]["name"] == "tunewright"
                server.send("notifications/initialized")
                yield server
            finally:
                process.kill()
                server.wait()

    return start


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(f'{{"prompt": "{i}?", "response": "{i}!"}}\n' for i in range(9)), encoding="utf-8")
    return path


@pytest.fixture
def held_device(workspace: Workspace) -> Iterator[None]:
    """Held, so that a job stays queued and imports nothing heavy."""
    (device,) = lease.devices()
    lock = lease.try_take(workspace, device)
    assert lock is not None
    yield
    lock.release()


def _script(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "wrapper.py").write_text(text, encoding="utf-8")
    return [sys.executable, "-P", str(tmp_path / "wrapper.py")]


@pytest.mark.parametrize("command", [MODULE, SCRIPT, CONSOLE], ids=["module", "file", "console script"])
def test_every_way_to_start_it_serves_and_ends_with_its_client(serving: Serving, command: list[str]) -> None:
    with serving(command) as server:
        tools = {tool["name"] for tool in server.ask("tools/list")["tools"]}
        assert {"check_environment", "start_finetune", "get_status"} <= tools
        assert not server.tool("list_artifacts").get("isError")
        assert server.close_stdin() == 0


@pytest.mark.parametrize("mode", [[], ["--inline"]], ids=["workers", "inline"])
def test_not_one_byte_on_stdout_is_anything_but_protocol(
    serving: Serving, tmp_path: Path, stderr_file: Path, mode: list[str]
) -> None:
    with serving(_script(tmp_path, NOISY), *mode) as server:
        for _ in range(5):
            assert not server.tool("list_artifacts").get("isError")
        server.ask("resources/read", {"uri": "tw://jobs"})
        assert server.close_stdin() == 0
        assert len(server.lines) >= 7
        for line in server.lines:
            assert json.loads(line)["jsonrpc"] == "2.0"
    noise = stderr_file.read_text(encoding="utf-8")
    for where in ("import", "tool", "atexit"):
        assert f"noise: print {where}" in noise
        assert f"noise: flushed print {where}" in noise
    for kind in ("descriptor", "printf, buffered by C", "child", "thread"):
        assert f"noise: {kind}\n" in noise


def test_a_library_that_exits_inside_a_tool_leaves_the_server_answering(
    serving: Serving, tmp_path: Path, stderr_file: Path
) -> None:
    with serving(_script(tmp_path, EXITING)) as server:
        for _ in range(2):
            answer = server.tool("list_artifacts")
            assert answer["isError"]
            assert answer["content"][0]["text"].startswith("internal_error: list_artifacts failed with SystemExit")
            assert "the library is done" not in str(answer)
        assert not server.tool("get_status").get("isError")
        assert server.close_stdin() == 0
    assert "the library is done" in stderr_file.read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once(serving: Serving, number: signal.Signals) -> None:
    with serving(MODULE) as server:
        server.process.send_signal(number)
        assert server.wait() == -number


@pytest.mark.usefixtures("held_device")
def test_closing_stdin_while_a_call_waits_ends_the_server_but_not_the_job(
    serving: Serving, workspace: Workspace, pairs: Path, eventually: Callable[..., None]
) -> None:
    with serving(MODULE) as server:
        dataset_id = server.tool("prepare_dataset", source=str(pairs))["structuredContent"]["dataset_id"]
        started = server.tool("start_finetune", dataset_id=dataset_id, model="toy")["structuredContent"]
        job_id = started["job_id"]
        server.send("tools/call", {"name": "get_status", "arguments": {"job_id": job_id, "wait_s": 50}}, id="waiting")
        assert server.close_stdin() == 0
        assert jobs.is_worker_alive(workspace.store.job(job_id))
        jobs.cancel(workspace, job_id)
        eventually(lambda: workspace.store.job(job_id)["state"] == "cancelled")


def test_a_line_that_is_no_protocol_is_survived(serving: Serving) -> None:
    with serving(MODULE) as server:
        server.write("this is no JSON")
        assert server.ask("tools/list")["tools"]
        assert server.close_stdin() == 0


def test_two_servers_share_a_home(serving: Serving, pairs: Path) -> None:
    with serving(MODULE) as first, serving(MODULE) as second:
        made = first.tool("prepare_dataset", source=str(pairs))["structuredContent"]["dataset_id"]
        listed = second.tool("list_artifacts")["structuredContent"]["artifacts"]
        assert [line["id"] for line in listed if line["kind"] == "dataset"] == [made]


def test_the_version_is_told_without_serving() -> None:
    told = subprocess.run([*CONSOLE, "--version"], capture_output=True, encoding="utf-8", timeout=TIMEOUT_S, check=True)
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", told.stdout)


def test_an_unknown_option_is_refused_with_the_usage() -> None:
    told = subprocess.run([*CONSOLE, "--nonsense"], capture_output=True, encoding="utf-8", timeout=TIMEOUT_S)
    assert told.returncode == 2
    assert "usage: tunewright" in told.stderr
    assert told.stdout == ""


def test_a_home_that_cannot_be_used_is_said_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "no-folder"
    file.touch()
    ended = subprocess.run(
        [*MODULE, "--home", str(file)], stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8",
        timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("home_unusable: ")
    assert "Traceback" not in ended.stderr

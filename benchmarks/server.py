"""What the server costs: its start and memory beside a bare SDK server, and its answers while a job trains.

`python benchmarks/server.py [--home DIR]` prints each measurement as a line of JSON, then a Markdown table; its exit
status is 1 where a target is missed. Both servers are measured in one run, in turn, so that they meet the same load;
the numbers are only worth something on a machine that does nothing else (the load is printed). The job is a real
fine-tune of the toy; a data home that has the toy's weights already (--home) saves the minute that they take.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

STARTS = 7
CALLS = 500
# Apart, as clients call: calls in a row would keep the server on a core and measure less of the competition.
PAUSE_S = 0.02
MAX_START_RATIO = 1.3
MAX_MEMORY_RATIO = 1.3
MAX_P99_MS = 25.0
JOB_TIMEOUT_S = 600
EPOCHS = 200
DATA = Path(__file__).parents[1] / "examples" / "data" / "lumen_support.jsonl"

BARE_SERVER = '''
from mcp.server import MCPServer

server = MCPServer("bare")


@server.tool()
def ping() -> str:
    """Answers."""
    return "pong"


server.run()
'''


class Connection:
    """A server's standard streams, spoken to in plain JSON: a client library would add its own time."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self._requests = 0

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        self.process.stdin.flush()

    def handshake(self) -> None:
        client = {"name": "benchmark", "version": "0"}
        self.ask("initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client})
        self._send({"method": "notifications/initialized"})

    def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """The result of a request. Raises RuntimeError where the server ends or refuses."""
        assert self.process.stdout is not None
        self._requests += 1
        self._send({"id": self._requests, "method": method, "params": params})
        for line in self.process.stdout:
            message = json.loads(line)
            if message.get("id") == self._requests:
                if "result" not in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
        raise RuntimeError(f"{method}: the server ended")

    def tool(self, name: str, **arguments: Any) -> dict[str, Any]:
        """A tool's structured answer. Raises RuntimeError with its text where it refuses."""
        result = self.ask("tools/call", {"name": name, "arguments": arguments})
        if result.get("isError"):
            raise RuntimeError(result["content"][0]["text"])
        return result["structuredContent"]


@contextmanager
def started(command: list[str]) -> Generator[Connection]:
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
    ) as process:
        connection = Connection(process)
        yield connection
        process.stdin.close()  # type: ignore[union-attr]


def start_and_list(command: list[str]) -> tuple[float, float, float]:
    """From the spawn to the answer of tools/list: milliseconds, those of them on a processor, and MB resident then."""
    began = time.perf_counter()
    with started(command) as connection:
        connection.handshake()
        connection.ask("tools/list", {})
        took_ms = (time.perf_counter() - began) * 1000
        process = psutil.Process(connection.process.pid)
        return took_ms, sum(process.cpu_times()[:2]) * 1000, process.memory_info().rss / 1e6


def measure_starts(ours: list[str], bare: list[str]) -> dict[str, float]:
    """Medians over STARTS starts of each, in turn; the first pair only warms the disk's cache."""
    pairs = [(start_and_list(ours), start_and_list(bare)) for _ in range(STARTS + 1)][1:]
    found: dict[str, float] = {}
    for number, name in enumerate(("ours", "bare")):
        found[f"{name}_start_ms"] = round(statistics.median(pair[number][0] for pair in pairs), 1)
        found[f"{name}_cpu_ms"] = round(statistics.median(pair[number][1] for pair in pairs), 1)
        found[f"{name}_memory_mb"] = round(statistics.median(pair[number][2] for pair in pairs), 1)
    found["start_ratio"] = round(found["ours_start_ms"] / found["bare_start_ms"], 3)
    # The same on a machine that does other things too, as long as they leave the caches alone.
    found["cpu_ratio"] = round(found["ours_cpu_ms"] / found["bare_cpu_ms"], 3)
    found["memory_ratio"] = round(found["ours_memory_mb"] / found["bare_memory_mb"], 3)
    return found


def measure_calls(ours: list[str]) -> dict[str, float]:
    """Milliseconds of CALLS calls of get_status on a job, PAUSE_S apart, while that job trains. Leaves no job behind.

    Raises RuntimeError where the job did not train from the first call to the last.
    """
    with started(ours) as connection:
        connection.handshake()
        dataset_id = connection.tool("prepare_dataset", source=str(DATA), model="toy")["dataset_id"]
        job_id = connection.tool("start_finetune", dataset_id=dataset_id, model="toy", epochs=EPOCHS)["job_id"]
        try:
            first_step = _wait_for_metrics(connection, job_id)
            times_ms = [_call_ms(connection, job_id) for _ in range(CALLS)]
            job = connection.tool("get_status", job_id=job_id)["job"]
        finally:
            connection.tool("cancel_job", job_id=job_id, keep_checkpoint=False)
            connection.tool("get_status", job_id=job_id, wait_s=50)
            for made in (job_id, dataset_id):
                connection.tool("delete_artifact", artifact_id=made, confirm=True)
    if job["state"] != "running" or job["done"] == first_step:
        raise RuntimeError(f"The job was {job['state']} at step {job['done']} of {job['total']} in the end.")
    cuts = statistics.quantiles(times_ms, n=100, method="inclusive")
    return {
        "calls": CALLS, "p50_ms": round(cuts[49], 2), "p99_ms": round(cuts[98], 2), "max_ms": round(max(times_ms), 2),
        "steps_meanwhile": job["done"] - first_step,
    }  # fmt: skip


def _call_ms(connection: Connection, job_id: str) -> float:
    time.sleep(PAUSE_S)
    began = time.perf_counter()
    connection.tool("get_status", job_id=job_id)
    return (time.perf_counter() - began) * 1000


def _wait_for_metrics(connection: Connection, job_id: str) -> float:
    """The step of the first metrics that are seen."""
    deadline = time.monotonic() + JOB_TIMEOUT_S
    while time.monotonic() < deadline:
        job = connection.tool("get_status", job_id=job_id, wait_s=1)["job"]
        if job["state"] not in ("queued", "running"):
            raise RuntimeError(f"{job_id} is {job['state']}: {job['error']}")
        if job["loss"] is not None:
            return job["done"]
    raise RuntimeError(f"{job_id} has no metrics after {JOB_TIMEOUT_S} s.")


def report(starts: dict[str, float], calls: dict[str, float]) -> bool:
    """Prints the table; returns whether every target is met."""
    rows = [
        ("spawn → tools/list, median", f"{starts['ours_start_ms']:.0f} ms", f"{starts['bare_start_ms']:.0f} ms",
         starts["start_ratio"], MAX_START_RATIO, "×"),
        ("processor time until then, median", f"{starts['ours_cpu_ms']:.0f} ms", f"{starts['bare_cpu_ms']:.0f} ms",
         starts["cpu_ratio"], MAX_START_RATIO, "×"),
        ("resident memory after it", f"{starts['ours_memory_mb']:.0f} MB", f"{starts['bare_memory_mb']:.0f} MB",
         starts["memory_ratio"], MAX_MEMORY_RATIO, "×"),
        ("get_status while a job trains, p99", f"p50 {calls['p50_ms']:.1f} ms", "", calls["p99_ms"], MAX_P99_MS, "ms"),
    ]  # fmt: skip
    print("\n| measurement | Tunewright | bare SDK server | result | target | met |\n|---|---|---|---|---|---|")
    for name, ours, bare, value, target, unit in rows:
        met = "yes" if value <= target else "NO"
        print(f"| {name} | {ours} | {bare} | {value:g} {unit} | ≤ {target:g} {unit} | {met} |")
    return all(row[3] <= row[4] for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--home", type=Path, help="data home for the job (default: a temporary one)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tunewright-benchmark-") as scratch:
        home = arguments.home or Path(scratch) / "home"
        bare_file = Path(scratch) / "bare_server.py"
        bare_file.write_text(BARE_SERVER, encoding="utf-8")
        ours = [sys.executable, "-P", "-m", "tunewright.server", "--home", str(home)]
        print(json.dumps({"cores": os.cpu_count(), "load_1min": round(os.getloadavg()[0], 2)}))
        starts = measure_starts(ours, [sys.executable, "-P", str(bare_file)])
        print(json.dumps(starts), flush=True)
        calls = measure_calls(ours)
        print(json.dumps(calls), flush=True)
    return 0 if report(starts, calls) else 1


if __name__ == "__main__":
    sys.exit(main())

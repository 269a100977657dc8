"""Many clients at once: 50 on one HTTP server and 20 stdio servers of their own, all on one home, while a job trains.

    python benchmarks/load.py [--minutes 30] [--http 50] [--stdio 20] [--pause 5] [--home DIR]

Each client reads something every `pause` seconds, as an agent that follows a job would; half of the HTTP clients speak
the newest era of the protocol and half that of the handshake, and two browsers keep the live page open. Prints, by kind
of read, how often it failed and how long it took as the client saw it, and what memory the servers held.

The clients are one process on the same cores as the servers and the job, which trains the toy on one core: latencies
hold their share. How large that is, two things tell: what each part took of the processors, and the row `no read`, how
late the clients' process woke where it asked nobody for anything. Exit status 1 where a target is missed.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx2
import psutil
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from tunewright.examples.session import call, connect
from tunewright.pipeline.workspace import Workspace

# Steps for hours, about one a second, as a large model makes them on a GPU.
ROWS = 2000
LONG: dict[str, Any] = {"epochs": 1000, "batch_size": 8, "gradient_accumulation": 8}
TIMEOUT_S = 60
MAX_P99_MS = 100
# Over the second half of the time, when every cache is warm.
MAX_GROWTH_MB_PER_HOUR = 20
SAMPLE_EVERY_S = 5
LATENESS_EVERY_S = 0.25
NO_READ = "no read"
Read = Callable[[], Awaitable[object]]


@dataclass
class Found:
    """What the clients saw: milliseconds of every read by its kind, and what failed."""

    times_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    # (seconds since the start, MB resident): of the HTTP server, and of one stdio server on average.
    memory_mb: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    # Shares of one core, over the whole time.
    cores: dict[str, float] = field(default_factory=dict[str, float])


@asynccontextmanager
async def http_server(home: Path) -> AsyncGenerator[tuple[psutil.Process, str]]:
    command = [sys.executable, "-P", "-m", "tunewright.server", "--home", str(home), "serve", "--http", "--port", "0"]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    line = (await process.stderr.readline()).decode()
    if "serves " not in line:
        raise RuntimeError(line)
    reader = asyncio.create_task(process.stderr.read())
    try:
        yield psutil.Process(process.pid), line.split("serves ")[1].split("/mcp")[0]
    finally:
        process.terminate()
        await process.wait()
        await reader


@asynccontextmanager
async def http_client(url: str, token: str, mode: str) -> AsyncGenerator[Client]:
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(headers=headers, timeout=TIMEOUT_S) as http:
        transport = streamable_http_client(f"{url}/mcp", http_client=http)
        # No cache of the client's: each read is to reach the server.
        async with Client(transport, mode="legacy" if mode == "legacy" else "auto", cache=None) as client:
            yield client


def reads_of(client: Client, job_id: str) -> dict[str, Read]:
    return {
        "get_status()": lambda: call(client, "get_status"),
        "get_status(job_id)": lambda: call(client, "get_status", job_id=job_id),
        "list_artifacts()": lambda: call(client, "list_artifacts"),
        "tools/list": client.list_tools,
        "tw://jobs/{id}": lambda: client.read_resource(f"tw://jobs/{job_id}"),
        "tw://jobs/{id}/log": lambda: client.read_resource(f"tw://jobs/{job_id}/log?tail=50"),
    }


async def follow(found: Found, way: str, reads: dict[str, Read], pause_s: float, until: float) -> None:
    """Reads something at random every `pause_s`, until then; what is late is not made up for by hurrying."""
    due = time.monotonic() + random.uniform(0, pause_s)
    while (due := max(due + pause_s, time.monotonic())) < until:
        await asyncio.sleep(max(0, due - time.monotonic()))
        name = random.choice(list(reads))
        began = time.perf_counter()
        try:
            await reads[name]()
        except Exception as error:  # noqa: BLE001 - whatever fails is what is counted here
            found.errors[f"{way} {name}"].append(repr(error)[:200])
        found.times_ms[f"{way} {name}"].append((time.perf_counter() - began) * 1000)


async def look_late(found: Found, until: float) -> None:
    """How late the clients' own process comes to run what is due: so much of every read's time is not the server's."""
    while time.monotonic() < until:
        due = time.perf_counter() + LATENESS_EVERY_S
        await asyncio.sleep(LATENESS_EVERY_S)
        found.times_ms[NO_READ].append((time.perf_counter() - due) * 1000)


async def watch(found: Found, http: psutil.Process, worker: psutil.Process, until: float) -> None:
    # The SDK's client starts each stdio server as a child of this process.
    clients = psutil.Process()
    stdio = [child for child in clients.children() if child.pid != http.pid]
    parts = {"clients": [clients], "HTTP server": [http], "stdio servers": stdio, "job": [worker]}
    began, before = time.monotonic(), {name: cpu_s(part) for name, part in parts.items()}
    while time.monotonic() < until:
        at = time.monotonic() - began
        found.memory_mb["HTTP server"].append((at, http.memory_info().rss / 1e6))
        if stdio:
            total = sum(child.memory_info().rss for child in stdio)
            found.memory_mb["stdio server, mean"].append((at, total / 1e6 / len(stdio)))
        await asyncio.sleep(SAMPLE_EVERY_S)
    took_s = time.monotonic() - began
    found.cores = {name: (cpu_s(part) - before[name]) / took_s for name, part in parts.items()}


def cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


@asynccontextmanager
async def training(home: Path) -> AsyncGenerator[str]:
    """A job that trains until the end of the block. Raises RuntimeError where it does not begin."""
    rows = [{"prompt": f"What is {n} and {n}?", "response": f"{n} and {n} is {2 * n}."} for n in range(ROWS)]
    data = home.with_name("sums.jsonl")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    async with connect(str(home)) as client:
        dataset_id = (await call(client, "prepare_dataset", source=str(data), model="toy", dedupe=False))["dataset_id"]
        job_id = (await call(client, "start_finetune", dataset_id=dataset_id, model="toy", **LONG))["job_id"]
        try:
            await first_step(client, job_id)
            yield job_id
        finally:
            await call(client, "cancel_job", job_id=job_id, keep_checkpoint=False)
            await call(client, "get_status", job_id=job_id, wait_s=50)


def worker_of(home: Path, job_id: str) -> psutil.Process:
    return psutil.Process(Workspace.open(home).store.job(job_id)["pid"])


async def first_step(client: Client, job_id: str) -> None:
    deadline = time.monotonic() + 10 * TIMEOUT_S
    while time.monotonic() < deadline:
        job = (await call(client, "get_status", job_id=job_id, wait_s=2))["job"]
        if job["loss"] is not None:
            return
        if job["error"]:
            break
    raise RuntimeError(f"{job_id} did not begin to train.")


async def measure(home: Path, arguments: argparse.Namespace) -> tuple[Found, int]:
    """What was found, and how many steps the job made meanwhile."""
    found = Found()
    async with training(home) as job_id, http_server(home) as (process, url), AsyncExitStack() as stack:
        token = (home / "http-token").read_text(encoding="utf-8").strip()
        modes = ["auto" if number % 2 else "legacy" for number in range(max(1, arguments.http))]
        web = [await stack.enter_async_context(http_client(url, token, mode)) for mode in modes]
        local = [await stack.enter_async_context(connect(str(home))) for _ in range(arguments.stdio)]
        page = await stack.enter_async_context(
            httpx2.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=TIMEOUT_S)
        )
        show: dict[str, Read] = {"page": lambda: page.get("/", params={"job": job_id})}
        first = (await call(web[0], "get_status", job_id=job_id))["job"]["done"]
        print(json.dumps({"clients": len(web) + len(local), "load_1min": round(os.getloadavg()[0], 2)}), flush=True)
        until = time.monotonic() + 60 * arguments.minutes
        async with anyio.create_task_group() as tasks:
            for way, clients in (("HTTP", web), ("stdio", local)):
                for client in clients:
                    tasks.start_soon(follow, found, way, reads_of(client, job_id), arguments.pause, until)
            for _ in range(2):
                tasks.start_soon(follow, found, "HTTP", show, 2.0, until)
            tasks.start_soon(look_late, found, until)
            tasks.start_soon(watch, found, process, worker_of(home, job_id), until)
        last = (await call(web[0], "get_status", job_id=job_id))["job"]
    if last["state"] != "running":
        raise RuntimeError(f"The job was {last['state']} in the end: {last['error']}")
    return found, int(last["done"] - first)


def report(found: Found, steps: int) -> bool:
    """Prints the tables; returns whether every target is met."""
    print("\n| read | times | errors | p50 | p99 | max |\n|---|---|---|---|---|---|")
    late = found.times_ms.pop(NO_READ)
    everything = [time_ms for times in found.times_ms.values() for time_ms in times]
    rows = [*sorted(found.times_ms.items()), ("all", everything), (NO_READ, late)]
    for name, times in rows:
        cuts = statistics.quantiles(times, n=100, method="inclusive") if len(times) > 1 else [times[0]] * 99
        failed = sum(map(len, found.errors.values())) if name == "all" else len(found.errors.get(name, []))
        print(f"| {name} | {len(times)} | {failed} | {cuts[49]:.1f} ms | {cuts[98]:.1f} ms | {max(times):.1f} ms |")
    p99 = statistics.quantiles(everything, n=100, method="inclusive")[98]
    print("\n| memory | at the start | at the end | growth over the second half |\n|---|---|---|---|")
    growths: list[float] = []
    for name, samples in found.memory_mb.items():
        half = samples[len(samples) // 2 :]
        growth = statistics.linear_regression(*zip(*half, strict=True)).slope * 3600 if len(half) > 2 else 0.0
        growths.append(growth)
        print(f"| {name} | {samples[0][1]:.0f} MB | {samples[-1][1]:.0f} MB | {growth:+.1f} MB an hour |")
    shares = ", ".join(f"{name} {share:.0%}" for name, share in found.cores.items())
    print(f"\nOf one core: {shares}. The job made {steps} steps meanwhile.")
    for name, errors in found.errors.items():
        print(f"{name}: {errors[0]}")
    return not found.errors and p99 <= MAX_P99_MS and max(growths) <= MAX_GROWTH_MB_PER_HOUR


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--http", type=int, default=50, help="clients on the HTTP server")
    parser.add_argument("--stdio", type=int, default=20, help="clients with a server of their own")
    parser.add_argument("--pause", type=float, default=5.0, help="seconds from one read of a client to its next")
    parser.add_argument("--home", type=Path, help="a home to use again, with the toy trained (default: a new one)")
    arguments = parser.parse_args()
    # The worker's, as that of a job on a GPU: it keeps one core busy, and the servers are measured on the others.
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="tunewright-load-") as scratch:
        home = (arguments.home or Path(scratch) / "home").absolute()
        os.environ["TUNEWRIGHT_ALLOW_DIRS"] = str(home.parent)
        found, steps = asyncio.run(measure(home, arguments))
    return 0 if report(found, steps) else 1


if __name__ == "__main__":
    sys.exit(main())

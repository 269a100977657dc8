"""Each fault: it strikes, lasts, and is over. It returns whether there was something alive for it to strike.

What stays behind is the product's to mend, except what it reads: a broken source is put back, as its user would.
"""

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import psutil
from faults.scenes import CHAT, Scene, weights
from faults.world import World

from tunewright.pipeline import jobs, processes
from tunewright.pipeline.chat import protocol
from tunewright.pipeline.store import Row

POLL_S = 0.005
# Longer than the store waits for another writer (30 s), now and then.
LONG_BUSY_S, LONG_BUSY_SHARE = 33.0, 0.03
LEFT_ON_DISK_BYTES = 3_000_000
PIECE = bytes(1 << 16)
# A publication begins to talk somewhat later than its job, and talks for about a second.
UNDER_WAY_S = 0.8


@dataclass
class Target:
    """What is under way: a job of `scene`, or where there is none a chat; `server` is the server's pid."""

    world: World
    server: int
    scene: Scene | None = None
    job_id: str | None = None
    # What the fault did, for the round's line.
    told: dict[str, object] = field(default_factory=dict[str, object])

    def row(self) -> Row | None:
        return self.world.workspace.store.job(self.job_id) if self.job_id else None

    def is_going_on(self) -> bool:
        """Whether there is anything to disturb: a chat is a call that the harness waits for."""
        row = self.row()
        return row is None or (row["state"] in jobs.ACTIVE and jobs.is_worker_alive(row))


async def _gone(is_alive: Callable[[], bool]) -> None:
    while is_alive():
        await asyncio.sleep(POLL_S)


async def kill_worker(target: Target, rng: random.Random) -> bool:
    row = target.row()
    if row is None or not jobs.is_worker_alive(row):
        return False
    os.kill(row["pid"], signal.SIGKILL)
    await _gone(lambda: jobs.is_worker_alive(row))
    return True


async def kill_child(target: Target, rng: random.Random) -> bool:
    """A process that the worker started: one that cleans rows, or llama.cpp's converter. Waits until there is one."""
    while (row := target.row()) and target.is_going_on():
        try:
            children = psutil.Process(row["pid"]).children(recursive=True)
            if children:
                victim = rng.choice(children)
                target.told["command"] = " ".join(victim.cmdline())[-80:]
                victim.kill()
                return True
        except psutil.NoSuchProcess:
            continue
        await asyncio.sleep(POLL_S)
    return False


async def kill_server(target: Target, rng: random.Random) -> bool:
    alive = target.is_going_on()
    os.kill(target.server, signal.SIGKILL)
    await _gone(lambda: processes.start_time(target.server) is not None)
    return alive


async def kill_host(target: Target, rng: random.Random) -> bool:
    host = protocol.find_host(target.world.workspace)
    if host is None:
        return False
    os.kill(host.pid, signal.SIGKILL)
    await _gone(lambda: protocol.find_host(target.world.workspace) is not None)
    return True


async def fill_disk(target: Target, rng: random.Random) -> bool:
    """Leaves from nothing to a few megabytes, for up to three seconds."""
    if target.world.disk is None:
        return False
    alive, filler = target.is_going_on(), target.world.disk / "filler"
    left = rng.choice((0, 4096, rng.randrange(LEFT_ON_DISK_BYTES)))
    target.told["left_bytes"] = left
    try:
        with filler.open("wb", buffering=0) as file:
            with suppress(OSError):  # as soon as the disk is full, whatever others write meanwhile
                while file.write(PIECE):
                    pass
            file.truncate(max(0, file.tell() - left))
        await asyncio.sleep(rng.uniform(0.3, 3))
    finally:
        filler.unlink()
    return alive


async def busy_database(target: Target, rng: random.Random) -> bool:
    """Another process's transaction: as long as it lasts nobody else can write."""
    alive = target.is_going_on()
    held_s = LONG_BUSY_S if rng.random() < LONG_BUSY_SHARE else rng.uniform(0.2, 4)
    target.told["held_s"] = round(held_s, 1)
    holder = sqlite3.connect(target.world.workspace.home.database, timeout=30, isolation_level=None)
    try:
        holder.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(held_s)
        holder.execute("ROLLBACK")
    finally:
        holder.close()
    return alive


async def break_input(target: Target, rng: random.Random) -> bool:
    """Cuts a file that the work reads short, lets the work run on to its end or for some seconds, puts it back."""
    alive = target.is_going_on()
    path = rng.choice(target.scene.reads(target.world) if target.scene else [weights(target.world)])
    whole, moved = path.stat().st_size, path.with_name(f"{path.name}.whole")
    path.rename(moved)
    try:
        shutil.copyfile(moved, path)
        os.truncate(path, rng.randrange(whole))
        target.told |= {"broken": path.name}
        until = time.monotonic() + rng.uniform(0.5, 8)
        while time.monotonic() < until and target.is_going_on():
            await asyncio.sleep(POLL_S)
    finally:
        moved.replace(path)
    return alive


async def tear_kept(target: Target, rng: random.Random) -> bool:
    """Kills the worker once it has kept a journal or a checkpoint, and cuts that short, as a power cut does."""
    if target.scene is None or target.job_id is None:
        return False
    folder = jobs.folder(target.world.workspace, target.job_id)
    while not target.scene.keeps(folder) and target.is_going_on():
        await asyncio.sleep(POLL_S)
    if not await kill_worker(target, rng):
        return False
    kept = target.scene.keeps(folder)
    if kept:
        path = rng.choice(kept)
        os.truncate(path, rng.randrange(path.stat().st_size) if path.stat().st_size else 0)
        target.told["torn"] = f"{path.parent.name}/{path.name}"
    return bool(kept)


async def drop_network(target: Target, rng: random.Random) -> bool:
    """Every connection breaks as soon as there is one, and none comes about for a while."""
    line = target.world.lines.get(target.scene.kind) if target.scene else None
    if line is None:
        return False
    await asyncio.sleep(rng.uniform(0, UNDER_WAY_S))
    while not line.is_busy and target.is_going_on():
        await asyncio.sleep(POLL_S)
    before = line.broken
    line.cut()
    await asyncio.sleep(rng.uniform(0.05, 3))
    line.mend()
    return line.broken > before


Strike = Callable[[Target, random.Random], Awaitable[bool]]
FAULTS: dict[str, Strike] = {
    strike.__name__: strike
    for strike in (
        kill_worker, kill_child, kill_server, kill_host, fill_disk, busy_database, break_input, tear_kept,
        drop_network,
    )
}  # fmt: skip
# These wait by themselves for what they strike, so they need no moment of a job that has just begun.
PATIENT = ("kill_child", "tear_kept", "drop_network")
# After these a job may fail, and must go on when resumed; after the others it must not fail.
EXCUSED = ("kill_child", "fill_disk", "break_input", "drop_network")
PUBLISHING = ("publish_hub", "publish_ollama")


def possible(fault: str, kind: str) -> bool:
    """Whether work of this kind can be struck by the fault at all."""
    match fault:
        case "kill_worker":
            return kind != CHAT
        case "kill_child":
            return kind in ("prepare_dataset", "export")
        case "kill_host":
            return kind == CHAT
        case "tear_kept":
            return kind in ("finetune", "validate", "benchmark")
        case "drop_network":
            return kind in PUBLISHING
        case _:
            return True

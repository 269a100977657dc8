"""Rounds: some work is under way, a fault strikes it at a random moment, all invariants are checked, a tool is called.

A job that was struck goes on, by itself or by resume_job, and the next round may strike it again; in the end it must
succeed with what came of it undisturbed. The seed decides the order of work, faults and moments; when exactly a
moment comes is the machine's.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil
from faults.faults import EXCUSED, FAULTS, PATIENT, Target, possible
from faults.invariants import is_alive, violations
from faults.scenes import CHAT, SCENES, Scene
from faults.tally import Tally, Usual
from faults.world import World
from mcp import Client, MCPError

from tunewright.examples.session import Answer, ToolFailed, call, connect, follow
from tunewright.pipeline import jobs
from tunewright.pipeline.chat import protocol
from tunewright.pipeline.store import Row

POLL_S = 0.004
STUCK_S = 300.0
# The leash of llama.cpp's programs (exporting/programs.py) takes three seconds.
GRACE_S = 8.0
CHAT_WEIGHT = 2
MAX_STRIKES = 3
MAX_RESUMES = 6
# Parts of a second after the call was sent in which a submission is under way.
SUBMITTING_S = 0.3
QUESTION = "Who runs the shop?"
READS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("get_status", {}), ("list_artifacts", {}), ("list_models", {}), ("get_status", {"detail": "detailed"}),
)  # fmt: skip


class Harness:
    """Plays rounds in a prepared world. `say` gets one JSON line a round."""

    def __init__(self, world: World, seed: int, say: Callable[[str], None], only: Sequence[str] = ()) -> None:
        self._world, self._seed, self._say = world, seed, say
        self._faults = [fault for fault in FAULTS if not only or fault in only]
        if world.disk is None and "fill_disk" in self._faults:
            self._faults.remove("fill_disk")
            say(json.dumps({"left_out": "fill_disk: no file system may be mounted here"}))
        self._rng = random.Random(seed)
        self._usual: dict[str, Usual] = {}
        self._deck: list[str] = []
        self._calls: set[asyncio.Task[Answer]] = set()
        self._submitted: set[str] = set()
        self._scene: Scene | None = None
        self._job_id: str | None = None
        self._strikes_left = 0
        self._excused = False
        self._since = 0.0
        self._server = 0
        self._line: dict[str, Any] = {}
        self.tally = Tally()

    # Undisturbed

    async def prepare(self, kinds: Sequence[str]) -> None:
        """Makes what the scenes work on, and plays each of `kinds` once undisturbed."""
        world = self._world
        async with connect(str(world.home), log=world.server_log) as client:
            made = await call(client, "prepare_dataset", source=str(world.shop), name="shop", eval_fraction=0.2)
            world.dataset_id = made["dataset_id"]
            world.adapter_id = (await self._learn(client, SCENES["finetune"]))["adapter_id"]
            exporting = await call(
                client, "merge_and_export", adapter_id=world.adapter_id, outputs=["gguf:q8_0"], verify=False
            )
            world.export_id = (await follow(client, exporting["job_id"]))["result"]["export_id"]
            world.kept = {world.dataset_id, world.adapter_id, world.export_id}
            for kind in kinds:
                if kind not in ("finetune", CHAT):
                    await self._learn(client, SCENES[kind])
                    await self._clean(client)
            if CHAT in kinds:
                began = time.monotonic()
                answer = await self._chat(client)
                self._usual[CHAT] = Usual(answer, [], time.monotonic() - began)

    async def _learn(self, client: Client, scene: Scene) -> dict[str, Any]:
        self._begin(client, scene)
        began, phases, row = time.monotonic(), list[str](), await self._submission()
        self._job_id = None
        while row["state"] in jobs.ACTIVE and time.monotonic() - began < STUCK_S:
            phase = (row["progress"] or {}).get("phase")
            if phase and phase not in phases:
                phases.append(phase)
            await asyncio.sleep(POLL_S)
            row = self._world.workspace.store.job(row["id"])
        if row["state"] != jobs.State.SUCCEEDED:
            raise RuntimeError(f"{scene.kind} did not succeed undisturbed: {row['state']}, {row['error']}")
        await asyncio.gather(*self._calls)
        self._calls.clear()
        self._usual[scene.kind] = Usual(scene.outcome(self._world, row), phases, time.monotonic() - began)
        self._say(json.dumps({"undisturbed": scene.kind, "s": round(time.monotonic() - began, 1), "phases": phases}))
        return row["result"]

    # Rounds

    async def play(self, rounds: int, kinds: Sequence[str]) -> Tally:
        """Plays until `rounds` faults have struck something, then lets the last job end. Begins with each kind once."""
        kinds = [kind for kind in kinds if any(possible(fault, kind) for fault in self._faults)]
        self._deck = self._rng.sample(kinds, len(kinds))
        while True:
            async with connect(str(self._world.home), log=self._world.server_log) as client:
                self._server = _server()
                if self._line:
                    await self._recover(client)
                while self.tally.rounds < rounds:
                    await self._strike(client, kinds)
                    if not is_alive(self._server):
                        break
                    await self._recover(client)
                else:
                    await self._finish(client)
                    return self.tally
            await self._calls_answered()

    async def _strike(self, client: Client, kinds: Sequence[str]) -> None:
        if self._job_id is None:
            self._scene = SCENES.get(self._deal(kinds))
        kind = self._kind()
        fault = self._fault(kind)
        own = random.Random(f"{self._seed} {self.tally.rounds} {self.tally.missed.total()}")
        self._line = {"seed": self._seed, "round": self.tally.rounds + 1, "kind": kind, "fault": fault}
        target = Target(self._world, self._server, self._scene, self._job_id)
        if self._scene is None:
            await self._await_chat(client, fault, own)
        elif self._job_id is None:
            await self._await_submission(client, self._scene, fault, own)
            target.job_id = self._job_id
        else:
            await self._await_moment(own)
        began, step = time.time(), self._progress()
        struck = await FAULTS[fault](target, own)
        (self.tally.struck if struck else self.tally.missed)[fault] += 1
        if struck:
            self.tally.kinds[kind] += 1
        # Even where it came too late for what it aimed at, it may have met what came next.
        self._excused |= fault in EXCUSED
        self._since = began
        self._line |= {"at": step, "struck": struck, "job": self._job_id, **target.told}

    def _deal(self, kinds: Sequence[str]) -> str:
        """The next kind of work, from a shuffled deck in which each lies as often as its weight says."""
        if not self._deck:
            for kind in kinds:
                self._deck += [kind] * (CHAT_WEIGHT if kind == CHAT else SCENES[kind].weight)
            self._rng.shuffle(self._deck)
        self._strikes_left = self._rng.randint(1, MAX_STRIKES)
        return self._deck.pop()

    def _fault(self, kind: str) -> str:
        """One of those that struck least so far; among them first what strikes few kinds of work."""
        struck, missed = self.tally.struck, self.tally.missed
        fitting = [fault for fault in self._faults if possible(fault, kind)]
        others = {fault: sum(possible(fault, other) for other in self._usual) for fault in fitting}
        return min(fitting, key=lambda fault: (struck[fault], others[fault], missed[fault], self._rng.random()))

    # Moments

    def _begin(self, client: Client, scene: Scene) -> None:
        self._before = max((row["seq"] for row in self._world.workspace.store.rows("SELECT seq FROM jobs")), default=0)
        self._calls.add(asyncio.create_task(call(client, scene.tool, **scene.arguments(self._world))))

    def _new_job(self) -> Row | None:
        rows = self._world.workspace.store.rows("SELECT * FROM jobs WHERE seq>? ORDER BY seq", self._before)
        if rows:
            self._job_id = rows[0]["id"]
            self._submitted.add(rows[0]["id"])
        return rows[0] if rows else None

    async def _submission(self) -> Row:
        until = time.monotonic() + STUCK_S
        while (row := self._new_job()) is None:
            if time.monotonic() > until or all(task.done() for task in self._calls):
                raise RuntimeError(f"no job came of a call: {[task for task in self._calls if task.done()]}")
            await asyncio.sleep(POLL_S)
        return row

    async def _await_submission(self, client: Client, scene: Scene, fault: str, own: random.Random) -> None:
        """Begins a job. A server may be killed while it takes it; what else strikes waits for its moment."""
        self._excused, self._since = False, 0.0
        self._begin(client, scene)
        if fault == "kill_server" and own.random() < 0.5:
            wait_s = own.uniform(0, SUBMITTING_S)
            self._line["moment"] = f"{wait_s:.2f} s after the call"
            await asyncio.sleep(wait_s)
            return
        await self._submission()
        if fault not in PATIENT:
            await self._await_moment(own)

    async def _await_moment(self, own: random.Random) -> None:
        """A random moment of a random phase, the worker's start among them; returns at once where the job has ended."""
        usual = self._usual[self._kind()]
        stages = ["the start", *usual.phases]
        phase = own.choice(stages)
        wait_s = own.uniform(0, usual.seconds / len(stages))
        self._line["moment"] = f"{wait_s:.2f} s after {phase}"
        until = time.monotonic() + STUCK_S
        while (row := self._row()) and row["state"] in jobs.ACTIVE and time.monotonic() < until:
            progress = row["progress"] or {}
            if phase == "the start" or (progress.get("phase") == phase and progress["at"] > self._since):
                break
            await asyncio.sleep(POLL_S)
        until = time.monotonic() + wait_s
        while (row := self._row()) and row["state"] in jobs.ACTIVE and time.monotonic() < until:
            await asyncio.sleep(POLL_S)

    async def _await_chat(self, client: Client, fault: str, own: random.Random) -> None:
        self._calls.add(asyncio.create_task(self._chat(client)))
        wait_s = own.uniform(0, 0.6 * self._usual[CHAT].seconds)
        self._line["moment"] = f"{wait_s:.2f} s after the call"
        until = time.monotonic() + STUCK_S
        while fault == "kill_host" and not protocol.find_host(self._world.workspace) and time.monotonic() < until:
            await asyncio.sleep(POLL_S)
        until = time.monotonic() + wait_s
        while any(not task.done() for task in self._calls) and time.monotonic() < until:
            await asyncio.sleep(POLL_S)

    def _kind(self) -> str:
        return self._scene.kind if self._scene else CHAT

    def _row(self) -> Row | None:
        return self._world.workspace.store.job(self._job_id) if self._job_id else None

    def _progress(self) -> str:
        row = self._row()
        return f"{row['state']}: {(row['progress'] or {}).get('phase')}" if row else ""

    # Afterwards

    async def _recover(self, client: Client) -> None:
        """After the fault: the work goes on or is resumed, the invariants hold, and tools answer."""
        began, found = time.monotonic(), list[str]()
        if self._scene is None:
            found += await self._answered(client)
        else:
            if self._job_id is None:
                self._new_job()
            found += await self._settle(client)
        self._strikes_left -= 1 if self._line["struck"] else 0
        row = self._row()
        if row and (self._strikes_left <= 0 or row["state"] == jobs.State.SUCCEEDED):
            found += await self._end(client)
            row = None
        found += await self._wrong(at_rest=row is None)
        tool, arguments = self._rng.choice(READS)
        found += await self._call(client, tool, **arguments)
        line = self._line | {"s": round(time.monotonic() - began, 1), "violations": found}
        self._say(json.dumps(line))
        self.tally.violations += [f"round {line['round']}, {line['fault']} on {line['kind']}: {text}" for text in found]
        self._line = {}

    async def _call(self, client: Client, tool: str, **arguments: Any) -> list[str]:
        """A call that must be answered in its turn; returns what was wrong with it."""
        try:
            async with asyncio.timeout(60):
                await call(client, tool, **arguments)
        except TimeoutError:
            return [f"{tool} did not answer"]
        except (ToolFailed, MCPError) as error:
            return [f"{tool} failed: {error}"]
        return []

    async def _settle(self, client: Client) -> list[str]:
        """Until the job's worker lives or it has succeeded; one that failed or was interrupted is resumed."""
        found, resumes, until = list[str](), 0, time.monotonic() + STUCK_S
        while (row := self._row()) and time.monotonic() < until:
            found += await self._call(client, "get_status", job_id=row["id"])
            row = self._world.workspace.store.job(row["id"])
            if row["state"] == jobs.State.SUCCEEDED or (row["state"] in jobs.ACTIVE and jobs.is_worker_alive(row)):
                return found
            if row["state"] in jobs.RESUMABLE:
                resumes += 1
                if row["state"] == jobs.State.FAILED:
                    found += self._judge(row)
                found += await self._call(client, "resume_job", job_id=row["id"])
            if resumes > MAX_RESUMES or found:
                break
            await asyncio.sleep(POLL_S)
        return [*found, f"{row['id']} did not go on: {row['state']}, {row['error']}"] if row else found

    def _judge(self, row: Row) -> list[str]:
        """A failure is right after a fault that excuses it, once, and never in words that nobody had foreseen."""
        error = row["error"]
        was_excused, self._excused = self._excused and error["code"] != "internal_error", False
        self._line.setdefault("errors", []).append(error["code"])
        return [] if was_excused else [f"{row['id']} failed without a reason: {error['code']}: {error['what']}"]

    async def _end(self, client: Client) -> list[str]:
        """The job to its end, undisturbed, and compared with what came of it the first time."""
        found, until = list[str](), time.monotonic() + STUCK_S
        while (row := self._row()) and row["state"] != jobs.State.SUCCEEDED and not found:
            found += await self._settle(client)
            if time.monotonic() > until:
                found.append(f"{row['id']} is stuck: {row['state']}, {row['progress']}")
            await asyncio.sleep(0.02)
        await self._calls_answered()
        row, scene = self._row(), self._scene
        if row and scene and row["state"] == jobs.State.SUCCEEDED:
            if scene.outcome(self._world, row) == self._usual[scene.kind].outcome:
                self.tally.equal[scene.kind] += 1
            else:
                found.append(f"{row['id']} ended otherwise than undisturbed")
            found += await self._until_report(row)
        elif row and not found:
            found.append(f"{row['id']} did not succeed")
        self._scene = self._job_id = None
        if row and row["state"] in jobs.ACTIVE:
            found += await self._call(client, "cancel_job", job_id=row["id"])
        return [*found, *await self._clean(client)]

    async def _calls_answered(self) -> None:
        """Those that began a job answer when it has ended, or after 40 s."""
        await asyncio.gather(*self._calls, return_exceptions=True)
        self._calls.clear()

    async def _until_report(self, row: Row) -> list[str]:
        """A worker writes its job's page once the job has succeeded: it must end soon after."""
        until = time.monotonic() + STUCK_S
        while jobs.is_worker_alive(row):
            if time.monotonic() > until:
                return [f"the worker of {row['id']} does not end"]
            await asyncio.sleep(POLL_S)
        return []

    async def _clean(self, client: Client) -> list[str]:
        """Makes room: what the job made goes, and the stand-ins forget."""
        world, found = self._world, list[str]()
        for row in world.workspace.store.artifacts():
            if row["id"] not in world.kept:
                found += await self._call(client, "delete_artifact", artifact_id=row["id"], confirm=True)
        world.hub.repositories.clear()
        world.hub.stored.clear()
        world.ollama.models.clear()
        world.ollama.blobs.clear()
        return found

    async def _wrong(self, *, at_rest: bool) -> list[str]:
        """The violations that do not go away by themselves within the grace."""
        until = time.monotonic() + GRACE_S
        while True:
            found = violations(self._world, self._server, self._submitted, at_rest=at_rest)
            if not found or time.monotonic() > until:
                return found
            await asyncio.sleep(0.2)

    async def _finish(self, client: Client) -> None:
        if self._job_id:
            self.tally.violations += await self._end(client)
        self.tally.violations += await self._wrong(at_rest=True)

    # Chats

    async def _chat(self, client: Client) -> Answer:
        answer = await call(
            client, "chat_with_adapter", adapter_id=self._world.adapter_id, prompt=QUESTION, temperature=0,
            max_new_tokens=48,
        )  # fmt: skip
        return {"text": answer["tuned"]["text"]}

    async def _answered(self, client: Client) -> list[str]:
        """The chat that was struck has ended, one way or another; the next one answers as always."""
        if self._calls:
            _, left = await asyncio.wait(self._calls, timeout=STUCK_S)
            if left:
                return ["a chat neither answers nor fails"]
            for task in self._calls:
                error = task.exception()
                self._line.setdefault("errors", []).append(str(error)[:100] if error else "none")
            self._calls.clear()
        try:
            async with asyncio.timeout(STUCK_S):
                answer = await self._chat(client)
        except (ToolFailed, TimeoutError) as error:
            return [f"the chat after it failed: {error!r}"]
        return [] if answer == self._usual[CHAT].outcome else [f"the chat after it says otherwise: {answer}"]


def _server() -> int:
    """The pid of the server that this process started last and that lives."""
    alive = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    servers = [child for child in alive if "tunewright.server" in child.cmdline()]
    return max(servers, key=lambda child: child.create_time()).pid

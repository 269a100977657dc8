"""From documents to examples with another model as the teacher: ask, check, judge, and make the dataset in one go.

Guarantees: what was answered is never asked for again, whatever was killed (see `journal`); the dataset is made once,
whole, at the end; a cancelled or failed job leaves none, and goes on from its journal when it is resumed. Does not
guarantee `count` examples: a chunk has only so much to say, and the result tells what was rejected and why.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any, Literal

from tunewright.pipeline.context import JobContext
from tunewright.pipeline.data import authored, cleaning, languages, rows
from tunewright.pipeline.documents import reading
from tunewright.pipeline.documents.reading import Chunk
from tunewright.pipeline.errors import InvalidInput, Unavailable, call
from tunewright.pipeline.generation import prompts
from tunewright.pipeline.generation.collection import Collection, Place
from tunewright.pipeline.generation.endpoint import Endpoint
from tunewright.pipeline.generation.journal import Entry, Journal
from tunewright.pipeline.generation.teacher import NoAnswer, Teacher

# Below `checkpoints/`, so that cancel_job(keep_checkpoint=false) discards it.
JOURNAL = "checkpoints/answers.jsonl"
POLL_S = 0.25
CONVERSION_S = 3600
# A teacher whose examples are mostly rejected is given up at so many written for each one wanted.
MAX_WRITTEN_PER_EXAMPLE = 3
# Each of them was retried for half a minute before.
MAX_FAILURES_IN_A_ROW = 8
GOLDEN_RATIO = (5**0.5 - 1) / 2


def run(context: JobContext) -> dict[str, Any]:
    """The stage of the job kind `generate_examples`; spec: see `request.check`. Returns the dataset's id and counts.

    Raises NotFound and InvalidInput where the documents are gone or nothing was accepted, Unavailable where the teacher
    is, and Cancelled.
    """
    spec = context.spec
    context.progress("reading the documents")
    # Mostly in the cache since the request.
    found = reading.survey(context.workspace, spec["source"], spec["chunk_tokens"], CONVERSION_S)
    collection = Collection({chunk.id: chunk for chunk in found.chunks}, spec["kind"])
    journal = Journal(context.folder / JOURNAL)
    for entry in journal.entries:
        collection.take(entry)
    if journal.entries:
        context.event(
            "info", "resumed_from", f"{len(journal.entries)} answers are in the journal, {len(collection.accepted)} "
            "examples of them accepted; none of these is asked for again.",
        )  # fmt: skip
    asyncio.run(_ask(context, collection, journal))
    return _make_dataset(context, collection)


async def _ask(context: JobContext, collection: Collection, journal: Journal) -> None:
    endpoint = Endpoint.of(context.spec["endpoint"])
    retry = call("resume_job", job_id=context.job_id)
    async with Teacher(endpoint, context.spec["model"], next=retry) as teacher:
        await Lesson(context, collection, journal, teacher).hold()
        collection.counts.requests += teacher.take_sent()


@dataclass
class Lesson:
    """The asking: `concurrency` requests in flight until `count` examples are accepted or the chunks are dry."""

    context: JobContext
    collection: Collection
    journal: Journal
    teacher: Teacher
    _failed: int = 0
    _failures_in_a_row: int = 0
    _started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._count: int = self.context.spec["count"]
        self._unjudged = list(self.collection.waiting)
        self._places = self._fresh_places()
        self._accepted_before = len(self.collection.accepted)

    async def hold(self) -> None:
        """Asks until the end. Raises Cancelled, Unavailable, NotFound; what was answered by then is in the journal."""
        flying: set[asyncio.Task[None]] = set()
        try:
            while True:
                self.context.check_cancelled()
                self._report()
                while len(flying) < self.context.spec["concurrency"] and (place := self._next(len(flying))):
                    flying.add(asyncio.create_task(self._work(place)))
                if not flying:
                    return
                done, flying = await asyncio.wait(flying, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in flying:
                task.cancel()
            await asyncio.gather(*flying, return_exceptions=True)

    def _next(self, flying: int) -> Place | None:
        """The next example to work on; None while, or once, there is none to ask for."""
        if self._unjudged:
            return self._unjudged.pop()
        wanted = self._count - len(self.collection.accepted) - flying
        written = len(self.collection.written) + self._failed + flying
        if wanted <= 0 or written >= MAX_WRITTEN_PER_EXAMPLE * self._count:
            return None
        return next(self._places, None)

    def _fresh_places(self) -> Iterator[Place]:
        """Places not written yet: one of every chunk, then a second of every chunk, until the chunks are dry."""
        order = spread(list(self.collection.chunks.values()))
        for number in count():
            live = [chunk for chunk in order if not self.collection.is_dry(chunk.id)]
            if not live:
                return
            for chunk in live:
                place = (chunk.id, number)
                if place not in self.collection.written and not self.collection.is_dry(chunk.id):
                    yield place

    async def _work(self, place: Place) -> None:
        """Has an example written (unless the journal has it) and judged."""
        chunk, kind = self.collection.chunks[place[0]], self.collection.kind
        try:
            if place not in self.collection.waiting:
                asked = self.collection.asked.get(chunk.id, [])
                request = prompts.write(chunk, kind, place[1], _language(chunk), asked)
                await self._step("write", place, request, prompts.schema(kind))
            if written := self.collection.waiting.get(place):
                await self._step("judge", place, prompts.judge(chunk, written.statements()))
        except NoAnswer as failure:
            self._failed += 1
            self._failures_in_a_row += 1
            self.collection.rejected.add("no_answer", *place, str(failure), "")
            if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
                raise self._gave_up(failure) from None

    async def _step(
        self,
        step: Literal["write", "judge"],
        place: Place,
        request: prompts.Messages,
        schema: dict[str, Any] | None = None,
    ) -> None:
        reply = await self.teacher.ask(request, schema)
        sent = self.teacher.take_sent()
        entry = Entry(step, *place, reply.text, sent, reply.prompt_tokens, reply.completion_tokens)
        self.journal.append(entry)
        self.collection.take(entry)
        self._failures_in_a_row = 0

    def _report(self) -> None:
        accepted = len(self.collection.accepted)
        rate = (accepted - self._accepted_before) / (time.monotonic() - self._started + 1e-9)
        self.context.progress(
            "asking the teacher", accepted, self._count,
            eta_s=round((self._count - accepted) / rate, 1) if rate else None,
            rejected=dict(self.collection.rejected.counts), **asdict(self.collection.counts),
        )  # fmt: skip

    def _gave_up(self, failure: NoAnswer) -> Unavailable:
        return Unavailable(
            "teacher_failing",
            f"{self._failures_in_a_row} requests in a row got no answer from {self.context.spec['endpoint']}; "
            f"the last: {failure}.",
            allowed="Look at the teacher's server. Lower concurrency or chunk_tokens may help.",
            next=call("resume_job", job_id=self.context.job_id),
            done=f"{len(self.collection.accepted)} accepted examples are kept; no dataset was made.",
        )


def spread(chunks: list[Chunk]) -> list[Chunk]:
    """The chunks in an order every beginning of which is spread evenly over the documents: by the golden ratio."""
    return [chunk for _, chunk in sorted(enumerate(chunks), key=lambda entry: entry[0] * GOLDEN_RATIO % 1)]


def _language(chunk: Chunk) -> str | None:
    (found,) = languages.survey([chunk.text])
    return None if found["language"] == languages.UNKNOWN else found["language"]


def _nothing_accepted(context: JobContext, written: int, reasons: str) -> InvalidInput:
    return InvalidInput(
        "nothing_accepted",
        f"None of {written} examples by {context.spec['model']} was accepted: {reasons}.",
        allowed="A larger teacher, another kind, or documents with more to say.",
        next=call(
            "generate_examples", source=context.spec["source"], model="…", endpoint=context.spec["endpoint"],
            kind="qa", count=10,
        ),
        done="No dataset was made.",
    )  # fmt: skip


def _make_dataset(context: JobContext, collection: Collection) -> dict[str, Any]:
    """The dataset of the accepted examples, or the one that this job had made when it was killed."""
    spec, origin = context.spec, f"generate_examples {context.job_id}"
    context.check_cancelled()
    context.progress("making the dataset", len(collection.accepted), spec["count"], **asdict(collection.counts))
    made = context.workspace.store.rows(
        "SELECT * FROM artifacts WHERE kind='dataset' AND json_extract(document, '$.source')=?", origin
    )
    refused: Counter[str] = Counter()
    if not made:
        examples = [rows.to_json(record) | {"source_chunk": record.source_chunk} for record in collection.accepted]
        appended = authored.append(context.workspace, spec["name"], examples, source=origin)
        refused.update(refusal["reason"] for refusal in appended.refused)
        made = [appended.row] if appended.row else []
    reasons = ", ".join(filter(None, [str(collection.rejected), cleaning.listed(refused) if refused else ""]))
    if not made:
        raise _nothing_accepted(context, len(collection.written), reasons or "it was asked for none")
    held = made[0]["document"]["train_rows"] + made[0]["document"]["eval_rows"]
    if held < spec["count"]:
        context.event("warning", "fewer_than_asked", f"{held} of {spec['count']} examples; rejected: {reasons}.")
    return {
        "dataset_id": made[0]["id"],
        "rows": held,
        "wanted": spec["count"],
        **asdict(collection.counts),
        "rejected": collection.rejections() | {reason: {"count": number} for reason, number in refused.items()},
    }

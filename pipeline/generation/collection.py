"""What has become of the teacher's answers: accepted, waiting for the judge, or rejected, each counted with a reason.

A pure fold over the journal's entries: the same entries in the same order give the same examples, so that a job that
goes on after a kill stands where the killed one stood.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tunewright.pipeline.data import cleaning, mending, near, placeholders
from tunewright.pipeline.data.cleaning import Tally
from tunewright.pipeline.data.rows import Record, Unusable
from tunewright.pipeline.documents.reading import Chunk
from tunewright.pipeline.generation import answers, support
from tunewright.pipeline.generation.answers import Written
from tunewright.pipeline.generation.journal import Entry
from tunewright.pipeline.generation.prompts import ExampleKind

# After so many rejected in a row a chunk is taken to have nothing more to give.
DRY_AFTER = 3

Place = tuple[str, int]
"""A chunk's id and the number of the example asked for from it."""


@dataclass
class Counts:
    """What was sent and what it cost."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class Collection:
    """The examples of a job. `waiting` are those written and not yet judged."""

    chunks: dict[str, Chunk]
    kind: ExampleKind
    counts: Counts = field(default_factory=Counts)
    accepted: list[Record] = field(default_factory=list[Record])
    waiting: dict[Place, Written] = field(default_factory=dict[Place, Written])
    rejected: Tally = field(default_factory=Tally)
    written: set[Place] = field(default_factory=set[Place])
    asked: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    _misses: Counter[str] = field(default_factory=Counter[str])
    _prompts: set[bytes] = field(default_factory=set[bytes])
    _alike: near.Index = field(default_factory=near.Index)

    def take(self, entry: Entry) -> None:
        """Takes the next answer. One about a chunk that is no longer there (its document has changed) only counts."""
        self.counts.requests += entry.requests
        self.counts.prompt_tokens += entry.prompt_tokens
        self.counts.completion_tokens += entry.completion_tokens
        if entry.chunk not in self.chunks:
            return
        place, shown = (entry.chunk, entry.number), entry.text
        try:
            if entry.step == "write":
                self.written.add(place)
                self.waiting[place] = self._checked(entry)
            elif place in self.waiting:
                shown = self.waiting[place].exchanges[-1][1]
                self._judge(place, entry.text)
        except Unusable as why:
            self.rejected.add(why.reason, entry.chunk, entry.number, str(why), shown)
            self._misses[entry.chunk] += 1

    def is_dry(self, chunk_id: str) -> bool:
        return self._misses[chunk_id] >= DRY_AFTER

    def rejections(self) -> dict[str, dict[str, Any]]:
        """`{reason: {"count": …, "example": {"chunk": …, "why": …, "text": …}}}`, the commonest first."""
        return {
            reason: {"count": entry["count"], "example": _example(entry["examples"])}
            for reason, entry in self.rejected.to_dict().items()
        }

    def _checked(self, entry: Entry) -> Written:
        """What was written, once it reads well, stands in the chunk and is new. Raises Unusable."""
        written = answers.read(self.kind, entry.chunk, entry.text)
        record, chunk = written.record, self.chunks[entry.chunk]
        text = "\n".join([chunk.document, *chunk.headings, chunk.text])
        # What `authored` would refuse in the end is told now, while another can be asked for.
        for said in cleaning.texts_of(record):
            if mending.control_tokens(said):
                raise Unusable("control_tokens", "a control token of chat templates stands in the text")
            if placeholders.find(said):
                raise Unusable("placeholders", "a placeholder in double braces stands in the text")
        for question, answer in written.exchanges:
            if lacking := support.missing(answer, question, text):
                raise Unusable("unsupported", lacking)
        prompt = cleaning.prompt_fingerprint(record)
        if prompt in self._prompts:
            raise Unusable("duplicate", "the same was asked before")
        if self._alike.find(record) is not None:
            raise Unusable("near_duplicate", "nearly the same was written before")
        self._prompts.add(prompt)
        self._alike.add(record)
        self.asked.setdefault(entry.chunk, []).append(written.exchanges[0][0])
        return written

    def _judge(self, place: Place, verdict: str) -> None:
        written = self.waiting.pop(place)
        is_supported = answers.is_supported(verdict)
        if is_supported is None:
            raise Unusable("unclear_verdict", "the judge said neither yes nor no")
        if not is_supported:
            raise Unusable("judged_unsupported", "the judge found a statement that the text does not support")
        self.accepted.append(written.record)
        self._misses[place[0]] = 0


def _example(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first = examples[0]
    return {"chunk": first["file"], "why": cleaning.shortened(first["why"], 200), "text": first["text"]}

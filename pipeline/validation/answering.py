"""Base and tuned at work on the samples: their answers, and the loss of the reference's tokens. Heavy.

Guarantees greedy answers, and that what is in the journal is never asked for again. Samples go through the engine in
parts of PART, always the same ones: a part that a kill interrupts is done again whole, because in a batch of another
composition rounding may turn a close choice. So a job that was killed ends with the very numbers of one that was not.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.inference.engine import Engine
from tunewright.pipeline.inference.requests import Request
from tunewright.pipeline.inference.subject import Subject
from tunewright.pipeline.validation.journal import Journal
from tunewright.pipeline.validation.samples import Sample

Side = Literal["tuned", "base"]
SIDES: tuple[Side, ...] = ("tuned", "base")
PART = 16
# Below `checkpoints/`, so that cancel_job(keep_checkpoint=false) discards it.
JOURNAL = "checkpoints/measured.jsonl"
REPORT_EVERY_S = 1.0


@dataclass(frozen=True)
class Measured:
    """One model on one sample: `ids` as generated, with the end token if it came, `stopped` whether it came; `loss` the
    summed nats of the reference's tokens and their number. None where there was nothing to generate or to score.
    """

    ids: list[int] | None
    stopped: bool
    loss: tuple[float, int] | None


def measure(
    context: JobContext, subject: Subject, template: ChatTemplate, samples: Sequence[Sample], max_new_tokens: int
) -> dict[Side, list[Measured]]:
    """What tuned and base make of each sample, in the samples' order. Raises Cancelled, also between two tokens."""
    journal = Journal(context.folder / JOURNAL)
    # Answers of like length end together; the longest first, so that memory runs out at once or never.
    order = sorted(range(len(samples)), key=lambda i: (-_length(samples[i]), i))
    parts = [order[begin : begin + PART] for begin in range(0, len(order), PART)]
    if len(journal):
        context.event(
            "info", "resumed_from", f"{len(journal)} of {2 * len(parts)} parts are in the journal; none is done again."
        )
    engine, progress = Engine(), _Progress(context, 2 * len(samples))
    try:
        for side in SIDES:
            model = subject if side == "tuned" else subject.untrained
            missing = [number for number in range(len(parts)) if f"{side}/{number}" not in journal]
            progress.skip(len(samples) - sum(len(parts[number]) for number in missing))
            if missing:
                context.progress("loading the model")
                engine.load(model)
            for number in missing:
                chosen = [samples[i] for i in parts[number]]
                journal.append(f"{side}/{number}", _work(engine, model, template, chosen, max_new_tokens, progress))
    finally:
        engine.unload()
    return {side: _collected(journal, side, parts) for side in SIDES}


def _length(sample: Sample) -> int:
    return max(len(sample.prompt), len(sample.scored[0]) if sample.scored else 0)


def _collected(journal: Journal, side: Side, parts: Sequence[Sequence[int]]) -> list[Measured]:
    """From parts to samples in their order."""
    by_sample: dict[int, Measured] = {}
    for number, part in enumerate(parts):
        for i, held in zip(part, journal[f"{side}/{number}"], strict=True):
            by_sample[i] = Measured(held["ids"], held["stopped"], tuple(held["loss"]) if held["loss"] else None)
    return [by_sample[i] for i in range(len(by_sample))]


def _work(
    engine: Engine, model: Subject, template: ChatTemplate, samples: Sequence[Sample], max_new_tokens: int,
    progress: "_Progress",
) -> list[dict[str, Any]]:  # fmt: skip
    """One part through one model, as the journal keeps it."""
    adapter_id = model.adapter_id if model.adapter_path else None
    ends = engine.ends(template)
    asked = [i for i, sample in enumerate(samples) if sample.prompt]
    written: Counter[int] = Counter()

    def on_token(index: int, token: int) -> bool:
        written[index] += 1
        progress.take_token(ended=token in ends or written[index] == max_new_tokens)
        return True

    progress.begin()
    requests = [Request(samples[i].prompt, max_new_tokens, ends) for i in asked]
    made = engine.generate(requests, adapter_id=adapter_id, on_token=on_token, check=progress.check) if asked else []
    answers = dict(zip(asked, made, strict=True))
    scored = [i for i, sample in enumerate(samples) if sample.scored]
    rows = [row for sample in samples if (row := sample.scored)]
    summed = engine.losses(rows, adapter_id=adapter_id, check=progress.check) if scored else []
    losses = dict(zip(scored, summed, strict=True))
    progress.end(len(samples))
    return [
        {
            "ids": answers[i].ids if i in answers else None,
            "stopped": i in answers and answers[i].ended == "stop",
            "loss": losses.get(i),
        }
        for i in range(len(samples))
    ]


class _Progress:
    """How far the work is, told once a second, and the ear for a cancel: `check` is called at every token.

    The work is counted in answers (of a text in scores), of which a part's last ones take the longest.
    """

    def __init__(self, context: JobContext, total: int) -> None:
        self._context, self._total = context, total
        self._skipped = self._done = self._ended = self._tokens = 0
        self._seconds = 0.0
        self._began = self._told = time.monotonic()

    def skip(self, count: int) -> None:
        """So many were done before this process began."""
        self._skipped += count

    def begin(self) -> None:
        """A part begins; loading, before it, is not counted. Raises Cancelled."""
        self._context.check_cancelled()
        self._began = time.monotonic()

    def end(self, count: int) -> None:
        self._seconds += time.monotonic() - self._began
        self._done += count
        self._ended = 0
        self._tell()

    def take_token(self, *, ended: bool) -> None:
        self._tokens += 1
        self._ended += ended

    def check(self) -> None:
        """Raises Cancelled."""
        if time.monotonic() - self._told > REPORT_EVERY_S:
            self._context.check_cancelled()
            self._seconds += time.monotonic() - self._began
            self._began = time.monotonic()
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        done = self._done + self._ended
        left = self._total - self._skipped - done
        self._context.progress(
            "answering", self._skipped + done, self._total,
            eta_s=round(self._seconds / done * left, 1) if done else None, tokens=self._tokens,
            tokens_per_s=round(self._tokens / self._seconds, 1) if self._seconds else None,
        )  # fmt: skip

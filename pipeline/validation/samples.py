"""What base and tuned are compared on: rows drawn from a split, or prompts. Light.

Guarantees that the same spec draws the same samples, spread over the whole split, each prompt once, and that every
sample fits into the model's context with its answer. What does not fit, or what the chat template refuses, is replaced
by another row and counted.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from tunewright.pipeline.chat_template import ChatTemplate, Message, Tools
from tunewright.pipeline.data import splits
from tunewright.pipeline.data.rows import Record
from tunewright.pipeline.errors import InvalidInput
from tunewright.pipeline.inference import answers

SEED = 42


@dataclass(frozen=True)
class Sample:
    """`index` is the row's number in its split, or the prompt's in the request; `messages` go up to the answer.

    `reference` is the answer that the data gives, free of control tokens and thinking; None where it gives none.
    `scored` are the token ids of the prompt with that answer (or of a text), and a mask of the same length: 1 where the
    model is to predict. `prompt` are the ids to go on from, empty for a text, which is only scored.
    """

    index: int
    messages: list[Message]
    prompt: list[int]
    reference: str | None
    reference_thinks: bool
    scored: tuple[list[int], list[int]] | None

    @property
    def question(self) -> str:
        """The last thing the user said."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")

    @property
    def reference_tokens(self) -> int | None:
        return sum(self.scored[1]) if self.scored else None


@dataclass
class Drawn:
    """The samples in the order of their rows, and rows that were looked at and left out, by reason."""

    samples: list[Sample]
    left_out: Counter[str] = field(default_factory=Counter[str])

    @property
    def reasons(self) -> str:
        """`2 too long, 1 repeated`."""
        return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in self.left_out.most_common())


@dataclass(frozen=True)
class Room:
    """How long a sample may be: the model's context and what is kept free of it for an answer."""

    context_tokens: int
    max_new_tokens: int

    def holds(self, sample: Sample) -> bool:
        answered = len(sample.prompt) + self.max_new_tokens if sample.prompt else 0
        return max(answered, len(sample.scored[0]) if sample.scored else 0) <= self.context_tokens


def from_prompts(prompts: Sequence[str], template: ChatTemplate, room: Room) -> Drawn:
    """Each prompt as a user's first message. Raises InvalidInput where the template takes none."""
    drawn = Drawn([])
    for index, text in enumerate(prompts):
        messages: list[Message] = [{"role": "user", "content": text}]
        sample = Sample(index, messages, _prompt_ids(template, messages, ()), None, False, None)
        if room.holds(sample):
            drawn.samples.append(sample)
        else:
            drawn.left_out["too_long"] += 1
    return drawn


def from_split(file: Path, template: ChatTemplate, room: Room, count: int) -> Drawn:
    """At most `count` samples of a split's Parquet file: one from each of `count` equal parts, where its rows serve."""
    drawn, seen = Drawn([]), set[tuple[int, ...]]()
    for index in _order(splits.count_rows(file), count):
        (record,) = splits.load_slice(file, index, 1)
        sample = _sample(index, record, template, room.context_tokens)
        reason = sample if isinstance(sample, str) else None if room.holds(sample) else "too_long"
        if isinstance(sample, Sample) and reason is None:
            key = tuple(sample.prompt or (sample.scored or ([], []))[0])
            reason = "repeated" if key in seen else None
            if reason is None:
                seen.add(key)
                drawn.samples.append(sample)
        if reason:
            drawn.left_out[reason] += 1
        if len(drawn.samples) == count:
            break
    drawn.samples.sort(key=lambda sample: sample.index)
    return drawn


def _order(rows: int, count: int) -> Iterator[int]:
    """One row of each of `count` equal parts, then all others, for those that cannot be used."""
    chance = random.Random(SEED)
    if rows <= count:
        yield from range(rows)
        return
    bounds = [rows * part // count for part in range(count + 1)]
    first = [chance.randrange(begin, end) for begin, end in pairwise(bounds)]
    yield from first
    others = sorted(set(range(rows)) - set(first))
    chance.shuffle(others)
    yield from others


def _sample(index: int, record: Record, template: ChatTemplate, context_tokens: int) -> Sample | str:
    """The sample that a row makes, or why it makes none."""
    if record.kind == "text":
        ids = template.document_ids(record.text)[:context_tokens]
        # The first token is never predicted.
        return Sample(index, [], [], None, False, (ids, [0] + [1] * (len(ids) - 1))) if len(ids) > 1 else "too_short"
    if record.label is False:
        return "unwanted_answer"
    conversation = [*record.messages, *record.chosen]
    last = max((i for i, m in enumerate(conversation) if m["role"] == "assistant"), default=None)
    try:
        if last is None:
            return Sample(index, conversation, _prompt_ids(template, conversation, record.tools), None, False, None)
        messages = conversation[:last]
        prompt = _prompt_ids(template, messages, record.tools)
        ids, mask = _last_answer(*template.encode(conversation[: last + 1], record.tools))
    except InvalidInput:
        return "template_refused"
    if not any(mask):
        return "template_refused"
    # As the answers of the models are read, so that a thought or a call of a tool is compared with its like.
    said, thought = answers.split(template, [i for i, m in zip(ids, mask, strict=True) if m])
    return Sample(index, messages, prompt, said, bool(thought), (ids, mask))


def _prompt_ids(template: ChatTemplate, messages: Sequence[Message], tools: Tools) -> list[int]:
    return template.ids(template.render(messages, tools=tools, add_generation_prompt=True))


def _last_answer(ids: list[int], mask: list[int]) -> tuple[list[int], list[int]]:
    """The mask of the last answer alone: earlier ones are part of what is asked."""
    end = next((i + 1 for i in range(len(mask) - 1, -1, -1) if mask[i]), 0)
    begin = end
    while begin > 1 and mask[begin - 1]:
        begin -= 1
    return ids, [int(begin <= i < end) for i in range(len(ids))]


def cut_references(template: ChatTemplate, drawn: Sequence[Sample], max_new_tokens: int) -> int:
    """How many samples have a reference that is longer than an answer may become."""
    return sum(len(template.ids(sample.reference)) > max_new_tokens for sample in drawn if sample.reference)

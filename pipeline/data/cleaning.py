"""What is left out of a dataset and why, and what in the kept rows deserves a warning."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunewright.pipeline.data.layouts import Message, shortened

MAX_EXAMPLES = 3
EXAMPLE_CHARACTERS = 160
FEW_ROWS = 100

PLACEHOLDER = re.compile(r"\{\{\s*[\w.-]+\s*\}\}")
# What the templates of the known models write themselves: ChatML, Llama 3 and Phi; DeepSeek, whose bars (U+FF5C) are
# wide ones; Gemma; Llama 2 and Mistral. Left in the data, a model learns to print them.
CONTROL_TOKEN = re.compile(
    r"<\|[A-Za-z]\w{1,40}\|>|<\uff5c[^<>\uff5c]{1,40}\uff5c>|</?(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|</s>|<(?:bos|eos)>"
)


@dataclass
class Drops:
    """Rows left out, counted by reason, the first few of each shown."""

    counts: Counter[str] = field(default_factory=Counter[str])
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict[str, list[dict[str, Any]]])

    def add(self, reason: str, file: str, row: int, why: str, value: object) -> None:
        """`row` is the row's number in `file`, `value` what stood there."""
        self.counts[reason] += 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < MAX_EXAMPLES:
            shown.append({"file": file, "row": row, "why": why, "text": shortened(value, EXAMPLE_CHARACTERS)})

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """`{reason: {"count": …, "examples": […]}}`, only of reasons that occurred."""
        return {
            reason: {"count": count, "examples": self.examples.get(reason, [])}
            for reason, count in self.counts.items()
            if count
        }

    def __str__(self) -> str:
        """`3 malformed (the last turn is the user's …), 1 empty (…)`, with the first reason of each."""
        return ", ".join(
            f"{count} {reason} (file {shown[0]['file']}, row {shown[0]['row']}: {shown[0]['why']})"
            for reason, count in self.counts.items()
            if (shown := self.examples.get(reason))
        )


def fingerprint(messages: Sequence[Message]) -> bytes:
    """The same for conversations that differ in white space alone."""
    normal = "\x00".join(f"{message['role']}\x01{' '.join(message['content'].split())}" for message in messages)
    return hashlib.blake2b(normal.encode("utf-8"), digest_size=16).digest()


@dataclass(frozen=True)
class Suspects:
    """Placeholders and control tokens found in one row."""

    placeholders: frozenset[str]
    control_tokens: frozenset[str]


def suspects(messages: Iterable[Message]) -> Suspects | None:
    """What in the row was hardly meant to be learnt, or None."""
    placeholders: set[str] = set()
    control_tokens: set[str] = set()
    for message in messages:
        text = message["content"]
        # Looking for one character first is many times faster than the patterns.
        if "{" in text:
            placeholders.update(PLACEHOLDER.findall(text))
        if "<" in text or "[" in text:
            control_tokens.update(CONTROL_TOKEN.findall(text))
    if placeholders or control_tokens:
        return Suspects(frozenset(placeholders), frozenset(control_tokens))
    return None


def warnings(rows: int, eval_rows: int, eval_fraction: float, found: Iterable[Suspects]) -> list[str]:
    """What the agent should know before it trains on `rows` rows in which `found` was found."""
    texts: list[str] = []
    if rows < FEW_ROWS:
        texts.append(
            f"Only {rows} rows: fewer than {FEW_ROWS} is thin, 1,000 or more are preferred; quality beats number."
        )
    if eval_fraction > 0 and eval_rows == 0:
        texts.append(f"No rows are held out for evaluation: {rows} rows are too few for eval_fraction={eval_fraction}.")
    placeholders: Counter[str] = Counter()
    control_tokens: Counter[str] = Counter()
    for row in found:
        placeholders.update(row.placeholders)
        control_tokens.update(row.control_tokens)
    if placeholders:
        texts.append(
            f"Placeholders will be learnt as they stand: {_listed(placeholders)}. Replace them in the source first."
        )
    if control_tokens:
        texts.append(
            f"Control tokens of chat templates stand in the data: {_listed(control_tokens)}. "
            "A model trained on them prints them; remove them from the source first."
        )
    return texts


def _listed(counts: Counter[str]) -> str:
    shown = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    more = f" and {len(shown) - 10} others" if len(shown) > 10 else ""
    return ", ".join(f"{text} in {count} row{'s' * (count != 1)}" for text, count in shown[:10]) + more

"""How long the rows of a dataset are, in tokens: counted by a model's own encoding, or estimated from the letters.

Guarantees that a counted row has the length that the trainer gives it. An estimate is for plans alone: fair for the
sum of a dataset (see `TOKENS_PER_MATCH`), for a single row up to a third off.
"""

import math
import re
from bisect import bisect_left
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tunewright.pipeline.data.rows import Message, Record, calls_as_text
from tunewright.pipeline.errors import InvalidInput

if TYPE_CHECKING:
    from tunewright.pipeline.chat_template import ChatTemplate

MAX_COUNTED_ROWS = 5000
PERCENTILES = (50, 90, 95, 99)
SEQUENCE_LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
SHORTEST_BIN = 16

# Tokens per character (marks and line breaks: per run), fitted by least squares to what Qwen's tokenizer counts on
# English chat and web text, Chinese exam questions, Python, and the translated messages of Debian's programs in 30
# languages (digits and emoji are set by hand). On these same texts estimates of whole sets are within 11 % for English,
# Chinese, Japanese, Korean, Russian, German, French, Spanish, Portuguese, Italian, Arabic, Hindi, Thai and code, where
# characters / 4 is off by -75 to +22 %, and within 35 % for smaller languages in Latin or Cyrillic letters. The older
# tokenizer of Mistral 7B (32,000 tokens, as Llama 2's) takes 10 to 60 % more.
TOKENS_PER_MATCH = tuple(
    (re.compile(form), tokens)
    for form, tokens in {
        "[0-9]": 1.0,
        r"[!-/:-@\[-`{-~]+": 0.84,
        r"\n\s*": 0.95,
        "[\u00c0-\u024f\u1e00-\u1eff]": 0.7,  # Latin with marks
        "[\u0370-\u03ff]": 1.0,  # Greek
        "[\u0400-\u052f]": 0.38,  # Cyrillic
        "[\u0590-\u06ff]": 0.46,  # Hebrew, Arabic
        "[\u0530-\u058f\u0900-\u0dff\u0e80-\u10ff\u1780-\u17ff]": 1.17,  # Armenian, Indic, Burmese, Khmer
        "[\u0e00-\u0e7f]": 0.57,  # Thai
        "[\u3040-\u30ff]": 0.69,  # kana
        "[\u3400-\u9fff]": 0.76,  # Han
        "[\uac00-\ud7af]": 0.87,  # Hangul
        "[\U00010000-\U0010ffff]": 2.0,  # emoji, rare scripts
    }.items()
)
LETTERS = re.compile("[A-Za-z]")
ENGLISH_LETTER, OTHER_LETTER = 0.21, 0.31
WORDS = re.compile("[A-Za-z]+")
ENGLISH_WORDS = re.compile(r"\b(?:the|of|and|to|is|in|for|that|a)\b", re.IGNORECASE)
ENGLISH_SHARE = 0.08
# ChatML writes `<|im_start|>role\n … <|im_end|>\n` around a message.
TOKENS_PER_MESSAGE = 5


def sample(count: int, limit: int = MAX_COUNTED_ROWS) -> list[int]:
    """At most `limit` of the numbers 0 … count - 1, evenly spread."""
    return [i * count // limit for i in range(limit)] if count > limit else list(range(count))


def estimate(records: Iterable[Record], rows: int) -> dict[str, Any]:
    """Token statistics of `records`, a sample of a dataset of `rows`, without a tokenizer: see `count` for the keys."""
    lengths = [_estimated(record) for record in records]
    return {"estimated": True, "counted_by": "characters by script", **_summary(lengths, rows)}


def count(template: "ChatTemplate", model: str, records: Iterable[Record], rows: int) -> dict[str, Any]:
    """Token statistics of `records`, a sample of a dataset of `rows`, by the trainer's own encoding.

    A pair is as long as the longer of its two conversations. Keys: `p50` … `p99`, `max` and `mean` in tokens per row,
    `total` for all `rows`, `loss_share` (of the tokens, those that carry loss), `histogram`
    (`[{"from": 128, "to": 192, "rows": …}]`, `to` not included, rows of the sample), `fits`
    (`{"2048": {"rows": …, "tokens": …}}`: the shares of rows that are whole, and of tokens that are kept, when rows are
    cut at so many tokens). Rows that the template refuses are not counted. Raises InvalidInput where it refuses all.
    """
    lengths: list[int] = []
    with_loss = 0
    refused: InvalidInput | None = None
    for record in records:
        try:
            length, loss = _encoded(template, record)
        except InvalidInput as error:
            refused = error
            continue
        lengths.append(length)
        with_loss += loss
    if refused is not None and not lengths:
        raise refused
    statistics = {"estimated": False, "counted_by": model, **_summary(lengths, rows)}
    statistics["loss_share"] = round(with_loss / max(1, sum(lengths)), 4)
    return statistics


def _encoded(template: "ChatTemplate", record: Record) -> tuple[int, int]:
    """Tokens of a row, and how many of them carry loss; of a pair, those of its longer conversation."""
    if record.kind == "text":
        length = len(template.ids(record.text))
        return length, length
    if record.kind != "preference":
        ids, mask = template.encode(record.messages, record.tools)
        return len(ids), sum(mask)
    halves = [template.encode([*record.messages, *half], record.tools) for half in (record.chosen, record.rejected)]
    ids, mask = max(halves, key=lambda half: len(half[0]))
    # Earlier answers belong to the prompt of a pair: only what is judged carries loss.
    answered = any(message["role"] == "assistant" for message in record.messages)
    before = sum(template.encode(record.messages, record.tools)[1]) if answered else 0
    return len(ids), max(0, sum(mask) - before)


def _estimated(record: Record) -> int:
    if record.kind == "text":
        return _tokens(record.text)
    prompt = _said(record.messages)
    return prompt + max(_said(record.chosen), _said(record.rejected))


def _said(messages: list[Message]) -> int:
    return sum(TOKENS_PER_MESSAGE + _tokens(m["content"]) + _tokens(calls_as_text(m) or "") for m in messages)


def _tokens(text: str) -> int:
    words = len(WORDS.findall(text))
    is_english = len(ENGLISH_WORDS.findall(text)) >= ENGLISH_SHARE * words
    tokens = len(LETTERS.findall(text)) * (ENGLISH_LETTER if is_english else OTHER_LETTER)
    # The first three stand in ASCII too; the other scripts need not be looked for there.
    forms = TOKENS_PER_MATCH[:3] if text.isascii() else TOKENS_PER_MATCH
    return math.ceil(tokens + sum(per_match * len(form.findall(text)) for form, per_match in forms))


def _summary(lengths: list[int], rows: int) -> dict[str, Any]:
    """`lengths` in tokens per row; `total` is scaled up where they are of fewer than `rows` rows."""
    ordered = sorted(lengths)
    summary: dict[str, Any] = {"sampled": len(ordered) < rows, "counted_rows": len(ordered)}
    for percent in PERCENTILES:  # nearest rank
        summary[f"p{percent}"] = ordered[math.ceil(percent / 100 * len(ordered)) - 1]
    mean = sum(ordered) / len(ordered)
    summary |= {"max": ordered[-1], "mean": round(mean, 1), "total": round(mean * rows)}
    return summary | {"histogram": _histogram(ordered), "fits": _fits(ordered)}


def _histogram(ordered: list[int]) -> list[dict[str, int]]:
    """Rows per range of lengths; the ranges grow: 0, 16, 24, 32, 48, 64, 96, 128, …"""
    edges = [0, SHORTEST_BIN]
    while edges[-1] <= ordered[-1]:
        # Powers of two, which sequence lengths are, and the middle between them.
        edges.append(edges[-1] * 3 // 2 if len(edges) % 2 == 0 else edges[-2] * 2)
    bins = [
        {"from": low, "to": high, "rows": bisect_left(ordered, high) - bisect_left(ordered, low)}
        for low, high in pairwise(edges)
    ]
    first = next(i for i, entry in enumerate(bins) if entry["rows"])
    return bins[first:]


def _fits(ordered: list[int]) -> dict[str, dict[str, float]]:
    total = max(1, sum(ordered))
    return {
        str(limit): {
            "rows": round(sum(length <= limit for length in ordered) / len(ordered), 4),
            "tokens": round(sum(min(length, limit) for length in ordered) / total, 4),
        }
        for limit in SEQUENCE_LENGTHS
    }

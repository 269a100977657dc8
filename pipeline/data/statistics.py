"""How long the conversations of a dataset are, in tokens."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunewright.pipeline.chat_template import ChatTemplate

CHARACTERS_PER_TOKEN = 4
MAX_COUNTED_ROWS = 5000
PERCENTILES = (50, 90, 95, 99)


def sample(count: int, limit: int = MAX_COUNTED_ROWS) -> list[int]:
    """At most `limit` of the numbers 0 … count - 1, evenly spread."""
    return [i * count // limit for i in range(limit)] if count > limit else list(range(count))


def estimate(characters: Sequence[int]) -> dict[str, Any]:
    """Token statistics of conversations of so many characters, at four characters a token.

    Fair for English; Chinese has one to two characters a token, so that its estimates are far too low.
    """
    lengths = [math.ceil(count / CHARACTERS_PER_TOKEN) for count in characters]
    return {"estimated": True, "counted_by": "characters / 4", **_summary(lengths, len(lengths))}


def count(
    template: "ChatTemplate", model: str, conversations: Iterable[Sequence[dict[str, str]]], rows: int
) -> dict[str, Any]:
    """Token statistics of `conversations`, a sample of a dataset of `rows`, by the trainer's own encoding.

    `loss_share` is the share of tokens that carry loss. Raises InvalidInput where the template refuses a conversation.
    """
    lengths: list[int] = []
    with_loss = 0
    for messages in conversations:
        ids, mask = template.encode(messages)
        lengths.append(len(ids))
        with_loss += sum(mask)
    statistics = {"estimated": False, "counted_by": model, **_summary(lengths, rows)}
    statistics["loss_share"] = round(with_loss / sum(lengths), 4)
    return statistics


def _summary(lengths: list[int], rows: int) -> dict[str, Any]:
    """`lengths` in tokens per conversation; `total` is scaled up where they are of fewer than `rows` conversations."""
    ordered = sorted(lengths)
    summary: dict[str, Any] = {"sampled": len(ordered) < rows, "counted_rows": len(ordered)}
    for percent in PERCENTILES:  # nearest rank
        summary[f"p{percent}"] = ordered[math.ceil(percent / 100 * len(ordered)) - 1]
    mean = sum(ordered) / len(ordered)
    return summary | {"max": ordered[-1], "mean": round(mean, 1), "total": round(mean * rows)}

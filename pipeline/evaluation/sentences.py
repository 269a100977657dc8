"""A comparison in a plain sentence. Never "better" or "worse" where the interval holds zero."""

from collections.abc import Mapping
from typing import Literal

from tunewright.pipeline.evaluation.statistics import Interval


def comparison(
    differences: Mapping[str, Interval],
    *,
    better: Mapping[str, Literal["higher", "lower"]],
    labels: Mapping[str, str],
    tuned: str = "Tuned",
) -> str:
    """Tells the paired differences (tuned minus base) of several metrics; names as in `labels`, else the metric's own.

    "Tuned is better on chrF by 12.3 [8.1, 16.4] and loss by 0.52 [0.31, 0.70]; worse on length by …; no difference
    shown in ROUGE-L." Amounts are in the metric's unit and positive in the direction that is told. `tuned` begins the
    sentence.
    """
    told: dict[str, list[str]] = {"better": [], "worse": [], "same": []}
    for name, difference in differences.items():
        label = labels.get(name, name)
        good = difference.sign * (1 if better[name] == "higher" else -1)
        if good == 0:
            told["same"].append(label)
        else:
            told["better" if good > 0 else "worse"].append(f"{label} by {amount(difference)}")
    parts = [f"{word} on {_and(told[word])}" for word in ("better", "worse") if told[word]]
    if told["same"]:
        none = f"o difference shown in {_and(told['same'])}"
        if not parts:
            return f"N{none}."
        parts.append(f"n{none}")
    return f"{tuned} is {'; '.join(parts)}." if parts else "Nothing was compared."


def amount(difference: Interval) -> str:
    """`12.3 [8.1, 16.4]`: a difference and its interval without the sign of a difference that lies below zero."""
    value, low, high = difference.value, difference.low, difference.high
    if difference.sign < 0:
        value, low, high = -value, -high, -low
    largest = max(abs(low), abs(high))
    places = 1 if largest >= 10 else 2 if largest >= 1 else 3
    return f"{value:.{places}f} [{low:.{places}f}, {high:.{places}f}]"


def _and(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"

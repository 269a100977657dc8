"""Numbers and texts as a reader wants to see them: the filters of the pages, and the cells of the Markdown."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from tunewright.pipeline.data import privacy

SHOWN_CHARACTERS = 1500


def count(number: float) -> str:
    return f"{number:,.0f}"


def size(number: float) -> str:
    """Large numbers by three figures: 172,000, 4.24 M, 1.2 B."""
    for unit, name in ((1e9, "B"), (1e6, "M")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{float(f'{number:.3g}'):,.0f}"


def gigabytes(number: float) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"


def percent(share: float) -> str:
    """With one decimal where whole percents say too little: 0.4%, 12%, 99.6%."""
    shown = f"{100 * share:.1f}%" if share < 0.0995 or share > 0.9 else f"{100 * share:.0f}%"
    return shown.replace(".0%", "%")


def figure(number: float | None) -> str:
    """Four figures, without an exponent where it reads as well without; – where there is none."""
    if number is None:
        return "–"
    if number == round(number) and abs(number) < 1e15:
        return f"{number:,.0f}"
    return f"{number:,.1f}" if abs(number) >= 1000 else f"{number:.4g}"


def interval(found: Mapping[str, float] | None, *, signed: bool = False) -> str:
    """`62.1 [58.0, 66.0]`, all three with the decimals that the width of the interval justifies."""
    if not found:
        return "–"
    value, low, high = (float(found[key]) for key in ("value", "low", "high"))
    places = _places(high - low, value)
    sign = "+" if signed else ""
    return f"{value:{sign}.{places}f} [{low:.{places}f}, {high:.{places}f}]"


def accuracy(found: Mapping[str, float] | None) -> str:
    """The same of a share, in percent: `62.1% [58.0, 66.0]`."""
    if not found:
        return "–"
    value, low, high = (100 * found[key] for key in ("value", "low", "high"))
    return f"{value:.1f}% [{low:.1f}, {high:.1f}]"


def _places(width: float, value: float) -> int:
    largest = width or abs(value)
    return 1 if largest >= 5 else 2 if largest >= 0.5 else 3 if largest >= 0.01 else 4


def duration(seconds: float | None) -> str:
    """`45 s`, `12 min`, `3.4 h`."""
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def moment(at: float | None) -> str:
    """A time of the store, in UTC: a page may be read elsewhere."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC") if at else "–"


def words(key: str) -> str:
    return key.replace("_", " ")


def value(given: Any) -> str:
    """An argument as it would be written in a call."""
    if isinstance(given, float):
        return f"{given:g}"
    if isinstance(given, list) and all(isinstance(entry, str) for entry in given):  # pyright: ignore[reportUnknownVariableType]
        return ", ".join(given)  # pyright: ignore[reportUnknownArgumentType]
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)


def masked(text: object) -> str:
    """The whole text, personal data and secrets replaced by their kinds."""
    shown = str(text)
    return privacy.masked(shown, privacy.find(shown))


def excerpt(text: object) -> str:
    """The beginning of a text of the data or of a model, as it may be shown."""
    shown = str(privacy.shown(str(text)))
    return shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[:SHOWN_CHARACTERS].rstrip()} …"

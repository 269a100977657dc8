"""Regular expressions that others wrote, searched in what a model wrote: bounded in time and in size.

Guarantees that no search takes longer than SEARCH_TIMEOUT_S, and that none that passed `check` takes memory by the
gigabyte. The time of compiling itself is not bounded; the longest seen was a second.
"""

import re
from functools import cache
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import regex

SEARCH_TIMEOUT_S = 0.2
MAX_CHARACTERS = 1000
# What is repeated is unrolled when compiled: a million copies take 0.6 s, a thousand times as many all the memory.
MAX_COPIES = 1_000_000
REPEAT = re.compile(r"\{(\d*),?(\d*)\}")


def check(pattern: str) -> None:
    """Raises ValueError, with the reason, where `pattern` is no regular expression or repeats too much."""
    from regex import error

    shown = f"pattern {pattern[:60]!r}"
    if len(pattern) > MAX_CHARACTERS:
        raise ValueError(f"{shown} has {len(pattern)} characters; at most {MAX_CHARACTERS} are allowed")
    if prod(max(1, int(low or 1), int(high or 1)) for low, high in REPEAT.findall(pattern)) > MAX_COPIES:
        raise ValueError(f"{shown} repeats more than {MAX_COPIES} times; + and * repeat without a bound")
    try:
        # Some flags are refused only when a text is searched.
        found(pattern, "")
    except (error, ValueError, RecursionError, TimeoutError) as reason:
        raise ValueError(f"{shown} is no usable regular expression: {reason}") from None


def found(pattern: str, text: str) -> bool:
    """Whether `pattern` matches anywhere in `text`. Raises TimeoutError after SEARCH_TIMEOUT_S."""
    return _compiled(pattern).search(text, timeout=SEARCH_TIMEOUT_S) is not None


@cache
def _compiled(pattern: str) -> "regex.Pattern[str]":
    # regex (maintained since 2011, a part of what transformers needs) has a time limit, which Python's re lacks.
    import regex

    return regex.compile(pattern)

"""About how many tokens a text has, where no tokenizer is loaded; texts shortened to fit a number of them. Light."""

import re
from collections.abc import Iterator
from math import ceil
from typing import Any, cast

CHARACTERS_PER_TOKEN = 4
CJK_CHARACTERS_PER_TOKEN = 1.5
CJK = re.compile(
    "[\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
# The end of a text is shown too: there it is seen whether an answer stops.
HEAD_SHARE = 0.8
# Shorter, nobody would know what it is.
MIN_TOKENS = 20


def estimate_tokens(text: str) -> int:
    """About how many tokens a modern tokenizer makes of `text`: CJK characters count 1/1.5 each, others 1/4."""
    cjk = 0 if text.isascii() else len(CJK.findall(text))
    return ceil(cjk / CJK_CHARACTERS_PER_TOKEN + (len(text) - cjk) / CHARACTERS_PER_TOKEN)


def shortened(value: Any, tokens: int) -> Any:
    """The JSON `value` with its longest texts cut in the middle, which they say, so that all together have `tokens`.

    Short texts stay whole while long ones lose; of each at least MIN_TOKENS stay. Keys are no texts.
    """
    return _cut(value, _level(sorted(estimate_tokens(text) for text in _texts(value)), tokens))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for entry in cast("list[Any]", list(value.values()) if isinstance(value, dict) else value):
            yield from _texts(entry)


def _level(sizes: list[int], tokens: int) -> int:
    """The tokens that each of the texts, of ascending `sizes`, may have for all of them to have `tokens`."""
    for position, size in enumerate(sizes):
        share = tokens // (len(sizes) - position)
        if size > share:
            return max(share, MIN_TOKENS)
        tokens -= size
    return max(sizes, default=0)


def _cut(value: Any, level: int) -> Any:
    if isinstance(value, str):
        return _middle_left_out(value, level)
    if isinstance(value, list):
        return [_cut(entry, level) for entry in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {key: _cut(entry, level) for key, entry in cast("dict[str, Any]", value).items()}
    return value


def _middle_left_out(text: str, level: int) -> str:
    has = estimate_tokens(text)
    if has <= level:
        return text
    kept = len(text) * level // has
    head = int(kept * HEAD_SHARE)
    return f"{text[:head]} … [{len(text) - kept:,} characters left out] … {text[len(text) - kept + head :]}"

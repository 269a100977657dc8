"""Phrases: what a pack looks for in a text, written as it would stand there.

- Capitals do not matter, nor the kind of white space, nor white space beside a Chinese character. A Latin word matches
  whole (`MI` is not in `MIT`), at the phrase's end in the plural too.
- `*` stands for up to 24 characters of the same sentence, or for none. Written at a Latin word (`vomit*`) it is the
  rest of the word too; with a space between, the word matches whole.
- `(a|b)` is either, `(a|)` is a or nothing; brackets do not stand in brackets.
- A phrase that is a term's name stands for all names of that term.

There is no way to look for a star, a bar or a round bracket. Guarantees that a text of any content is searched in time
proportional to its length: what a phrase stands for is bounded, unlike in regular expressions that people write.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

MAX_GAP = 24
MAX_GAPS = 3
LATIN = "A-Za-z0-9_"
HAN = "\u3400-\u9fff"
GROUP = re.compile(r"\(([^()]*)\)")
TOKEN = re.compile(r"\s*\*[\s*]*|\s+|[(|)]|[^\s*(|)]+")
GAP = rf"((?:[^。！？!?；;\n.]|\.(?=\d)){{0,{MAX_GAP}}}?)"
# Between two Latin characters there is no border; everywhere else a phrase may begin and end.
BORDER = rf"(?:(?<![{LATIN}])|(?![{LATIN}]))"
SPACE = rf"(?:\s+|{BORDER})"
PLURAL = r"(?:(?<=[A-Za-z]{3})s|(?<=[A-Z]{2})s)?"
PIECE = re.compile(rf"[{HAN}]+|[^\s{HAN}]+")
SENTENCE_END = re.compile(r"[。！？!?；;\n]|\.(?![\w.])")


class Text:
    """A text that is searched many times."""

    def __init__(self, raw: str) -> None:
        self.raw = raw
        self.lowered = _lowered(raw)

    @cached_property
    def _ends(self) -> list[int]:
        return [match.end() for match in SENTENCE_END.finditer(self.raw)]

    def sentence(self, start: int, end: int) -> tuple[int, int]:
        """Where the sentence, or the sentences, of a span begin and end, the mark at the end included."""
        at = bisect_left(self._ends, start + 1)
        first = self._ends[at - 1] if at else 0
        at = bisect_left(self._ends, end)
        return first, self._ends[at] if at < len(self._ends) else len(self.raw)


@dataclass(frozen=True)
class Found:
    """A span of a text; `gaps` is what stood where the phrase has stars."""

    start: int
    end: int
    gaps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variant:
    """A phrase or a name: `pattern` finds it, and only where one of `needles` is in the text in small letters."""

    pattern: str
    needles: tuple[str, ...]
    exact: bool = False


class Phrases:
    """Any of several phrases. `names` are the forms of a term by each of its names, folded."""

    def __init__(self, phrases: Iterable[str], names: dict[str, tuple[Variant, ...]] | None = None) -> None:
        """Raises ValueError, saying why, for a phrase that cannot be looked for."""
        found: dict[Variant, None] = {}
        for phrase in phrases:
            found.update(dict.fromkeys((names or {}).get(folded(phrase)) or (_variant(phrase),)))
        self._variants = tuple(found)

    def find(self, text: Text) -> Iterator[Found]:
        lowered = text.lowered
        for one in self._variants:
            # Spelt out: `any` of a generator takes three times as long, and most of the time goes here.
            for needle in one.needles:
                if needle in lowered:
                    for match in _compiled(one.pattern, one.exact).finditer(text.raw):
                        yield Found(match.start(), match.end(), tuple(gap for gap in match.groups() if gap))
                    break


def folded(name: str) -> str:
    """A name without regard to its capitals and the kind of white space in it."""
    return " ".join(name.casefold().split())


def name_variants(names: Iterable[str], abbreviations: Iterable[str]) -> tuple[Variant, ...]:
    """The forms of a term, letter for letter; abbreviations with their capitals."""
    forms = [(name, False) for name in names] + [(short, True) for short in abbreviations]
    return tuple(
        Variant(f"{BORDER}{_text(form, spaces=True)}{PLURAL}{BORDER}", (_needle(form),), exact) for form, exact in forms
    )


def _variant(phrase: str) -> Variant:
    groups = [match[1].split("|") for match in GROUP.finditer(phrase)]
    outside = GROUP.split(phrase)[::2]
    if any(mark in part for part in outside for mark in "(|)"):
        raise ValueError(f"{phrase!r} has a bracket that is not closed or in another one, or a bar outside of brackets")
    gaps = sum(map(_stars, outside)) + sum(max(map(_stars, group)) for group in groups)
    if gaps > MAX_GAPS:
        raise ValueError(f"{phrase!r} has more than {MAX_GAPS} stars")
    # What must be there: a part outside of brackets, or one of a bracket's.
    parts = [[part] for part in outside if _needle(part)] + [group for group in groups if all(map(_needle, group))]
    if not parts:
        raise ValueError(f"{phrase!r} may stand for nothing")
    needles = max(([_needle(one) for one in part] for part in parts), key=lambda found: min(map(len, found)))
    return Variant(_pattern(phrase), tuple(needles))


def _pattern(phrase: str) -> str:
    tokens = [match.group() for match in TOKEN.finditer(phrase.strip())]
    pattern = "" if tokens[0].strip() == "*" else BORDER
    for position, token in enumerate(tokens):
        if "*" in token:
            # A star that touches a word opens it on that side.
            if 0 < position < len(tokens) - 1:
                pattern += (BORDER if token[0].isspace() else "") + GAP + (BORDER if token[-1].isspace() else "")
        elif token.isspace():
            pattern += SPACE
        else:
            pattern += {"(": "(?:", "|": "|", ")": ")"}.get(token) or _text(token)
    return pattern + ("[A-Za-z]*" if "*" in tokens[-1] else PLURAL + BORDER)


def _stars(text: str) -> int:
    return len(re.findall(r"\*[\s*]*", text))


def _needle(text: str) -> str:
    return max(PIECE.findall(_lowered(text.replace("*", " "))), key=len, default="")


def _lowered(text: str) -> str:
    return text.lower().replace("’", "'")


def _text(text: str, *, spaces: bool = False) -> str:
    """The pattern of plain text: white space, where it has `spaces`, and between Chinese and other characters."""
    pattern, end = "", 0
    for piece in PIECE.finditer(text.replace("’", "'")):
        if end:
            pattern += SPACE if spaces and piece.start() > end else r"\s*"
        pattern += re.escape(piece.group()).replace("'", "['’]")
        end = piece.end()
    return pattern


@lru_cache(maxsize=10_000)
def _compiled(pattern: str, exact: bool) -> re.Pattern[str]:
    return re.compile(pattern, 0 if exact else re.IGNORECASE)

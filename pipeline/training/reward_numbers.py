r"""The number that an answer ends with, and whether two such numbers are the same.

Reads signs, thousands separators (`1,234`, `1'234`, `1.234,5`), decimal points and commas, exponents, percent,
fractions (`3/4`, `1 1/2`, `½`, `\frac{3}{4}`) and LaTeX's `\boxed{}`. Does not calculate: `2 + 2` ends with 2. What
is glued to a letter or raised (`cm2`, `m^2`, `H2O`) is no number of its own.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from unicodedata import normalize

# Of a number that is no whole one, as the other may have been rounded: 0.333333 for 1/3.
TOLERANCE = Fraction(1, 1_000_000)
# Longer runs of digits are no numbers; Python refuses those of more than 4300.
MAX_DIGITS = 60
# The end of an answer that is read, so that a page of digits takes no time.
READ_CHARACTERS = 1000

# NFKC has made thin and unbreakable spaces plain ones, so these stand for them while it runs.
GROUP_SIGNS = str.maketrans({"\u00a0": "'", "\u202f": "'", "\u2009": "'", "’": "'", "−": "-", "–": "-"})
LATEX_SPACES = re.compile(r"\\[,!;: ]|\{,\}")
LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
VULGAR_FRACTION = re.compile(r"(\d?)([¼-¾⅐-⅞])")
PLAIN = (
    r"(?:[1-9]\d{0,2}(?:[,']\d{3})+(?:\.\d+)?(?![,']?\d)"  # 1,234,567.8
    r"|[1-9]\d{0,2}(?:\.\d{3})+,\d+"  # 1.234,5
    r"|\d+[.,]\d+|\d+|\.\d+)(?:[eE][+-]?\d{1,3}(?!\d))?"
)
NUMBER = re.compile(
    rf"(?<![\w^])(?<!\^\{{)(?P<sign>[-+])?(?:\\?[$€£¥]\s?)?"
    rf"(?:(?P<whole>\d{{1,9}})\s+(?=\d+\s?/))?(?P<top>{PLAIN})(?:\s?/\s?(?P<bottom>{PLAIN}))?"
    r"(?P<percent>\s?\\?%)?"
)


@dataclass(frozen=True)
class Number:
    """`value` is what stands before the percent sign, if there is one."""

    value: Fraction
    is_percent: bool


def last(text: str) -> Number | None:
    r"""The last number of the last `\boxed{}`, or of the text where nothing is boxed; None where there is none."""
    readable = _readable(_boxed(text)[-READ_CHARACTERS:])
    for found in reversed(list(NUMBER.finditer(readable))):
        number = _number(found)
        if number is not None:
            return number
    return None


def same(first: Number, second: Number) -> bool:
    """Whether both are one number; 50 % is 0.5, and 50 where the other has no percent sign."""
    if first.is_percent == second.is_percent:
        return _close(first.value, second.value)
    percent, plain = (first, second) if first.is_percent else (second, first)
    return _close(percent.value, plain.value) or _close(percent.value / 100, plain.value)


def _close(first: Fraction, second: Fraction) -> bool:
    if first.denominator == second.denominator == 1:
        return first == second
    return abs(first - second) <= TOLERANCE * max(abs(first), abs(second))


def _boxed(text: str) -> str:
    r"""What stands in the last `\boxed{…}`, braces within it counted; the text where nothing is boxed."""
    begin = text.rfind("\\boxed{")
    if begin < 0:
        return text
    begin += len("\\boxed{")
    depth = 1
    for end in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[begin:end]
    return text[begin:]


def _readable(text: str) -> str:
    text = VULGAR_FRACTION.sub(lambda found: f"{found[1]} {normalize('NFKC', found[2])}", text)
    text = normalize("NFKC", text.translate(GROUP_SIGNS)).replace("\u2044", "/")
    text = LATEX_SPACES.sub(lambda found: "," if found[0] == "{,}" else "'", text)
    return LATEX_FRACTION.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    before = found.string[: found.start()]
    return f"{' ' if before[-1:].isdigit() else ''}{found[1].strip()}/{found[2].strip()}"


def _number(found: re.Match[str]) -> Number | None:
    if sum(character.isdigit() for character in found[0]) > MAX_DIGITS:
        return None
    value = _plain(found["top"])
    if found["bottom"]:
        bottom = _plain(found["bottom"])
        if not bottom:
            return None
        value /= bottom
    if found["whole"]:
        value += int(found["whole"])
    return Number(-value if found["sign"] == "-" else value, bool(found["percent"]))


def _plain(text: str) -> Fraction:
    text = text.replace("'", "")
    if "," in text:
        decimal_comma = re.fullmatch(r"[\d.]*,\d+", text) and not re.fullmatch(r"[1-9]\d{0,2},\d{3}", text)
        text = text.replace(".", "").replace(",", ".") if decimal_comma else text.replace(",", "")
    return Fraction(text)

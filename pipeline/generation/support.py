"""Whether a text supports an answer, by its words: numbers, names, and the share of its words that the text has.

Finds what a teacher makes up out of nothing. Does not understand: a false statement in the text's own words passes,
for the judge to find. Rather refuses a good answer than lets a bad one in, for another is soon written: a number in
words where the text has digits, or a date turned about, counts as not there.
"""

import re
import unicodedata
from dataclasses import dataclass

# Chosen on the answers in tests/pipeline/generation/test_support.py (English, German, Chinese): paraphrases of the text
# reach 0.42 and more, made-up answers that hold no wrong number or name at most 0.2.
MIN_COVERAGE = 0.33
MIN_LETTERS = 4  # shorter words are mostly grammar
STEM_LETTERS = 5  # "poisoned" is supported by "poisoning"
MIN_SHORT_STEM = 3
# In German every noun, in a title every word has a capital: above this share of capitals inside sentences of the text
# a capital is no sign of a name.
MAX_CAPITALS = 0.25

# Scripts without spaces between words, and Hangul, whose words carry endings: compared by pairs of characters.
SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uac00-\ud7af"
PIECE = re.compile(rf"[{SPACELESS}]+|[^\W_{SPACELESS}]+")
IS_SPACELESS = re.compile(rf"[{SPACELESS}]")
NUMBER = re.compile(r"\d{1,3}(?:[.,' ]\d{3})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,]\d+)?")
THOUSANDS = re.compile(r"[1-9]\d{0,2}(?:[.,' ]\d{3})+")
SEPARATOR = re.compile(r"[.,' ]")
LIST_NUMBER = re.compile(r"^\s*\(?\d{1,2}[.)、]\s*(?=\D)", re.MULTILINE)
# A word that does not begin a sentence, a quotation or a list's entry.
INSIDE = re.compile(r"(?<=[\w,;)%])\s+([^\W\d_]\w+)")
# Letters, capitals only, or letters and digits: API, GPT-4, B12.
SIGN = re.compile(r"\b(?:[A-Z]{2,}|(?=\w*\d)(?=\w*[A-Za-z])[A-Za-z0-9]+)\b")
LATIN_WORD = re.compile(r"(?<![A-Za-z])[A-Za-z]{2,}(?![A-Za-z])")
# Words that hold a sentence together and need no support. English alone: the share allows for the other languages'.
FUNCTION_WORDS = {
    "about", "above", "after", "also", "although", "because", "been", "before", "being", "below",
    "between", "both", "cannot", "could", "does", "doing", "down", "during", "each", "either", "else", "even",
    "ever", "every", "from", "further", "have", "having", "here", "however", "into", "itself", "just", "like",
    "made", "make", "many", "mean", "means", "might", "more", "most", "much", "must", "neither", "only",
    "other", "otherwise", "over", "rather", "same", "should", "since", "some", "such", "than", "that", "their",
    "them", "themselves", "then", "there", "therefore", "these", "they", "this", "those", "through", "thus",
    "under", "until", "upon", "very", "were", "what", "when", "where", "whether", "which", "while", "whom",
    "whose", "will", "with", "within", "without", "would", "your", "yours",
}  # fmt: skip


def missing(answer: str, question: str, text: str) -> str | None:
    """What of `answer` stands neither in `text` nor in `question`, in words; None where the text may support it."""
    known = _source(_plain(text), _plain(question))
    plain = LIST_NUMBER.sub("", _plain(answer))
    for number in NUMBER.findall(plain):
        if _value(number) not in known.numbers:
            return f"the number {number} does not stand in the text"
    for name in _names(plain, known.capitals_are_names):
        if not known.has_name(name):
            return f"the name {name!r} does not stand in the text"
    units = _units(plain)
    covered = sum(known.covers(unit) for unit in units)
    if units and covered / len(units) < MIN_COVERAGE:
        return f"the text has only {covered} of the answer's {len(units)} words"
    return None


@dataclass(frozen=True)
class Source:
    """What stands in a text and a question about it."""

    numbers: frozenset[str]
    words: frozenset[str]
    stems: frozenset[str]
    capitals_are_names: bool

    def covers(self, unit: str) -> bool:
        return unit in self.words or (len(unit) >= STEM_LETTERS and unit[:STEM_LETTERS] in self.stems)

    def has_name(self, name: str) -> bool:
        """Whether the name stands there, also with or without an ending of up to two letters (Berlin, Berlins)."""
        folded = name.casefold()
        return folded in self.words or any(
            abs(len(word) - len(folded)) <= 2 and (word.startswith(folded) or folded.startswith(word))
            for word in self.words
            if len(word) >= MIN_SHORT_STEM
        )


def _source(text: str, question: str) -> Source:
    both = f"{text}\n{question}"
    words = frozenset(unit for piece in PIECE.findall(both) for unit in _split(piece))
    inside = INSIDE.findall(text)
    capitals = sum(word[0].isupper() for word in inside)
    return Source(
        numbers=frozenset(map(_value, NUMBER.findall(both))),
        words=words,
        stems=frozenset(word[:STEM_LETTERS] for word in words if len(word) >= STEM_LETTERS),
        capitals_are_names=not inside or capitals / len(inside) <= MAX_CAPITALS,
    )


def _plain(text: str) -> str:
    """Wide digits, ligatures and hard spaces as their plain forms."""
    return unicodedata.normalize("NFKC", text).replace("\u2019", "'")


def _split(piece: str) -> list[str]:
    """A word, folded, or the overlapping pairs of characters of a run without spaces."""
    if not IS_SPACELESS.match(piece):
        return [piece.casefold()]
    return [piece[i : i + 2] for i in range(len(piece) - 1)] or [piece]


def _units(text: str) -> list[str]:
    """What of a text must be covered: its words but for the short and grammatical, its pairs of characters."""
    units = [unit for piece in PIECE.findall(text) for unit in _split(piece)]
    return [
        unit
        for unit in units
        if IS_SPACELESS.match(unit) or (len(unit) >= MIN_LETTERS and unit not in FUNCTION_WORDS and not unit.isdigit())
    ]


def _value(number: str) -> str:
    """A number in one form, however its thousands and decimals are set apart: groups of three are thousands."""
    if THOUSANDS.fullmatch(number):
        return SEPARATOR.sub("", number)
    whole, _, part = number.replace(",", ".").rpartition(".")
    if not whole:
        return part.lstrip("0") or "0"
    whole, part = SEPARATOR.sub("", whole).lstrip("0") or "0", part.rstrip("0")
    return f"{whole}.{part}" if part else whole


def _names(text: str, capitals_are_names: bool) -> list[str]:
    """Words that must stand in the text as they are: names, abbreviations, foreign words among Chinese ones."""
    names = SIGN.findall(text)
    if capitals_are_names:
        names += [word for word in INSIDE.findall(text) if word[0].isupper()]
    if IS_SPACELESS.search(text):
        names += LATIN_WORD.findall(text)
    return names

"""Near duplicates: rows that ask the same and answer nearly the same, or the other way round.

MinHash finds rows that share most of their word triples. That alone would take classification rows under one long
instruction, or questions about one passage, for copies; so each pair that it finds is looked at (`is_copy`).

rensa computes the signatures: R-MinHash in Rust, maintained, and the fastest that we measured (15 µs a row of 800
characters; datasketch, the classic, takes hundreds). Its own index holds everything in memory, so that candidates are
looked for here, over a file of signatures, with numpy's sort. Similarities are estimates (±3 % at 0.85).
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tunewright.pipeline.data.rows import Record, calls_as_text

if TYPE_CHECKING:
    import numpy as np

    Array: TypeAlias = np.ndarray[Any, Any]

# Broder, "On the resemblance and containment of documents" (1997): signatures agree in a share of their slots equal to
# the Jaccard similarity. 16 bands of 8 slots find 99 % of the pairs at 0.85 and 0.4 % of those at 0.3.
PERMUTATIONS = 128
BANDS = 16
SLOTS_PER_BAND = PERMUTATIONS // BANDS
THRESHOLD = 0.85
SHINGLE_WORDS = 3
SEED = 1
# Shorter questions and answers differ when they differ in a word.
MIN_WORDS = 20
# So many words may be another way to say the same; a whole other question about the same passage has more.
MAX_OTHER_WORDS = 3
# A word, or one character of the scripts that write without spaces.
WORD = re.compile(r"[぀-ヿ㐀-鿿가-힯]|[^\W぀-ヿ㐀-鿿가-힯]+")
ASCII_WORD = re.compile(r"\w+", re.ASCII)
READ_ROWS = 65_536


def shingles(record: Record) -> list[str]:
    """The word triples of all that is said in a row (without its system message); fewer words are one shingle."""
    if record.kind == "text":
        return _triples(_words(record.text))
    return _triples(_words("\n".join(m["content"] for m in record.all_messages() if m["role"] != "system")))


def _words(text: str) -> list[str]:
    return (ASCII_WORD if text.isascii() else WORD).findall(text.lower())


def _triples(words: list[str]) -> list[str]:
    if len(words) < SHINGLE_WORDS:
        return [" ".join(words)]
    return list(map(" ".join, zip(words, words[1:], words[2:], strict=False)))


def is_copy(first: Record, second: Record, threshold: float = THRESHOLD) -> bool:
    """Whether one of two rows can go: the same question with nearly the same answer, or nearly the same question with
    nearly the same long answer. Judged answers (KTO) must be judged alike; of pairs both answers count."""
    if first.label != second.label or _calls(first) != _calls(second):
        return False
    if first.kind == "text":
        return _are_alike(first.text, second.text, threshold)
    (asked, *answers), (other_asked, *other_answers) = map(_sides, (first, second))
    if not all(_are_alike(*pair, threshold) for pair in zip(answers, other_answers, strict=True)):
        return False
    if _bare(asked) == _bare(other_asked):
        return True
    is_long = all(len(_words(answer)) >= MIN_WORDS for answer in (*answers, *other_answers))
    return is_long and _are_alike(asked, other_asked, threshold) and _differ_little(asked, other_asked, threshold)


def _sides(record: Record) -> list[str]:
    """What is asked, the system message with it, and each answer."""
    asked = record.messages if record.chosen else record.messages[:-1]
    answers = [record.chosen, record.rejected] if record.chosen else [record.messages[-1:]]
    return ["\n".join(m["content"] for m in part) for part in (asked, *answers)]


def _calls(record: Record) -> list[str]:
    return [calls for message in record.all_messages() if (calls := calls_as_text(message))]


def _bare(text: str) -> str:
    """The text but for case, white space and how it ends. Symbols and emoji count."""
    return " ".join(text.lower().split()).rstrip(" .!?。！？")


def _are_alike(one: str, other: str, threshold: float) -> bool:
    if _bare(one) == _bare(other):
        return True
    first, second = _words(one), _words(other)
    return min(len(first), len(second)) >= MIN_WORDS and _jaccard(_triples(first), _triples(second)) >= threshold


def _differ_little(one: str, other: str, threshold: float) -> bool:
    """Whether what stands between the common beginning and the common end is the same but for a few words."""
    first, second = _words(one), _words(other)
    shorter = min(len(first), len(second))
    head = next((i for i in range(shorter) if first[i] != second[i]), shorter)
    tail = next((i for i in range(shorter - head) if first[-1 - i] != second[-1 - i]), shorter - head)
    middle, other_middle = first[head : len(first) - tail], second[head : len(second) - tail]
    few = max(len(middle), len(other_middle)) <= MAX_OTHER_WORDS
    return few or _jaccard(middle, other_middle) >= threshold


def _jaccard(first: Sequence[str], second: Sequence[str]) -> float:
    a, b = set(first), set(second)
    return len(a & b) / len(a | b)


def signatures(rows: Sequence[Record]) -> "Array":
    """One signature a row: uint32, (rows, PERMUTATIONS)."""
    import numpy as np
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue] - compiled, without stubs

    if not rows:
        return np.empty((0, PERMUTATIONS), np.uint32)
    matrix = RMinHash.digest_matrix_from_token_sets([shingles(row) for row in rows], PERMUTATIONS, SEED)
    return np.array(matrix.to_rows(), np.uint32)


def _bands(part: "Array") -> "Array":
    """One number for each band of each signature: uint64, (rows, BANDS)."""
    import numpy as np

    slots = part.reshape(len(part), BANDS, SLOTS_PER_BAND).astype(np.uint64)
    hashed = np.zeros(slots.shape[:2], np.uint64)
    for slot in range(SLOTS_PER_BAND):  # FNV-1a's step, on whole slots
        hashed = (hashed ^ slots[:, :, slot]) * np.uint64(0x100000001B3)
        hashed ^= hashed >> np.uint64(29)
    return hashed


def find(file: Path, among: "Array", threshold: float = THRESHOLD) -> "Array":
    """For each row the number of an earlier row that shares most of its words, or -1: int64. Candidates for `is_copy`.

    `file` holds one signature a row; only rows where `among` (bool, one a row) is true are compared.
    """
    import numpy as np

    rows = np.flatnonzero(among)
    earlier = np.full(len(among), -1, np.int64)
    if not len(rows):
        return earlier
    bands = _all_bands(file, among)
    # Mapped: only the pages of candidates come into memory.
    held = np.memmap(file, np.uint32, "r", shape=(len(among), PERMUTATIONS))
    for band in bands:
        for candidates, firsts in _candidates(band):
            later, first = rows[candidates], rows[firsts]
            unknown = earlier[later] < 0
            later, first = later[unknown], first[unknown]
            alike = (held[later] == held[first]).mean(axis=1) >= threshold
            earlier[later[alike]] = first[alike]
    return earlier


def _all_bands(file: Path, among: "Array") -> "Array":
    """The bands of the rows where `among` is true: uint64, (BANDS, rows)."""
    import numpy as np

    bands = np.empty((BANDS, int(among.sum())), np.uint64)
    done = 0
    with file.open("rb") as signatures:
        for begin in range(0, len(among), READ_ROWS):
            wanted = among[begin : begin + READ_ROWS]
            part = np.fromfile(signatures, np.uint32, len(wanted) * PERMUTATIONS).reshape(-1, PERMUTATIONS)[wanted]
            bands[:, done : done + len(part)] = _bands(part).T
            done += len(part)
    return bands


def _candidates(band: "Array") -> "Iterator[tuple[Array, Array]]":
    """Rows whose band equals an earlier row's, with the first such row, in parts."""
    import numpy as np

    order = np.argsort(band, kind="stable")
    ordered = band[order]
    begins = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    first = order[np.maximum.accumulate(np.where(begins, np.arange(len(band)), 0))]
    repeats = np.flatnonzero(~begins)
    for begin in range(0, len(repeats), READ_ROWS):
        part = repeats[begin : begin + READ_ROWS]
        yield order[part], first[part]


class Index:
    """A few thousand rows in memory, each compared with all: for rows that come one by one."""

    def __init__(self, threshold: float = THRESHOLD) -> None:
        import numpy as np

        self._threshold = threshold
        self._signatures = np.empty((256, PERMUTATIONS), np.uint32)
        self._records: list[Record] = []

    def add(self, record: Record) -> None:
        import numpy as np

        if len(self._records) == len(self._signatures):
            self._signatures = np.concatenate((self._signatures, np.empty_like(self._signatures)))
        self._signatures[len(self._records)] = signatures([record])[0]
        self._records.append(record)

    def find(self, record: Record) -> int | None:
        """The number (from 0, in the order of `add`) of a row that this one nearly repeats (`is_copy`), or None."""
        import numpy as np

        if not self._records:
            return None
        shares = (self._signatures[: len(self._records)] == signatures([record])[0]).mean(axis=1)
        candidates = np.flatnonzero(shares >= self._threshold)
        return next((int(i) for i in candidates if is_copy(self._records[i], record, self._threshold)), None)

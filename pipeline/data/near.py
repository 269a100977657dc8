"""Near duplicates: rows that share most of their word triples, found by MinHash and locality-sensitive hashing.

rensa computes the signatures: R-MinHash in Rust, maintained, and the fastest that we measured (15 µs a row of 800
characters; datasketch, the classic, takes hundreds). Its own index holds everything in memory, so that candidates are
looked for here, over a file of signatures, with numpy's sort. Similarities are estimates (±3 % at 0.85).
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tunewright.pipeline.data.rows import Record

if TYPE_CHECKING:
    import numpy as np

    Array: TypeAlias = np.ndarray[Any, Any]

# Broder, "On the resemblance and containment of documents" (1997): signatures agree in a share of their slots equal to
# the Jaccard similarity. 16 bands of 8 slots find 99 % of the pairs at 0.85 and 0.4 % of those at 0.3.
PERMUTATIONS = 128
BANDS = 16
SLOTS_PER_BAND = PERMUTATIONS // BANDS
SIGNATURE_BYTES = 4 * PERMUTATIONS
THRESHOLD = 0.85
SHINGLE_WORDS = 3
SEED = 1
# A word, or one character of the scripts that write without spaces.
WORD = re.compile(r"[぀-ヿ㐀-鿿가-힯]|[^\W぀-ヿ㐀-鿿가-힯]+")
ASCII_WORD = re.compile(r"\w+", re.ASCII)
READ_ROWS = 65_536


def shingles(record: Record) -> list[str]:
    """The word triples of all that is said in a row (without its system message); fewer words are one shingle."""
    if record.kind == "text":
        text = record.text
    else:
        text = "\n".join(m["content"] for m in record.all_messages() if m["role"] != "system")
    words = (ASCII_WORD if text.isascii() else WORD).findall(text.lower())
    if len(words) < SHINGLE_WORDS:
        return [" ".join(words)]
    return list(map(" ".join, zip(words, words[1:], words[2:], strict=False)))


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
    """For each row the number of an earlier row that it nearly repeats, or -1: int64.

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
    """The signatures of a few thousand rows in memory, each compared with all: for rows that come one by one."""

    def __init__(self, threshold: float = THRESHOLD) -> None:
        import numpy as np

        self._threshold = threshold
        self._held = np.empty((256, PERMUTATIONS), np.uint32)
        self._count = 0

    def add(self, record: Record) -> None:
        import numpy as np

        if self._count == len(self._held):
            self._held = np.concatenate((self._held, np.empty_like(self._held)))
        self._held[self._count] = signatures([record])[0]
        self._count += 1

    def find(self, record: Record) -> int | None:
        """The number (from 0, in the order of `add`) of the most similar row at or above the threshold, or None."""
        if not self._count:
            return None
        shares = (self._held[: self._count] == signatures([record])[0]).mean(axis=1)
        best = int(shares.argmax())
        return best if shares[best] >= self._threshold else None

"""What becomes of rows of given lengths: how well they pack, what padding wastes, how many are cut.

Works on a sample of a dataset's lengths, drawn evenly from its statistics (`data/statistics.py`): fair for shares, not
to the row.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

Tokens = dict[str, Any]

SAMPLE = 1000
# A row whose tokens are estimated may be up to a third longer (data/statistics.py).
ESTIMATED_STRETCH = 1.25
PERCENTILES = ("p50", "p90", "p95", "p99")


@dataclass(frozen=True)
class Lengths:
    """`sample`: ascending, in tokens; `rows`: how many rows the dataset has; `longest`: of all of them.

    A row may be `stretch` times as long as its length says, where lengths are estimates.
    """

    sample: tuple[int, ...]
    rows: int
    longest: int
    stretch: float = 1.0

    def mean(self, limit: int) -> float:
        """Tokens of a row when rows are cut at `limit`."""
        return sum(min(length, limit) for length in self.sample) / len(self.sample)

    def whole(self, limit: int) -> float:
        """The share of rows that `limit` does not cut."""
        if self.longest <= limit:
            return 1.0
        return bisect_left(self.sample, limit + 1) / len(self.sample)

    def kept(self, limit: int) -> float:
        """The share of tokens that is left."""
        return self.mean(limit) / max(1.0, self.mean(self.longest))

    def pairs(self, limit: int) -> float:
        """Of a query and a key, for each token: half the length of the row that a token stands in, on average."""
        cut = [min(length, limit) for length in self.sample]
        return sum(length * length for length in cut) / 2 / max(1, sum(cut))

    def padded(self, limit: int, batch: int) -> float:
        """Tokens of a row with its padding: the expected longest of `batch` random rows."""
        count = len(self.sample)
        shares = [(i / count) ** batch for i in range(count + 1)]
        return sum(
            min(length, limit) * (after - before)
            for length, (before, after) in zip(self.sample, pairwise(shares), strict=True)
        )

    def divided(self, limit: int) -> "Lengths":
        """What becomes of texts that are divided at `limit`: more rows, no token lost."""
        pieces = sorted(
            min(limit, length - begin) for length in self.sample for begin in range(0, min(length, self.longest), limit)
        )
        rows = round(self.rows * len(pieces) / len(self.sample))
        fair = pieces if len(pieces) <= SAMPLE else [pieces[i * len(pieces) // SAMPLE] for i in range(SAMPLE)]
        return Lengths(tuple(fair), rows, min(limit, self.longest), self.stretch)

    def packed(self, limit: int) -> "Packed":
        """Best-fit decreasing, as TRL's `pack_dataset` does, on the sample."""
        bins, total = _best_fit(self.sample, limit)
        rows = max(1, round(bins * self.rows / len(self.sample)))
        return Packed(rows, total / (bins * limit))


@dataclass(frozen=True)
class Packed:
    """`rows` after packing, and the share of them that is `fill`ed with tokens."""

    rows: int
    fill: float


@lru_cache(maxsize=64)
def _best_fit(sample: tuple[int, ...], limit: int) -> tuple[int, int]:
    """How many rows of `limit` tokens hold the sample, and its tokens."""
    spaces: list[int] = []
    total = bins = 0
    for length in reversed(sample):
        cut = min(length, limit)
        total += cut
        place = bisect_left(spaces, cut)
        if place < len(spaces):
            space = spaces.pop(place)
        else:
            space, bins = limit, bins + 1
        if space > cut:
            insort(spaces, space - cut)
    return bins, total


def lengths(tokens: Tokens, rows: int) -> Lengths:
    """From the statistics of a dataset of `rows` rows."""
    count = max(1, min(rows, SAMPLE))
    points = _quantiles(tokens)
    sample = tuple(max(1, round(_at(points, (i + 0.5) / count))) for i in range(count))
    stretch = ESTIMATED_STRETCH if tokens.get("estimated") else 1.0
    return Lengths(sample, max(1, rows), max(sample[-1], int(tokens["max"])), stretch)


def _quantiles(tokens: Tokens) -> list[tuple[float, float]]:
    """(share of rows, length), from the histogram, or for datasets of the first version from their percentiles."""
    longest = float(tokens["max"])
    if not tokens.get("histogram"):
        known = [(int(key[1:]) / 100, float(tokens[key])) for key in PERCENTILES if key in tokens]
        return [(0.0, known[0][1] / 4 if known else longest / 4), *known, (1.0, longest)]
    bins = tokens["histogram"]
    total = sum(entry["rows"] for entry in bins)
    points, below = [(0.0, float(bins[0]["from"]))], 0
    for entry in bins:
        below += entry["rows"]
        points.append((below / total, min(float(entry["to"]), longest)))
    return points


def _at(points: list[tuple[float, float]], share: float) -> float:
    right = min(max(1, bisect_left(points, (share, 0.0))), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y0 if x1 <= x0 else y0 + (y1 - y0) * min(1.0, (share - x0) / (x1 - x0))

"""Intervals and tests for few, paired measurements. Light: scipy and numpy are imported where they are needed.

Guarantees that the same values give the same interval, that every interval is finite and holds its value, and that so
few pairs as could be chance never give an interval without zero. Does not correct for looking at many metrics at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

CONFIDENCE = 0.95
RESAMPLES = 10_000
# How many numbers a bootstrap holds at a time (8 bytes each).
BATCH_NUMBERS = 4_000_000
# Five pairs that all point one way are chance at p = 0.0625 (sign test, two-sided): no test can call them a difference.
FEWEST_PAIRS = 6


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % confidence interval, in the unit of what was measured."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 where the whole interval lies above zero, -1 where below, 0 where it holds zero."""
        return int(self.low > 0) - int(self.high < 0)

    def rounded(self) -> "Interval":
        """To four digits behind the point: more would tell nothing, and cost tokens."""
        return Interval(round(self.value, 4), round(self.low, 4), round(self.high, 4))


def proportion(hits: float, of: int) -> Interval:
    """The share of `hits` in `of` with Wilson's score interval (1927); without trials anything from 0 to 1."""
    if of == 0:
        return Interval(0.0, 0.0, 1.0)
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share = hits / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    # Rounding may leave the ends a hair inside of a share of exactly 0 or 1.
    return Interval(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))


def mean(values: Sequence[float], seed: int = 0) -> Interval:
    """The mean with its BCa bootstrap interval (Efron 1987). A single value has no spread: its interval is itself.

    Raises ValueError without values, or where one is not finite.
    """
    if not values:
        raise ValueError("a mean needs at least one value")
    if not all(map(math.isfinite, values)):
        raise ValueError("a mean needs finite values")
    value = fmean(values)
    if min(values) == max(values):
        return Interval(value, value, value)
    import numpy as np

    # BSD, the field's own implementation of BCa, which has more edge cases than it has lines; here with scikit-learn.
    from scipy import stats

    found = stats.bootstrap(
        (np.asarray(values, dtype=np.float64),), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE,
        method="BCa", batch=max(1, BATCH_NUMBERS // len(values)), rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Interval(value, min(value, float(found.low)), max(value, float(found.high)))


def paired(tuned: Sequence[float], base: Sequence[float], seed: int = 0) -> Interval:
    """The mean of `tuned - base`, both measured on the same samples in the same order, with its bootstrap interval.

    With fewer than six pairs the interval is widened to hold zero. Raises ValueError as `mean`, and where the lengths
    differ.
    """
    differences = [one - other for one, other in zip(tuned, base, strict=True)]
    found = mean(differences, seed)
    if len(differences) >= FEWEST_PAIRS:
        return found
    return Interval(found.value, min(found.low, 0.0), max(found.high, 0.0))


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p of McNemar's test: whether what only one of two models got right is a fair coin's."""
    of = only_first + only_second
    # Whole numbers up to the division: a binomial tail of thousands of trials leaves a float's range.
    tail = sum(math.comb(of, hits) for hits in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**of)

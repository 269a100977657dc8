"""Curves made fit to be drawn: thinned to what a panel can show, smoothed, and within limits that no spike decides.

Pure functions over (step, value) points in the order of their steps; a value that is not a finite number is a gap.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from tunewright.pipeline.store import Row

# From so many points on a line is noise: it fades, and its running median lies over it, which no single spike moves.
SMOOTHED_FROM = 40
# The median is over this share of the points: more would hide how the curve bends.
MEDIAN_SHARE = 1 / 40
# Values beyond this share of all of them are spikes.
USUAL_SHARE = 0.98
# A curve whose values are all but one is shown over a tenth of it: filled by its noise it would look like a wild one.
LEAST_SPAN = 0.1

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Limits:
    """The values that a panel shows; `cut`, the highest of all, where spikes lie above `high`."""

    low: float
    high: float
    cut: float | None = None


def of(rows: Sequence[Row], name: str, by: str | None = None) -> Points:
    """(step, `name`) of every row of metrics, or of those that have it by the number called `by` instead of the step.

    A row without `name`, as where a loss was not finite, is a gap.
    """
    return [
        (row["numbers"][by] if by else row["step"], row["numbers"].get(name, math.nan))
        for row in rows
        if by is None or by in row["numbers"]
    ]


def finite(points: Points) -> Points:
    """The points without the gaps."""
    return [point for point in points if math.isfinite(point[1])]


def thinned(points: Points, most: int) -> Points:
    """About `most` points at the most: of neighbours the lowest and the highest, so that no spike is lost."""
    width = -(-2 * len(points) // most)
    if width <= 2:
        return points
    groups = (finite(points[i : i + width]) or points[i : i + 1] for i in range(0, len(points), width))
    return [
        point
        for group in groups
        for point in sorted({choose(group, key=lambda point: point[1]) for choose in (min, max)})
    ]


def median_width(count: int) -> int:
    """Over how many of `count` points the running median goes."""
    return max(5, round(count * MEDIAN_SHARE))


def running_median(points: Points, width: int) -> Points:
    """Of the `width` finite values around each; a gap stays a gap. n log n but for the list's own moves."""
    values = [value for _, value in finite(points)]
    window: list[float] = []
    medians: list[float] = []
    added = removed = 0
    for place in range(len(values)):
        while added < min(len(values), place + width // 2 + 1):
            insort(window, values[added])
            added += 1
        while removed < place - width // 2:
            del window[bisect_left(window, values[removed])]
            removed += 1
        medians.append(window[len(window) // 2])
    following = iter(medians)
    return [(step, next(following) if math.isfinite(value) else math.nan) for step, value in points]


def limits(*curves: Points) -> Limits:
    """What a panel of these curves shows: all values but single spikes, and zero where that is near.

    One value of 100 would flatten all others. Without any value 0 to 1.
    """
    values = sorted(value for curve in curves for _, value in finite(curve))
    if not values:
        return Limits(0.0, 1.0)
    lowest, highest = values[0], values[-1]
    usual = values[math.ceil(USUAL_SHARE * (len(values) - 1))]
    least = LEAST_SPAN * abs(usual) or 1.0
    top = usual + 0.5 * max(usual - lowest, least)
    cut = highest if highest > top else None
    high = top if cut is not None else highest
    if high - lowest < least:
        middle = (lowest + high) / 2
        lowest, high = middle - least / 2, middle + least / 2
    return Limits(0.0 if 0 <= lowest < 0.5 * high else lowest, high, cut)


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round numbers (1, 2 or 5 times a power of ten) from `low` to `high`, evenly apart."""
    if not high > low:
        return [low]
    rough = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    for factor in (1, 2, 5, 10, 20):
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [number * step for number in range(first, last + 1)]
    return [low]

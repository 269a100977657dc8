"""Which of the kept rows make the dataset, and which of these are held out. Deterministic for a seed."""

import random
from collections import Counter
from collections.abc import Sequence

MIN_ROWS_FOR_EVAL = 10


def shares(origins: Sequence[int], weights: Sequence[float], max_rows: int | None, seed: int) -> tuple[list[int], int]:
    """The rows to keep, in order, so that every source has its share, and how many `max_rows` took from them.

    `origins` is the source of each row, `weights` one positive number a source. The rows are as many as can be
    without repeating any; each source's are drawn evenly at random. Every source must have rows.
    """
    held = Counter(origins)
    whole = sum(weights)
    possible = min(held[source] * whole / weight for source, weight in enumerate(weights))
    total = min(possible, max_rows or possible)
    generator = random.Random(seed)
    kept: list[int] = []
    due = 0.0
    for source, weight in enumerate(weights):
        rows = [row for row, origin in enumerate(origins) if origin == source]
        due += total * weight / whole
        # Rounding what is due so far, not each share, keeps the sum right.
        kept += generator.sample(rows, min(len(rows), int(due + 0.5) - len(kept)))
    return sorted(kept), round(possible - total)


def held_out(rows: Sequence[int], eval_fraction: float, seed: int) -> set[int]:
    """The rows for evaluation: the fraction, rounded, but at least one of ten or more. Empty where it is 0."""
    count = round(len(rows) * eval_fraction)
    if eval_fraction > 0 and len(rows) >= MIN_ROWS_FOR_EVAL:
        count = max(1, count)
    return set(random.Random(seed).sample(rows, count))

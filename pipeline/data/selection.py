"""Which of the staged rows make the dataset, and which of these are held out. Deterministic for a seed."""

import random
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np

    Array: TypeAlias = np.ndarray[Any, Any]

MIN_ROWS_FOR_EVAL = 10


def repeats(fingerprints: "Array") -> "Array":
    """For each row the number of the first row with its fingerprint, or -1 where it is that row itself: int64."""
    import numpy as np

    _, first, group = np.unique(fingerprints, return_index=True, return_inverse=True)
    earlier = first[group]
    return np.where(earlier == np.arange(len(fingerprints)), -1, earlier)


def shares(
    origins: "Array", kept: "Array", weights: list[float], max_rows: int | None, seed: int
) -> tuple["Array", int]:
    """Those of the `kept` rows (bool, one a row) that give every source its share, and how many `max_rows` took.

    `origins` is the source of each row, `weights` one positive number a source. The rows are as many as can be
    without repeating any; each source's are drawn evenly at random. Every source must have rows.
    """
    import numpy as np

    rows = [np.flatnonzero(kept & (origins == source)) for source in range(len(weights))]
    whole = sum(weights)
    possible = min(len(held) * whole / weight for held, weight in zip(rows, weights, strict=True))
    total = min(possible, max_rows or possible)
    generator = random.Random(seed)
    chosen = np.zeros_like(kept)
    due, taken = 0.0, 0
    for held, weight in zip(rows, weights, strict=True):
        due += total * weight / whole
        # Rounding what is due so far, not each share, keeps the sum right.
        count = min(len(held), int(due + 0.5) - taken)
        chosen[held[generator.sample(range(len(held)), count)]] = True
        taken += count
    return chosen, round(possible - total)


def first_rows(kept: "Array", count: int) -> "Array":
    """The first `count` of the `kept` rows."""
    import numpy as np

    return kept & (np.cumsum(kept) <= count)


def held_out(kept: "Array", prompts: "Array", alike: "Array", eval_fraction: float, seed: int) -> "Array":
    """The rows for evaluation: the fraction, rounded, but at least one of ten or more. None where it is 0.

    `prompts` is the fingerprint of each row's question, `alike` (bool) marks rows that nearly repeat another: only
    where there are too few others are rows drawn whose question or near copy the model is trained on.
    """
    import numpy as np

    rows = np.flatnonzero(kept)
    count = round(len(rows) * eval_fraction)
    if eval_fraction > 0 and len(rows) >= MIN_ROWS_FOR_EVAL:
        count = max(1, count)
    _, group, times = np.unique(prompts[rows], return_inverse=True, return_counts=True)
    alone = rows[(times[group] == 1) & ~alike[rows]]
    drawn = alone if len(alone) >= count else rows
    chosen = np.zeros_like(kept)
    chosen[drawn[random.Random(seed).sample(range(len(drawn)), count)]] = True
    return chosen

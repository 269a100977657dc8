"""Which rows go through the model together: rows of like length, as many as the memory holds. Light."""

from collections.abc import Sequence


def plan(costs: Sequence[int], budget: int, most: int) -> list[list[int]]:
    """Indices of rows in batches, the dearest rows first; `costs` and `budget` in bytes.

    Every row of a batch costs as much as its dearest, to whose length it is padded; a row dearer than the budget goes
    alone. At most `most` rows in a batch, and a power of two while more follow.
    """
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        if room == 0:
            batches.append([])
            fitting = max(1, min(most, budget // max(1, costs[index])))
            room = 1 << (fitting.bit_length() - 1)
        batches[-1].append(index)
        room -= 1
    return batches

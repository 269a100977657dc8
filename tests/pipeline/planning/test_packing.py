"""Packing, padding and truncation from statistics alone, beside the real thing."""

import random

import pytest

from tunewright.pipeline.data import statistics
from tunewright.pipeline.planning import packing
from tunewright.pipeline.planning.packing import Lengths


def log_normal(rows: int) -> list[int]:
    chance = random.Random(1)
    return [max(8, int(chance.lognormvariate(6, 0.8))) for _ in range(rows)]


def lengths_of(given: list[int], rows: int | None = None) -> Lengths:
    return packing.lengths({"estimated": False, **statistics._summary(given, len(given))}, rows or len(given))


def first_fit(given: list[int], limit: int) -> int:
    """Rows that a plain best-fit packing of the real lengths needs: slow, and by another way."""
    spaces: list[int] = []
    for length in sorted((min(length, limit) for length in given), reverse=True):
        room = [space for space in spaces if space >= length]
        if room:
            spaces.remove(min(room))
            spaces.append(min(room) - length)
        else:
            spaces.append(limit - length)
    return len(spaces)


@pytest.mark.parametrize("limit", [512, 2048, 4096])
def test_packed_rows_are_those_of_the_real_lengths(limit: int) -> None:
    given = log_normal(3000)
    packed = lengths_of(given).packed(limit)
    real = first_fit(given, limit)
    assert packed.rows == pytest.approx(real, rel=0.03)
    assert packed.fill == pytest.approx(sum(min(length, limit) for length in given) / (real * limit), abs=0.03)


def test_a_sample_stands_for_all_rows() -> None:
    given = log_normal(3000)
    assert lengths_of(given, 300_000).packed(2048).rows == pytest.approx(
        100 * lengths_of(given).packed(2048).rows, rel=0.01
    )


def test_shares_cut_are_those_of_the_real_lengths() -> None:
    given = log_normal(3000)
    found = lengths_of(given)
    for limit in (256, 1000, 2048):
        assert found.whole(limit) == pytest.approx(sum(length <= limit for length in given) / 3000, abs=0.02)
        assert found.kept(limit) == pytest.approx(sum(min(length, limit) for length in given) / sum(given), abs=0.02)
    assert found.whole(max(given)) == 1.0
    assert found.mean(10**6) == pytest.approx(sum(given) / 3000, rel=0.03)


@pytest.mark.parametrize("batch", [1, 2, 8, 32])
def test_padding_is_that_of_random_batches(batch: int) -> None:
    given = log_normal(3000)
    chance = random.Random(2)
    cut = [min(length, 2048) for length in given]
    seen = [max(chance.choices(cut, k=batch)) for _ in range(4000)]
    assert lengths_of(given).padded(2048, batch) == pytest.approx(sum(seen) / len(seen), rel=0.04)


def test_a_token_of_a_long_row_attends_to_more() -> None:
    assert lengths_of([100] * 50).pairs(2048) == pytest.approx(50, rel=0.1)
    assert lengths_of([4000] * 50).pairs(2000) == pytest.approx(1000, rel=0.1)


def test_percentiles_alone_are_enough() -> None:
    found = packing.lengths({"p50": 100, "p90": 200, "p99": 400, "max": 1000}, 1000)
    assert (found.rows, found.longest) == (1000, 1000)
    assert found.whole(200) == pytest.approx(0.9, abs=0.01)
    assert found.whole(400) == pytest.approx(0.99, abs=0.01)


def test_one_row_is_a_dataset() -> None:
    found = lengths_of([77])
    assert found.packed(256).rows == 1
    assert found.whole(77) == 1.0


def test_estimates_may_be_longer_than_they_say() -> None:
    tokens = {**statistics._summary([100] * 10, 10), "estimated": True}
    assert packing.lengths(tokens, 10).stretch > 1

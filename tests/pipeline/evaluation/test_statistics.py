"""Intervals agree with published values and with simulation, and never claim what chance could have done."""

import random

import pytest

from tunewright.pipeline.evaluation.statistics import Interval, mcnemar, mean, paired, proportion


def near(interval: Interval, low: float, high: float) -> bool:
    return (interval.low, interval.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_a_proportion_has_wilsons_interval() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    assert near(proportion(81, 263), 0.2553, 0.3662)
    assert near(proportion(15, 148), 0.0624, 0.1605)
    assert near(proportion(0, 20), 0.0, 0.1611)
    assert near(proportion(1, 29), 0.0061, 0.1718)
    assert proportion(7, 7).high == 1.0
    assert proportion(0, 0) == Interval(0.0, 0.0, 1.0)


def test_a_means_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    chance = random.Random(4)
    found = [mean([chance.gauss(3, 2) for _ in range(40)]) for _ in range(200)]
    held = sum(interval.low <= 3 <= interval.high for interval in found)
    # 95 % of 200 with four standard deviations of the count either side; a bootstrap of 40 is a little too narrow.
    assert 176 <= held <= 200
    assert all(interval.low < interval.value < interval.high for interval in found)


def test_the_same_values_give_the_same_interval_and_another_seed_another() -> None:
    chance = random.Random(1)
    values = [chance.random() for _ in range(30)]
    assert mean(values) == mean(values)
    assert mean(values, seed=1) != mean(values, seed=2)


def test_a_skewed_sample_has_a_skewed_interval() -> None:
    values = [0.1] * 15 + [0.2] * 10 + [5.0, 8.0]
    found = mean(values)
    assert found.high - found.value > found.value - found.low


def test_pairs_tell_what_two_separate_means_cannot() -> None:
    chance = random.Random(2)
    base = [chance.uniform(0, 100) for _ in range(30)]
    tuned = [value + 1 + chance.uniform(-0.5, 0.5) for value in base]
    assert mean(tuned).low < mean(base).high
    assert paired(tuned, base).sign == 1
    assert paired(base, tuned).sign == -1


def test_too_few_pairs_show_nothing_and_more_of_the_same_do() -> None:
    few = paired([5.0, 4.0, 3.0, 6.0, 5.0], [0.0] * 5)
    assert (few.low, few.sign) == (0.0, 0)
    assert paired([1.0], [0.0]) == Interval(1.0, 0.0, 1.0)
    assert paired([5.0, 4.0, 3.0, 6.0, 5.0, 4.0], [0.0] * 6).sign == 1


def test_one_different_pair_among_many_equal_ones_is_no_difference() -> None:
    assert paired([1.0] + [0.0] * 49, [0.0] * 50).sign == 0
    assert paired([0.5] * 50, [0.5] * 50) == Interval(0.0, 0.0, 0.0)


def test_values_that_cannot_be_averaged_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        mean([])
    with pytest.raises(ValueError, match="finite"):
        mean([1.0, float("nan")])
    with pytest.raises(ValueError, match="shorter"):
        paired([1.0, 2.0], [1.0])


def test_mcnemars_p_is_the_binomials() -> None:
    # R: binom.test(c(3, 14))$p.value, binom.test(c(0, 6))$p.value
    assert mcnemar(3, 14) == pytest.approx(0.01272583, abs=1e-8)
    assert mcnemar(6, 0) == pytest.approx(0.03125)
    assert mcnemar(5, 5) == mcnemar(0, 0) == 1.0
    assert 0 < mcnemar(2000, 2200) < 0.01


def test_a_thousand_questions_take_no_more_than_a_moment_of_memory() -> None:
    chance = random.Random(3)
    base = [float(chance.random() < 0.5) for _ in range(3000)]
    tuned = [max(value, float(chance.random() < 0.1)) for value in base]
    assert paired(tuned, base).sign == 1

"""Distances between distributions, against their definitions."""

import math

import numpy as np
import pytest

from tunewright.pipeline.exporting.parity import distance


def logprobs(*rows: list[float]) -> distance.Logprobs:
    return np.log(np.array(rows))


def test_kl_loss_and_margin_are_what_their_formulas_say() -> None:
    found = distance.of_whole(logprobs([0.5, 0.3, 0.2]), logprobs([0.3, 0.5, 0.2]), [0])
    assert found.kl == pytest.approx(0.2 * math.log(5 / 3))
    assert found.loss == pytest.approx(-math.log(0.3))
    assert (found.top1, found.top1_confident) == (0.0, None)
    # From 5 : 3 to 3 : 5.
    assert found.margin == pytest.approx(2 * math.log(5 / 3))


def test_a_distribution_is_at_no_distance_from_itself() -> None:
    rows = logprobs([0.6, 0.3, 0.1], [0.2, 0.2, 0.6])
    assert distance.of_whole(rows, rows, [0, 2]) == distance.Distance(0.0, 1.0, 1.0, 0.0, -math.log(0.6))


def test_with_some_tokens_listed_the_kl_is_a_lower_bound_that_grows_with_them() -> None:
    drawn = np.random.default_rng(5).dirichlet(np.ones(50), size=2)
    reference, other = np.log(drawn[:1]), np.log(drawn[1])
    best = np.argsort(other)[::-1]
    found = [
        distance.between(reference, [(best[:count].tolist(), other[best[:count]])], [int(best[0])]).kl
        for count in (5, 20, 49, 50)
    ]
    assert 0 < found[0] < found[1] < found[2]
    assert found[2] == pytest.approx(found[3])
    assert found[-1] == pytest.approx(distance.of_whole(reference, other[None], [0]).kl)


def test_equal_models_have_equal_losses_even_on_targets_that_are_not_listed() -> None:
    drawn = np.random.default_rng(6).dirichlet(np.full(1000, 5.0), size=40)
    reference = np.log(drawn)
    targets = [int(row.argsort()[300]) for row in reference]
    best = [np.argsort(row)[::-1][:40] for row in reference]
    same = distance.between(reference, [(ids, row[ids]) for row, ids in zip(reference, best, strict=True)], targets)
    assert same.loss == pytest.approx(distance.loss(reference, targets))
    # Half of what was not listed has gone to the likeliest token.
    moved = np.eye(1, 40)[0] * 0.4
    listed = [(ids, np.log(np.exp(row[ids]) + moved)) for row, ids in zip(reference, best, strict=True)]
    assert distance.between(reference, listed, targets).loss > same.loss + 0.4


def test_a_probability_that_underflowed_counts_as_the_smallest_there_is() -> None:
    lowest = float(np.finfo(np.float32).min)
    found = distance.between(logprobs([0.9, 0.1]), [([0, 1], [0.0, lowest])], [1])
    assert found.loss == pytest.approx(-distance.LEAST_LOGPROB)
    assert found.kl == pytest.approx(0.9 * math.log(0.9) + 0.1 * (math.log(0.1) - distance.LEAST_LOGPROB))


def test_what_is_not_finite_is_never_taken_for_close() -> None:
    found = distance.between(logprobs([0.9, 0.1]), [([0, 1], [float("nan"), -1.0])], [1])
    assert math.isnan(found.kl) and math.isnan(found.margin)

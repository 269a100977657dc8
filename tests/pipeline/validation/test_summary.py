"""What is said of many samples: the loss of all tokens together, differences in pairs, and never more than is shown."""

import math
import random
import re
import statistics

import pytest

from tunewright.pipeline.validation import summary
from tunewright.pipeline.validation.summary import METRICS, MIN_PAIRS

Losses = list[tuple[tuple[float, int], tuple[float, int]]]


def chances(count: int, better: float, seed: int = 5) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Scores of two models on `count` samples, the first better by `better` chrF on average."""
    draw = random.Random(seed)
    base = [{"chrf": draw.gauss(40, 10)} for _ in range(count)]
    return [{"chrf": one["chrf"] + draw.gauss(better, 5)} for one in base], base


def test_the_loss_is_that_of_all_tokens_together_and_the_perplexity_its_exponential() -> None:
    losses: Losses = [((2.0 * count, count), (3.0 * count, count)) for count in (1, 10, 100, 5, 7, 9, 30, 2)]
    losses[0] = ((8.0, 1), (3.0, 1))  # one short sample that went wrong weighs one token
    found = summary.compare([{}] * 8, [{}] * 8, losses)
    tokens = sum(count for (_, count), _ in losses)
    assert found["loss"].tuned.value == pytest.approx(2 + 6 / tokens)
    assert found["loss"].base.value == pytest.approx(3)
    assert found["loss"].difference is not None
    assert found["loss"].difference.value == pytest.approx(-1 + 6 / tokens)
    assert found["perplexity"].base.value == pytest.approx(math.exp(3))
    assert found["perplexity"].difference is None


def test_samples_of_one_loss_and_other_lengths_leave_no_doubt() -> None:
    losses: Losses = [((2.0 * count, count), (3.0 * count, count)) for count in range(1, 20)]
    loss = summary.compare([{}] * 19, [{}] * 19, losses)["loss"]
    assert (loss.tuned.low, loss.tuned.high) == pytest.approx((2, 2))
    assert loss.difference is not None
    assert (loss.difference.low, loss.difference.high) == pytest.approx((-1, -1))


def test_the_spread_of_the_loss_is_that_of_the_ratio_over_many_drawings() -> None:
    draw = random.Random(1)
    ratios: list[float] = []
    told: list[float] = []
    for _ in range(500):
        counts = [draw.randint(5, 200) for _ in range(40)]
        losses = [(count * draw.gauss(2, 0.5), count) for count in counts]
        values = summary._pooled(losses)  # pyright: ignore[reportPrivateUsage]
        ratios.append(statistics.fmean(values))
        told.append(statistics.stdev(values) / math.sqrt(40))
    # What one drawing says of its own error, beside how the drawings in truth differ. Without the linearisation the
    # lengths' spread would be counted too, more than twice as much.
    assert statistics.fmean(told) == pytest.approx(statistics.stdev(ratios), rel=0.1)


def test_a_loss_beyond_the_exponential_has_no_perplexity() -> None:
    losses: Losses = [((9000.0, 10), (20.0, 10))] * 9
    assert list(summary.compare([{}] * 9, [{}] * 9, losses)) == ["loss"]


def test_a_difference_that_is_there_is_told_with_its_interval() -> None:
    found = summary.compare(*chances(50, 12.0), [])
    said = summary.sentence(found, 50, trained_on=False)
    assert re.fullmatch(r"Tuned is better on chrF by 1\d\.\d \[\d+\.\d, \d+\.\d\]\.", said)


def test_without_a_difference_nothing_is_called_better() -> None:
    found = summary.compare(*chances(50, 0.0), [])
    assert found["chrf"].difference is not None and found["chrf"].difference.sign == 0
    assert summary.sentence(found, 50, trained_on=False) == "No difference shown in chrF."


def test_few_pairs_are_no_verdict() -> None:
    few = summary.compare(*chances(MIN_PAIRS - 1, 30.0), [])
    assert few["chrf"].difference is None and few["chrf"].samples == MIN_PAIRS - 1
    assert summary.sentence(few, 7, trained_on=False) == "7 samples are too few for a verdict: it takes 8 or more."
    enough = summary.compare(*chances(MIN_PAIRS, 30.0), [])
    assert "better on chrF" in summary.sentence(enough, 8, trained_on=False)


def test_a_metric_is_compared_on_the_samples_that_have_it_on_both_sides() -> None:
    tuned = [{"exact_match": 100.0, "stopped": 100.0}] * 9 + [{"stopped": 0.0}] * 3
    base = [{"exact_match": 0.0, "stopped": 100.0}] * 8 + [{"stopped": 100.0}] * 4
    found = summary.compare(tuned, base, [])
    assert list(found) == ["exact_match", "stopped"]
    assert (found["exact_match"].samples, found["stopped"].samples) == (8, 12)
    assert found["stopped"].tuned.value == 75
    # Wilson's interval of 9 in 12.
    assert (found["stopped"].tuned.low, found["stopped"].tuned.high) == pytest.approx((46.77, 91.11), abs=0.01)


def test_the_difference_of_shares_is_newcombes() -> None:
    # The paper's own example: 36 both, 12 and 2 one of them, 0 neither.
    pairs = [(100.0, 100.0)] * 36 + [(100.0, 0.0)] * 12 + [(0.0, 100.0)] * 2
    tuned, base = ([{"stopped": pair[i]} for pair in pairs] for i in (0, 1))
    difference = summary.compare(tuned, base, [])["stopped"].difference
    assert difference is not None
    assert (difference.value, difference.low, difference.high) == pytest.approx((20, 5.69, 34.04), abs=0.005)


def test_pairs_that_all_fell_alike_leave_doubt() -> None:
    found = summary.compare(
        [{"stopped": 100.0, "exact_match": 0.0}] * 10, [{"stopped": 0.0, "exact_match": 0.0}] * 10, []
    )
    ended, exact = found["stopped"].difference, found["exact_match"].difference
    assert ended is not None and exact is not None
    assert 50 < ended.low < 70 and ended.high == 100
    assert exact.low < -20 and exact.high > 20


def test_that_rows_were_trained_on_is_part_of_the_sentence() -> None:
    found = summary.compare(*chances(50, 12.0), [])
    assert "trained on" in summary.sentence(found, 50, trained_on=True)
    assert "trained on" not in summary.sentence(found, 50, trained_on=False)


def test_every_metric_says_which_way_is_better() -> None:
    found = summary.compare(*chances(9, 1.0), [((1.0, 1), (2.0, 1))] * 9)
    assert {name: compared.as_data(name)["better"] for name, compared in found.items()} == {
        "loss": "lower", "perplexity": "lower", "chrf": "higher",
    }  # fmt: skip
    assert METRICS["repetition"].better == "lower"

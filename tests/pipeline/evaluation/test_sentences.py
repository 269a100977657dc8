"""The sentence says no more than the intervals do."""

from tunewright.pipeline.evaluation.sentences import amount, comparison
from tunewright.pipeline.evaluation.statistics import Interval

LABELS = {"chrf": "chrF", "rouge_l": "ROUGE-L", "loss": "loss", "f1": "token F1"}
BETTER = {"chrf": "higher", "rouge_l": "higher", "loss": "lower", "f1": "higher"}


def test_each_metric_is_told_in_the_direction_that_its_interval_shows() -> None:
    differences = {
        "chrf": Interval(12.34, 8.1, 16.4),
        "loss": Interval(-0.52, -0.7, -0.31),
        "f1": Interval(-0.2, -0.3, -0.1),
        "rouge_l": Interval(0.1, -0.01, 0.2),
    }
    assert comparison(differences, better=BETTER, labels=LABELS) == (
        "Tuned is better on chrF by 12.3 [8.1, 16.4] and loss by 0.520 [0.310, 0.700]; "
        "worse on token F1 by 0.200 [0.100, 0.300]; no difference shown in ROUGE-L."
    )


def test_a_lower_loss_is_better_and_a_higher_one_worse() -> None:
    higher = comparison({"loss": Interval(1.5, 1.0, 2.0)}, better=BETTER, labels=LABELS)
    assert higher == "Tuned is worse on loss by 1.50 [1.00, 2.00]."


def test_an_interval_that_holds_zero_is_never_told_as_a_difference() -> None:
    touching = {"chrf": Interval(5.0, 0.0, 9.0), "rouge_l": Interval(-5.0, -9.0, 0.0)}
    assert comparison(touching, better=BETTER, labels=LABELS) == "No difference shown in chrF and ROUGE-L."
    assert comparison({}, better=BETTER, labels=LABELS) == "Nothing was compared."


def test_an_amount_has_places_for_its_size() -> None:
    assert amount(Interval(0.0123, 0.001, 0.02)) == "0.012 [0.001, 0.020]"
    assert amount(Interval(-250.0, -300.0, -200.0)) == "250.0 [200.0, 300.0]"

"""Averages are the published ones, and the sentences claim no more than the statistics show."""

import json
import random
from typing import Any

import pytest

from tunewright.pipeline.benchmarking import results
from tunewright.pipeline.benchmarking.exams import BENCHMARKS
from tunewright.pipeline.benchmarking.results import Scores
from tunewright.pipeline.evaluation.statistics import mcnemar


def of(subject: str) -> tuple[str, ...]:
    return BENCHMARKS["ceval"].described(subject)[1]


def scores(**right: list[int]) -> Scores:
    return {(subject, n): float(value) for subject, values in right.items() for n, value in enumerate(values)}


def test_accuracy_counts_questions_and_the_average_subjects() -> None:
    found = results.summary(scores(law=[1] * 9 + [0], college_physics=[1, 0]), of)
    assert found["accuracy"] == {"value": 0.8333, "low": 0.552, "high": 0.953}
    assert (found["of"], found["subject_average"]) == (12, 0.7)
    assert json.dumps(found["subjects"]["law"]) == '{"accuracy": 0.9, "correct": 9, "of": 10}'
    assert {group: numbers["value"] for group, numbers in found["groups"].items()} == {
        "Humanities": 0.9, "STEM": 0.5, "Hard": 0.5,
    }  # fmt: skip


def test_a_group_of_several_subjects_has_both_averages() -> None:
    group = results.summary(scores(law=[1, 1, 1], logic=[0], operating_system=[0]), of)["groups"]["Humanities"]
    assert (group["value"], group["subject_average"], group["of"]) == (0.75, 0.5, 4)


def pair(gained: int, lost: int, same: int) -> dict[str, Scores]:
    base = [0] * gained + [1] * lost + [1] * same
    tuned = [1] * gained + [0] * lost + [1] * same
    return {"tuned": scores(law=tuned), "base": scores(law=base)}


def test_a_clear_gain_is_told_with_its_numbers() -> None:
    (found,) = results.comparisons(pair(30, 5, 65))
    assert (found["a"], found["b"], found["only_a"], found["only_b"]) == ("tuned", "base", 30, 5)
    assert found["p_mcnemar"] == pytest.approx(mcnemar(30, 5), rel=0.01)
    assert found["difference"]["value"] == 0.25
    assert found["sentence"].startswith("The tuned model is better than the base by 25.0 [")
    assert "30 questions only the tuned model got right, 5 only the base" in found["sentence"]


def test_a_loss_is_told_as_one() -> None:
    (found,) = results.comparisons(pair(5, 30, 65))
    assert found["sentence"].startswith("The tuned model is worse than the base by 25.0 [")


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (6, 3), (5, 0), (12, 5)])
def test_nothing_is_claimed_where_chance_could_have_done_it(gained: int, lost: int) -> None:
    (found,) = results.comparisons(pair(gained, lost, 80))
    assert found["p_mcnemar"] > 0.05
    assert found["sentence"].startswith("No difference shown between the tuned model and the base")
    assert "better" not in found["sentence"]


def test_an_export_is_compared_with_both() -> None:
    by_model = {**pair(30, 5, 65), "export": pair(30, 5, 65)["tuned"]}
    assert [(one["a"], one["b"]) for one in results.comparisons(by_model)] == [
        ("tuned", "base"), ("export", "base"), ("export", "tuned"),
    ]  # fmt: skip
    assert results.comparisons(by_model)[2]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_a_guesser_is_said_to_be_one() -> None:
    chance = random.Random(0)
    guessed = {"tuned": results.summary(scores(law=[int(chance.random() < 0.25) for _ in range(200)]), of)}
    assert "what guessing gives" in results.chance_notes(guessed, 0.25)[0]
    knowing = {"tuned": results.summary(scores(law=[1] * 30 + [0] * 10), of)}
    assert not results.chance_notes(knowing, 0.25)


def test_shares_in_between_have_a_bootstrap_interval() -> None:
    found = results.accuracy([0.5, 1.0, 0.25, 0.0, 0.75, 1.0])
    assert found.low < found.value < found.high
    assert (found.value, found.low) != (results.accuracy([1, 1, 0, 0, 1, 1]).value, 0)


def test_a_result_stays_small_and_says_where_the_rest_is() -> None:
    chance = random.Random(1)
    many = {
        (subject, n): float(chance.random() < 0.5) for subject in BENCHMARKS["ceval"].subjects for n in range(26)
    }  # fmt: skip
    document: dict[str, Any] = {
        "models": {name: results.summary(many, of) for name in ("tuned", "base", "export")},
        "comparisons": results.comparisons({"tuned": many, "base": many, "export": many}),
        "notes": [], "files": {"evaluation": "…/evaluation.json"},
    }  # fmt: skip
    short = results.compact(document)
    assert len(json.dumps(short)) <= results.RESULT_BYTES < len(json.dumps(document))
    assert "subjects" not in short["models"]["base"]
    assert short["models"]["base"]["groups"] == document["models"]["base"]["groups"]
    assert short["notes"] == ["The numbers of each subject stand in …/evaluation.json."]
    assert results.compact(short) == short

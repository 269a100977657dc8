"""What is a failure, what is only described, and what is recommended."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tunewright.pipeline.exporting.parity import judge
from tunewright.pipeline.exporting.parity.cases import Cases
from tunewright.pipeline.exporting.parity.distance import Distance
from tunewright.pipeline.exporting.parity.in_llama import Measured
from tunewright.pipeline.exporting.parity.reference import Answers, Reference
from tunewright.pipeline.exporting.runtime import Reply

CLOSE = Distance(kl=1e-5, top1=1.0, top1_confident=1.0, margin=0.01, loss=2.0)
Judged = Callable[..., tuple[list[str], Any]]


def reply(tokens: list[int], ended: Any = "length") -> Reply:
    return {"text": "said", "finish_reason": ended, "tokens": tokens}


@pytest.fixture
def judged(seen: tuple[Cases, Reference]) -> Judged:
    """`judged(output, distance, answers)`: failures and greedy comparison, of answers beside the real reference."""
    cases, said = seen

    def judge_it(output: str, distance: Distance = CLOSE, said_by_it: list[Reply] | None = None, **changed: Any) -> Any:
        given = said.answers.given or []
        same = [reply(answer.tokens, answer.ended) for answer in given]
        measured = Measured([], 1000, {}, {}, distance, said_by_it or same)
        return judge.of_output(output, measured, replace(said, **changed), cases)

    return judge_it


@pytest.mark.parametrize(
    ("output", "kl", "is_failure"),
    [
        ("gguf:f16", 0.02, True), ("gguf:bf16", 0.02, True), ("gguf:q8_0", 0.02, True), ("gguf:q8_0", 0.005, False),
        ("gguf:q3_k_m", 0.3, False), ("gguf:q3_k_m", 1.5, True), ("gguf:q4_k_m", float("nan"), True),
    ],
)  # fmt: skip
def test_types_that_keep_everything_must_be_close_and_others_only_not_broken(
    judged: Judged, output: str, kl: float, is_failure: bool
) -> None:
    assert bool(judged(output, replace(CLOSE, kl=kl))[0]) == is_failure


def test_a_model_that_is_noisy_in_bfloat16_may_be_as_far_away(judged: Judged, seen: tuple[Cases, Reference]) -> None:
    noisy = replace(seen[1].noise, kl=0.01)
    assert judged("gguf:bf16", replace(CLOSE, kl=0.02), noise=noisy)[0] == []


def test_a_small_type_that_misses_what_the_model_is_sure_of_is_broken(judged: Judged) -> None:
    (failure,), _ = judged("gguf:q4_0", replace(CLOSE, kl=0.4, top1_confident=0.2))
    assert "shares 20% of the tokens" in failure


def others(seen: tuple[Cases, Reference], at: int) -> list[Reply]:
    """The reference's answers, the first of which takes the eighth likeliest token at step `at`."""
    given = seen[1].answers.given or []
    step = given[0].steps[at]
    changed = [*given[0].tokens[:at], min(step, key=lambda token: step[token]), *given[0].tokens[at + 1 :]]
    return [reply(changed), *(reply(answer.tokens, answer.ended) for answer in given[1:])]


def test_an_answer_that_parts_where_the_model_was_sure_fails_exact_types_alone(
    judged: Judged, seen: tuple[Cases, Reference]
) -> None:
    failures, greedy = judged("gguf:f16", said_by_it=others(seen, 3))
    assert "greedy answer 1 is" in failures[0] and (greedy.equal, greedy.of) == (9, 10)
    failures, greedy = judged("gguf:q4_k_m", said_by_it=others(seen, 3))
    assert failures == [] and greedy.equal == 9


def test_an_answer_that_parts_within_the_types_own_noise_is_no_failure(
    judged: Judged, seen: tuple[Cases, Reference]
) -> None:
    failures, greedy = judged("gguf:q8_0", replace(CLOSE, margin=5.0), others(seen, 3))
    assert failures == [] and greedy.equal == 9


def test_an_answer_that_goes_on_where_the_model_ends_has_no_excuse(
    judged: Judged, seen: tuple[Cases, Reference]
) -> None:
    given = seen[1].answers.given or []
    answers = [reply([*answer.tokens, 5]) for answer in given]
    failures, _ = judged("gguf:q8_0", replace(CLOSE, margin=100.0), answers)
    assert "greedy answer 1 is" in failures[0]


def test_an_answer_that_ends_early_at_a_control_token_which_the_model_gave_too_is_no_failure(
    judged: Judged, seen: tuple[Cases, Reference]
) -> None:
    first, *rest = seen[1].answers.given or []
    at_end = replace(first, tokens=[*first.tokens[:5], 0, *first.tokens[6:]])
    answers = [reply([*first.tokens[:5], 0], "stop"), *(reply(answer.tokens) for answer in rest)]
    failures, greedy = judged("gguf:f16", said_by_it=answers, answers=Answers([at_end, *rest], "float32", 0.0))
    assert failures == [] and greedy.equal == 9


def test_an_answer_that_stops_at_a_token_of_the_text_is_a_failure_in_every_type(
    judged: Judged, seen: tuple[Cases, Reference]
) -> None:
    token = seen[0].template.ids("fox")[0]
    answers = [reply([token], "stop")] * len(seen[0].asked)
    failures, _ = judged("gguf:q3_k_m", said_by_it=answers)
    assert "which ends no answer in training" in failures[0]


def test_without_answers_of_the_model_nothing_is_compared(judged: Judged) -> None:
    none = Answers(None, None, 0.0)
    assert judged("gguf:f16", said_by_it=[reply([1])], answers=none) == ([], None)


def output(kl: float, loss: float, size: int, passed: bool = True) -> dict[str, Any]:
    return {"passed": passed, "kl": kl, "eval_loss": loss, "bytes": size}


def test_the_smallest_file_that_costs_hardly_anything_is_recommended() -> None:
    outputs = {
        "gguf:f16": output(1e-6, 2.0, 160), "gguf:q6_k": output(0.005, 2.0, 66), "gguf:q4_k_m": output(0.03, 2.02, 48),
        "gguf:q4_0": output(0.07, 2.03, 46), "gguf:q4_k_s": output(0.04, 2.2, 47),
        "gguf:q5_k_m": output(0.001, 2.0, 40, passed=False),
    }  # fmt: skip
    found = judge.recommend(outputs, 2.0, 256)
    assert found is not None and found["output"] == "gguf:q4_k_m" and "KL 0.03" in found["why"]


def test_where_all_cost_something_the_closest_is_named_as_that() -> None:
    outputs = {"gguf:q4_0": output(0.07, 2.1, 46), "gguf:q3_k_m": output(0.1, 2.2, 40)}
    found = judge.recommend(outputs, 2.0, 256)
    assert found is not None and found["output"] == "gguf:q4_0" and found["why"].startswith("No file is within")
    assert judge.recommend({"gguf:q4_0": output(0.0, 2.0, 4, passed=False)}, 2.0, 256) is None


def test_on_little_data_nothing_below_eight_bits_is_recommended() -> None:
    outputs = {
        "gguf:f16": output(1e-6, 2.0, 160),
        "gguf:q8_0": output(1e-4, 2.0, 85),
        "gguf:q3_k_m": output(0.001, 2.0, 40),
    }
    found = judge.recommend(outputs, 2.0, 52)
    assert found is not None and found["output"] == "gguf:q8_0" and "52 tokens" in found["why"]
    assert judge.recommend({"gguf:q3_k_m": outputs["gguf:q3_k_m"]}, 2.0, 52) is not None

"""What the Reporter makes of real runs of Unsloth's trainers, healthy and ill."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("reporting_runs.py")
TIMEOUT_S = 400
# As in reporting_runs.py: 16 rows, four a step; loss on the second half of each, rounded up.
LENGTHS = [5, 9, 12, 20, 7, 7, 16, 11, 6, 18, 10, 8, 13, 15, 9, 14]
WITH_LOSS = sum(-(-length // 2) for length in LENGTHS)

Seen = dict[str, Any]


@pytest.fixture(scope="module")
def seen(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("reporting")
    finished = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), str(toy_folder), str(folder)], capture_output=True, encoding="utf-8",
        timeout=TIMEOUT_S, env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads((folder / "seen.json").read_text(encoding="utf-8"))


def codes(run: Seen) -> list[str]:
    return [code for _, code, _ in run["events"]]


def test_every_logged_step_has_the_numbers_of_a_run(seen: Seen) -> None:
    train = seen["whole"]["train"]
    assert list(train) == [str(step) for step in range(1, 13)]
    names = {
        "loss", "grad_norm", "learning_rate", "epoch", "entropy", "token_accuracy", "loss_share", "tokens_per_s",
        "peak_gib", "host_free_gib",
    }  # fmt: skip
    for numbers in train.values():
        assert set(numbers) == names
        assert all(math.isfinite(number) for number in numbers.values())
    assert train["12"]["loss"] < train["1"]["loss"]
    assert train["1"]["host_free_gib"] > 0 and train["12"]["tokens_per_s"] > 0
    assert train["4"]["learning_rate"] == pytest.approx(1e-2 * 9 / 12)


def test_evaluations_of_raw_text_have_their_perplexity(seen: Seen) -> None:
    evaluations = seen["whole"]["eval"]
    assert list(evaluations) == ["3", "6", "9", "12"]
    for numbers in evaluations.values():
        assert numbers["perplexity"] == pytest.approx(math.exp(numbers["loss"]), abs=1e-3)
        assert {"entropy", "token_accuracy"} <= set(numbers)
    assert "perplexity" not in seen["early"]["eval"]["3"]


def test_tokens_are_counted_without_padding_and_without_evaluations(seen: Seen) -> None:
    whole = seen["whole"]
    assert (whole["tokens_seen"], whole["tokens_with_loss"]) == (3 * sum(LENGTHS), 3 * WITH_LOSS)
    shares = [numbers["loss_share"] for numbers in whole["train"].values()]
    assert all(0.5 <= share < 0.56 for share in shares)


def test_the_batches_of_every_method_are_counted(seen: Seen) -> None:
    # KTO: (3+2) + (1+1) read; its KL rows, which are not trained on, are not. ORPO: chosen 3+6, rejected 3+3.
    assert seen["batches"] == {
        "kto": [7, 3], "orpo": [15, 7], "grpo": [9, 4], "packed": [30, 18], "evaluated": [0, 0],
    }  # fmt: skip
    dpo = seen["dpo"]
    # Two epochs; the prompt is read with either answer.
    assert dpo["tokens_seen"] == 2 * sum(2 * prompt + chosen + rejected for prompt, chosen, rejected in dpo["lengths"])
    assert dpo["tokens_with_loss"] == 2 * sum(chosen + rejected for _, chosen, rejected in dpo["lengths"])


def test_a_preference_run_has_its_margins_in_training_and_evaluation(seen: Seen) -> None:
    names = {"loss", "margin", "accuracy", "reward_chosen", "reward_rejected", "logp_chosen", "logp_rejected"}
    train, evaluation = seen["dpo"]["train"]["4"], seen["dpo"]["eval"]["4"]
    assert names <= set(train) and names <= set(evaluation)
    assert train["margin"] == pytest.approx(train["reward_chosen"] - train["reward_rejected"], abs=1e-5)
    assert train["margin"] > seen["dpo"]["train"]["1"]["margin"]


def test_names_are_short_and_what_is_not_finite_is_left_out(seen: Seen) -> None:
    assert seen["grpo_names"] == {
        "loss": 0.0, "reward": 0.5, "reward_length": 0.25, "completion_length": 31.5, "same_reward_share": 0.5,
        "not_finite": 1,
    }  # fmt: skip


def test_progress_has_the_last_step_and_the_time_left(seen: Seen) -> None:
    progress = seen["nan"]["progress"]
    assert (progress["phase"], progress["done"], progress["total"]) == ("training", 8, 12)
    assert 0 < progress["eta_s"] < 60
    whole = seen["whole"]
    assert {name: whole["progress"][name] for name in whole["train"]["12"]} == whole["train"]["12"]


def test_the_facts_of_a_run_are_stored_once(seen: Seen) -> None:
    (facts,) = seen["whole"]["run"].values()
    assert facts["max_steps"] == 12 and facts["truncated_share"] == 4 / 16 and facts["host_total_gib"] > 1


def test_an_alert_is_raised_once_though_it_holds_at_every_step(seen: Seen) -> None:
    assert codes(seen["whole"]) == ["truncation"]
    assert codes(seen["masked"]) == ["all_labels_masked"]
    level, _, message = seen["masked"]["events"][0]
    assert level == "warning" and "No token carries loss" in message and "inspect_dataset" in message


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing_of_it(seen: Seen) -> None:
    run = seen["nan"]
    assert run["diverged"] == "The loss is not a finite number at step 8"
    assert (run["global_step"], run["checkpoints"]) == (8, ["checkpoint-3", "checkpoint-6"])
    assert run["train"]["8"]["not_finite"] == 1 and "loss" not in run["train"]["8"]
    ((level, code, message),) = run["events"]
    assert (level, code) == ("error", "diverged")
    assert "Stopped at step 8 of 12" in message and "from 0.01 to 0.0025" in message


def test_a_loss_far_above_its_best_is_said_and_then_stops_the_run(seen: Seen) -> None:
    run = seen["blown"]
    assert run["global_step"] == 35 and run["train"]["35"]["loss"] > 50
    assert "stayed above" in run["diverged"]
    assert codes(run) == ["exploding", "diverged"]


def test_a_cancel_stops_at_the_next_step_with_a_checkpoint(seen: Seen) -> None:
    run = seen["cancelled"]
    assert (run["cancelled"], run["global_step"], run["checkpoints"][-1]) == (True, 5, "checkpoint-5")
    assert (run["stopped_early"], run["diverged"], codes(run)) == (False, None, [])


def test_early_stopping_is_told_from_an_end(seen: Seen) -> None:
    run = seen["early"]
    assert (run["stopped_early"], run["global_step"]) == (True, 6)
    ((_, code, message),) = run["events"]
    assert code == "stopped_early" and "step 6 of 12: eval_loss has got no better than the 6." in message
    assert not seen["whole"]["stopped_early"] and not seen["nan"]["stopped_early"]


def test_rows_between_logging_steps_are_counted_with_them(seen: Seen) -> None:
    run = seen["sparse"]
    assert list(run["train"]) == ["1", "10", "20"]
    assert run["train"]["20"]["tokens_per_s"] > 0
    assert run["tokens_seen"] == 5 * sum(LENGTHS)


def test_a_resumed_run_replaces_its_rows_and_repeats_no_alert(seen: Seen) -> None:
    before, after, whole = seen["before"], seen["resumed"], seen["whole"]
    assert before["global_step"] == 9 and "not_finite" in before["train"]["9"]
    assert codes(before) == ["truncation", "diverged"] == codes(after)
    losses = [[run["train"][str(step)]["loss"] for step in range(1, 13)] for run in (after, whole)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert after["diverged"] is None and "not_finite" not in after["train"]["9"]

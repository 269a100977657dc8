"""The fine-tuning job on the toy, whole and with planted faults: one process trains, these tests look at its facts."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline import toy
from tunewright.pipeline.settings import Home

RUNS = Path(__file__).with_name("finetune_runs.py")
STEPS = 8
RUNS_TIMEOUT_S = 600
Facts = dict[str, Any]


@pytest.fixture(scope="module")
def facts(trained_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Facts]:
    root = tmp_path_factory.mktemp("finetune")
    home = Home.open(root / "home")
    shutil.copytree(trained_toy, toy.folder(home))
    command = [sys.executable, "-P", str(RUNS), str(home.root), str(root / "facts.json")]
    with (root / "log.txt").open("w", encoding="utf-8") as log:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run(command, check=True, timeout=RUNS_TIMEOUT_S, env=environment, stdout=log, stderr=log)
    return json.loads((root / "facts.json").read_text(encoding="utf-8"))


def losses(run: Facts) -> list[float]:
    return [loss for _, loss in run["train"]]


def codes(run: Facts) -> list[str]:
    return [code for code, _ in run["events"]]


def rungs(run: Facts) -> list[str]:
    return [message.partition("with less: ")[2] for code, message in run["events"] if code == "out_of_memory"]


def test_the_loss_falls_and_an_adapter_is_stored(facts: dict[str, Facts]) -> None:
    plain = facts["plain"]
    assert plain["state"] == "succeeded" and len(plain["adapters"]) == 1
    assert losses(plain)[-1] < losses(plain)[0] - 0.8


def test_the_rehearsal_of_the_longest_batch_changes_nothing_that_is_trained(facts: dict[str, Facts]) -> None:
    with_it, without = facts["plain"], facts["without rehearsal"]
    assert with_it["train"] == without["train"], "dropout is on: a draw more or less would show"
    assert with_it["weights_sum"] == without["weights_sum"]


def test_out_of_memory_goes_down_the_ladder_from_the_last_checkpoint_and_learns_the_same(
    facts: dict[str, Facts],
) -> None:
    run = facts["out of memory"]
    assert run["state"] == "succeeded" and len(run["adapters"]) == 1
    assert rungs(run) == [
        "micro-batch 4 → 2, accumulation 1 → 2.", "micro-batch 2 → 1, accumulation 2 → 4.",
    ]  # fmt: skip
    assert codes(run).count("resumed_from") == 2
    assert run["lowered"] == {"batch_size": 1, "gradient_accumulation": 4}
    assert [step for step, _ in run["train"]] == list(range(1, STEPS + 1))
    undisturbed = losses(facts["diverged"])[:5]
    assert losses(run)[:5] == pytest.approx(undisturbed, abs=1e-4)


def test_a_batch_that_cannot_fit_is_found_before_the_first_step(facts: dict[str, Facts]) -> None:
    run = facts["too large from the start"]
    assert run["state"] == "succeeded"
    assert rungs(run) == ["micro-batch 4 → 2, accumulation 1 → 2."]
    assert [step for step, _ in run["train"]] == [1, 2]


def test_what_fits_on_no_rung_fails_with_what_was_tried_and_stores_nothing(facts: dict[str, Facts]) -> None:
    run = facts["never fits"]
    assert run["state"] == "failed" and run["adapters"] == []
    assert run["error"]["code"] == "out_of_memory"
    assert "batch_size=1" in run["error"]["what"] and "plan_finetune(" in run["error"]["next"]
    assert rungs(run)[-1] == "gradient checkpointing on."


def test_a_run_that_diverges_without_a_good_checkpoint_fails_with_advice(facts: dict[str, Facts]) -> None:
    run = facts["diverged"]
    assert run["state"] == "failed" and run["adapters"] == []
    assert run["error"]["code"] == "training_diverged" and "learning_rate" in run["error"]["allowed"]
    assert losses(run)[-1] is None and len(run["train"]) == 6, "it stops at the step that is not finite"


def test_a_run_that_diverges_keeps_its_best_checkpoint(facts: dict[str, Facts]) -> None:
    run = facts["diverged with a best"]
    assert run["state"] == "succeeded" and len(run["adapters"]) == 1
    assert run["result"]["best_step"] == 4
    assert "best_kept" in codes(run)
    assert math.isfinite(run["weights_sum"])


def test_early_stopping_stores_the_weights_of_the_lowest_eval_loss(facts: dict[str, Facts]) -> None:
    run = facts["watched"]
    best_step, best = min(run["eval"], key=lambda point: point[1])
    assert run["eval"][-1][0] < 40 and run["eval"][-1][0] == best_step + 4, (
        "two evaluations of patience, two steps each"
    )
    assert run["result"]["best_step"] == best_step
    assert run["result"]["eval_loss"] == pytest.approx(best, abs=1e-6)
    assert "stopped_early" in codes(run)


def test_what_tensorboard_was_told_stays_when_the_checkpoints_go(facts: dict[str, Facts]) -> None:
    run = facts["tensorboard"]
    assert run["state"] == "succeeded" and "tensorboard" in run["folder"] and "checkpoints" not in run["folder"]
    assert any("tensorboard --logdir" in message for _, message in run["events"])


def test_a_job_of_an_older_version_trains_as_it_would_have_then(facts: dict[str, Facts]) -> None:
    run = facts["of an older version"]
    assert run["state"] == "succeeded", run["error"]
    assert losses(run) == losses(facts["diverged"])[:2]


def test_a_polynomial_schedule_falls_from_however_small_a_rate(facts: dict[str, Facts]) -> None:
    assert facts["tiny rate"]["state"] == "succeeded", facts["tiny rate"]["error"]


def test_a_run_that_was_killed_after_it_had_stopped_early_goes_no_further(facts: dict[str, Facts]) -> None:
    run, untouched = facts["killed"], facts["watched"]
    assert run["first"]["state"] == "failed" and run["state"] == "succeeded", run["error"]
    assert run["steps"] == [step for step, _ in untouched["train"]]
    assert run["result"]["best_step"] == untouched["result"]["best_step"]
    assert run["result"]["eval_loss"] == untouched["result"]["eval_loss"]


def test_loss_falls_on_the_answers_alone_or_on_all_tokens(facts: dict[str, Facts]) -> None:
    assert all(0.2 < share < 0.5 for share in facts["plain"]["loss_share"])
    assert facts["all tokens"]["loss_share"] == [1.0, 1.0]


def test_neftune_adds_noise_to_the_embeddings(facts: dict[str, Facts]) -> None:
    plain, noisy = losses(facts["plain"]), losses(facts["noisy"])
    assert noisy[0] != plain[0], "the adapter begins as zero, so the first loss tells the noise alone"
    assert facts["noisy"]["state"] == "succeeded"


def test_a_backend_that_lets_packed_examples_see_each_other_trains_unpacked_and_says_so(
    facts: dict[str, Facts],
) -> None:
    run = facts["packed"]
    assert run["state"] == "succeeded" and "not_packed" in codes(run)
    assert losses(run) == losses(facts["diverged"])[:2], "the same as a run that never asked for packing"


def test_continued_pretraining_lowers_the_perplexity_of_held_out_text(facts: dict[str, Facts]) -> None:
    run = facts["texts"]
    held_out = [math.exp(loss) for _, loss in run["eval"]]
    assert held_out == sorted(held_out, reverse=True)
    assert held_out[-1] < 0.5 * held_out[0]
    assert run["loss_share"][0] == 1.0


def test_a_restart_after_host_memory_ran_out_goes_a_rung_down_and_after_another_death_does_not(
    facts: dict[str, Facts],
) -> None:
    run = facts["killed for host memory"]
    assert run["state"] == "succeeded"
    assert rungs(run) == ["micro-batch 4 → 2, accumulation 1 → 2."]
    assert facts["killed otherwise"]["lowered"] is None


def test_a_failed_try_keeps_no_embeddings_in_memory(facts: dict[str, Facts]) -> None:
    assert facts["embeddings"]["forgotten"]

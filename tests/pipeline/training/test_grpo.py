"""Training by reward: what the prompts are, that the toy comes to earn more, and that a killed run goes on exactly."""

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline import toy
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.workspace import Workspace

RUNS = Path(__file__).with_name("grpo_runs.py")
TIMEOUT_S = 500
NO_THINKING = "<think>\n\n</think>\n\n"


@pytest.fixture(scope="module")
def ran(trained_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `grpo_runs.py` found: one process, as importing Unsloth takes a quarter of a minute."""
    place = tmp_path_factory.mktemp("rewards")
    workspace = Workspace.open(place / "home")
    shutil.copytree(trained_toy, toy.folder(workspace.home))
    workspace.store.close()
    finished = subprocess.run(
        [sys.executable, "-P", str(RUNS), str(place / "home"), str(place / "found.json")],
        capture_output=True, encoding="utf-8", timeout=TIMEOUT_S, cwd=place,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads((place / "found.json").read_text(encoding="utf-8"))


def logged(ran: dict[str, Any], name: str) -> list[float]:
    return [row[name] for row in ran["learnt"]["log"] if name in row]


def test_held_out_prompts_earn_clearly_more_after_training(ran: dict[str, Any]) -> None:
    before, after = ran["learnt"]["before"], ran["learnt"]["after"]
    assert len(before) == len(after) == 8
    assert statistics.mean(before) < 0.7
    assert statistics.mean(after) > statistics.mean(before) + 0.25
    assert all(new >= old for new, old in zip(after, before, strict=True))


def test_the_rewards_length_and_kl_are_logged_and_the_reward_rises(ran: dict[str, Any]) -> None:
    rewards = logged(ran, "reward")
    assert len(rewards) == ran["learnt"]["steps"] == 16
    assert statistics.mean(rewards[-4:]) > statistics.mean(rewards[:4]) + 0.25
    lengths = logged(ran, "completions/mean_length")
    assert statistics.mean(lengths[-4:]) < 0.8 * statistics.mean(lengths[:4])
    assert logged(ran, "rewards/length/mean") == rewards
    assert len(logged(ran, "reward_std")) == 16
    assert logged(ran, "kl")[0] == pytest.approx(0, abs=1e-6) and logged(ran, "kl")[-1] > 0


def test_the_best_checkpoint_is_the_one_with_the_highest_eval_reward(ran: dict[str, Any]) -> None:
    assert len(logged(ran, "eval_reward")) == 2
    assert ran["learnt"]["best_metric"] == max(logged(ran, "eval_reward"))


def test_the_tokens_of_prompts_and_answers_are_counted_and_only_the_answers_carry_loss(ran: dict[str, Any]) -> None:
    assert ran["learnt"]["tokens_seen"] == logged(ran, "num_tokens")[-1]
    answers = sum(32 * length for length in logged(ran, "completions/mean_length"))
    assert ran["learnt"]["tokens_with_loss"] == round(answers)


def test_nothing_but_the_adapter_is_stored(ran: dict[str, Any]) -> None:
    assert ran["learnt"]["adapters"] == []


def test_answers_are_those_of_the_plain_model_whatever_the_checkpointing(ran: dict[str, Any]) -> None:
    rows = ran["written"]
    assert len({len(row["ids"]) for row in rows}) > 1
    assert [row["answer"].removesuffix("<|im_end|>") for row in rows] == [row["alone"] for row in rows]


def test_prompts_are_read_with_the_templates_own_ids(ran: dict[str, Any]) -> None:
    assert all(row["ids"] == row["expected_ids"] for row in ran["written"])


def test_b_and_the_embeddings_learn_at_their_own_rates(ran: dict[str, Any]) -> None:
    assert ran["rates"] == [1e-4, 4e-3, 16 * 4e-3]


def test_a_run_that_goes_on_from_a_checkpoint_ends_as_if_it_had_never_stopped(ran: dict[str, Any]) -> None:
    through, resumed = ran["resume"]["through"], ran["resume"]["resumed"]
    assert ran["resume"]["from"] == "checkpoint-5"
    assert len(through["losses"]) == 9
    assert any(abs(loss) > 1e-3 for loss in through["losses"][5:])
    for name in ("losses", "rewards", "kl", "lengths"):
        assert resumed[name] == pytest.approx(through[name], rel=1e-4, abs=1e-6)
    for name, values in through["weights"].items():
        assert resumed["weights"][name] == pytest.approx(values, abs=1e-6)


def test_a_run_that_starts_from_an_adapter_keeps_it_as_the_reference(ran: dict[str, Any]) -> None:
    through = ran["resume"]["through"]
    assert through["reference_is_kept"]
    # The first step's rate is 0, so by the second the policy is still the adapter, which is far from its base.
    assert through["kl"][:2] == pytest.approx([0, 0], abs=1e-6)
    assert through["kl"][-1] > 0.01


def test_a_prompt_is_all_before_the_last_answer_which_is_its_reference(ran: dict[str, Any]) -> None:
    talk, with_tool = ran["odd"]["rows"]
    assert talk["prompt"] == (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
        f"<|im_start|>user\nWhat is tea?<|im_end|>\n<|im_start|>assistant\n{NO_THINKING}"
    )
    assert talk["reference"] == "A drink."
    assert '"name": "look_up"' in with_tool["prompt"] and with_tool["prompt"].startswith("<|im_start|>system")


def test_prompts_that_leave_no_room_for_an_answer_are_left_out_and_counted(
    ran: dict[str, Any], trained_toy: Path
) -> None:
    odd, template = ran["odd"], ChatTemplate(trained_toy)
    assert (odd["count"], odd["left_out"]) == (2, 1)
    assert odd["tokens"] == 8 * sum(len(template.ids(row["prompt"])) for row in odd["rows"])
    assert "1 of 3 training prompts are longer than 576 tokens" in dict(odd["events"])["prompts_left_out"]
    for refused in (ran["too_long"], ran["no_room"]):
        assert refused.startswith("nothing_to_train: ") and "max_completion_length" in refused


def test_an_evaluation_answers_64_prompts_at_most(ran: dict[str, Any]) -> None:
    assert ran["odd"]["eval_rows"] == 64


def test_thinking_is_left_to_the_model_where_it_is_on_and_a_format_that_asks_for_it_where_it_is_off_is_told(
    ran: dict[str, Any],
) -> None:
    assert ran["thinking"]["rows"][0]["prompt"].endswith("<|im_start|>assistant\n")
    assert "thinking_off" not in dict(ran["thinking"]["events"])
    assert "enable_thinking=false" in dict(ran["shut"]["events"])["thinking_off"]


def test_answers_without_a_number_to_match_are_told_and_refused_where_all_are(ran: dict[str, Any]) -> None:
    assert dict(ran["numbers"]["events"])["nothing_to_match"].startswith("1 of 2 last answers hold no number")
    assert ran["no_numbers"].startswith("nothing_to_match: kind='numeric_match'")


def test_an_adapter_on_the_head_is_refused(ran: dict[str, Any]) -> None:
    assert ran["head"].startswith("head_not_adaptable: ")


def test_each_reward_is_a_function_by_the_name_of_its_kind_numbered_where_it_comes_again(ran: dict[str, Any]) -> None:
    scores = ran["judged"]["scores"]
    assert list(scores) == ["length_1", "exact_match", "length_2", "regex", "format"]
    assert scores["exact_match"] == [1, 1, 1, 0]
    assert scores["length_1"] == pytest.approx([2 / 3, 1, 1, 1])
    assert scores["length_2"] == [0.75, 0.25, 0.25, 0.25]


def test_thinking_that_the_template_opened_belongs_to_the_answer(ran: dict[str, Any]) -> None:
    assert ran["judged"]["scores"]["format"] == [0, 0, 1, 0]


def test_a_pattern_without_an_end_earns_nothing_and_is_told_once(ran: dict[str, Any]) -> None:
    assert ran["judged"]["scores"]["regex"][-1] == 0
    assert [code for code, _ in ran["judged"]["events"]] == ["reward_timed_out"]


def test_a_step_holds_whole_groups_near_what_was_asked_for_and_no_more_prompts_than_there_are(
    ran: dict[str, Any],
) -> None:
    found = {tuple(asked): tuple(given) for asked, given in ran["batches"]}
    assert found == {
        # batch_size, gradient_accumulation, num_generations, prompts
        (16, 2, 8, 24): (16, 2),
        (2, 4, 8, 24): (2, 4),
        (3, 3, 8, 24): (2, 8),
        (1, 1, 8, 24): (1, 8),
        (16, 4, 8, 3): (12, 2),
        (5, 1, 2, 1): (2, 1),
        (64, 1, 8, 24): (64, 1),
    }

"""Judged answers: what KTO is fed, how labels are balanced, and that the toy comes to tell good from bad."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline import toy
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.workspace import Workspace

RUNS = Path(__file__).with_name("preference_runs.py")
TIMEOUT_S = 400


@pytest.fixture(scope="module")
def ran(trained_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `preference_runs.py` found: one process, as importing Unsloth takes a quarter of a minute."""
    place = tmp_path_factory.mktemp("judged")
    workspace = Workspace.open(place / "home")
    shutil.copytree(trained_toy, toy.folder(workspace.home))
    workspace.store.close()
    finished = subprocess.run(
        [sys.executable, "-P", str(RUNS), "kto", str(place / "home"), str(place / "found.json")],
        capture_output=True, encoding="utf-8", timeout=TIMEOUT_S, cwd=place,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads((place / "found.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def template(trained_toy: Path) -> ChatTemplate:
    return ChatTemplate(trained_toy)


def judged(template: ChatTemplate, ids: list[int], mask: list[int]) -> str:
    return template.tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m], skip_special_tokens=False)


def test_held_out_good_answers_become_likelier_and_bad_ones_unlikelier(ran: dict[str, Any]) -> None:
    gains = list(zip(ran["run"]["gains"]["input_"], ran["run"]["held_out_labels"], strict=True))
    good, bad = ([gain for gain, label in gains if label is wanted] for wanted in (True, False))
    assert len(good) == len(bad) == 12
    assert min(good) > 5
    assert max(bad) < -5


@pytest.mark.parametrize("prefix", ["", "eval_"])
def test_margins_and_the_kl_term_are_logged(ran: dict[str, Any], prefix: str) -> None:
    logged = [row for row in ran["run"]["log"] if f"{prefix}loss" in row]
    assert all(row[f"{prefix}kl"] >= 0 for row in logged)
    margins = [row[f"{prefix}rewards/margins"] for row in logged if f"{prefix}rewards/margins" in row]
    assert margins[-1] > margins[0] + 1


def test_the_rarer_label_is_weighted_until_the_ratio_is_four_thirds(ran: dict[str, Any]) -> None:
    good, bad = ran["run"]["weights"]
    assert (good, bad) == (1, pytest.approx(1.5))  # 36 × 1 / (18 × 1.5) = 4/3
    assert ran["even"] == [1, 1]  # 40 : 35 lies between 1 and 4/3 as it is
    assert ran["rare"] == [4, 1]  # 10 × 4 / 40 = 1
    assert ran["one_sided"] == [1, 1]


def test_the_weights_are_those_of_the_loss(ran: dict[str, Any]) -> None:
    labels = ran["run"]["batch"]["label"]
    expected = sum(0.5 * (1.0 if label else 1.5) for label in labels) / len(labels)
    assert ran["run"]["first_loss"] == pytest.approx(expected, abs=1e-3)


def test_a_micro_batch_of_one_becomes_two_and_a_step_keeps_its_rows(ran: dict[str, Any]) -> None:
    assert len(ran["run"]["batch"]["label"]) == 2
    assert ran["run"]["steps"] == 14  # 54 rows, 4 a step


def test_sorted_rows_are_mixed(ran: dict[str, Any]) -> None:
    labels = [row["label"] for row in ran["run"]["fed"]]
    assert sorted(labels, reverse=True) != labels
    assert 0 < sum(labels[:18]) < 18


def test_the_kl_term_pairs_each_prompt_with_its_neighbours_answer(ran: dict[str, Any], template: ChatTemplate) -> None:
    rows = ran["run"]["fed"]
    assert len(rows) == 54
    for number, row in enumerate(rows):
        neighbour = rows[number ^ 1]  # the other one of its micro-batch of two
        answer = judged(template, neighbour["input_ids"], neighbour["input_mask"])
        assert judged(template, row["kl_ids"], row["kl_mask"]) == answer
        begin = row["input_mask"].index(1)
        assert row["kl_ids"][:begin] == row["input_ids"][:begin]
        assert row["kl_mask"][:begin] == [0] * begin


def test_the_trainer_is_fed_the_chat_templates_ids_and_no_more(ran: dict[str, Any], template: ChatTemplate) -> None:
    batch = ran["run"]["batch"]
    for ids, attended, mask in zip(batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True):
        length = sum(attended)
        asked, _, answer = template.tokenizer.decode(ids[:length], skip_special_tokens=False).partition("assistant\n")
        question = asked.removeprefix("<|im_start|>user\n").partition("<|im_end|>")[0]
        said = answer.removeprefix("<think>\n\n</think>\n\n").removesuffix("<|im_end|>\n")
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": said}]
        assert ids[:length] == template.encode(messages)[0]
        assert judged(template, ids, mask) == said + "<|im_end|>"


def test_only_the_last_answer_is_judged(ran: dict[str, Any], template: ChatTemplate) -> None:
    texts = {judged(template, row["input_ids"], row["input_mask"]) for row in ran["odd"]["rows"]}
    assert "You are welcome.<|im_end|>" in texts  # not the earlier "A hot drink."
    assert not any("A hot drink" in text for text in texts)


def test_long_answers_are_cut_and_those_cut_off_whole_left_out(ran: dict[str, Any]) -> None:
    odd = ran["odd"]
    assert (odd["count"], odd["truncated"], odd["left_out"]) == (4, 3, 1)
    assert odd["tokens"] == sum(len(row["input_ids"]) for row in odd["rows"])
    assert dict(odd["events"])["truncated"].startswith("3 of 5 training rows")


def test_the_reference_is_the_policy_that_the_run_starts_from(ran: dict[str, Any]) -> None:
    found = ran["references"]
    assert found["reference"] == pytest.approx(found["own"], abs=1e-2)
    assert found["reference"] != pytest.approx(found["base"], abs=0.1)


def test_no_second_adapter_is_trained_or_stored(ran: dict[str, Any]) -> None:
    before, after = ran["run"]["trainable"]
    assert before == after
    assert ran["run"]["adapters"] == ran["run"]["checkpoint_folders"] == []


def test_a_single_usable_row_is_refused(ran: dict[str, Any]) -> None:
    assert ran["refused"].startswith("nothing_to_train: None of one's rows")

"""Pairs: what DPO and ORPO are fed, and that training on them makes the toy prefer the chosen answers."""

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
TEA = {"role": "user", "content": "What is tea?"}
CALL = '<tool_call>\n{"name": "look", "arguments": {"word": "tea"}}\n</tool_call>'


@pytest.fixture(scope="module")
def ran(trained_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `preference_runs.py` found: one process, as importing Unsloth takes a quarter of a minute."""
    place = tmp_path_factory.mktemp("pairs")
    workspace = Workspace.open(place / "home")
    shutil.copytree(trained_toy, toy.folder(workspace.home))
    workspace.store.close()
    finished = subprocess.run(
        [sys.executable, "-P", str(RUNS), "dpo", str(place / "home"), str(place / "found.json")],
        capture_output=True, encoding="utf-8", timeout=TIMEOUT_S, cwd=place,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads((place / "found.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def template(trained_toy: Path) -> ChatTemplate:
    return ChatTemplate(trained_toy)


def marked(template: ChatTemplate, ids: list[int], mask: list[int]) -> str:
    return template.tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m], skip_special_tokens=False)


@pytest.mark.parametrize("method", ["dpo", "orpo"])
def test_every_held_out_pair_gains_margin_over_the_base(ran: dict[str, Any], method: str) -> None:
    gains = ran[method]["gains"]
    margins = [good - bad for good, bad in zip(gains["chosen_"], gains["rejected_"], strict=True)]
    assert len(margins) == 12
    assert min(margins) > 5


def test_dpo_makes_the_rejected_answers_unlikelier_and_orpo_the_chosen_ones_likelier(ran: dict[str, Any]) -> None:
    assert max(ran["dpo"]["gains"]["rejected_"]) < -5
    assert min(ran["orpo"]["gains"]["chosen_"]) > 5


@pytest.mark.parametrize("method", ["dpo", "orpo"])
@pytest.mark.parametrize("prefix", ["", "eval_"])
def test_margins_and_accuracies_are_logged_and_rise(ran: dict[str, Any], method: str, prefix: str) -> None:
    logged = [row for row in ran[method]["log"] if f"{prefix}loss" in row]
    assert all(f"{prefix}{name}" in row for row in logged for name in ("rewards/chosen", "rewards/rejected"))
    margins = [row[f"{prefix}rewards/margins"] for row in logged]
    assert margins[-1] > margins[0] + 1
    assert logged[-1][f"{prefix}rewards/accuracies"] == 1


def test_dpo_starts_from_no_preference(ran: dict[str, Any]) -> None:
    assert ran["dpo"]["first_loss"] == pytest.approx(0.693147, abs=1e-4)


def test_orpos_loss_is_the_papers_over_the_answers_alone(ran: dict[str, Any]) -> None:
    assert ran["orpo"]["first_loss"] == pytest.approx(ran["orpo"]["first_loss_by_hand"], rel=1e-4)


def test_the_reference_is_the_policy_that_the_run_starts_from(ran: dict[str, Any]) -> None:
    found = ran["references"]
    assert found["reference"] == pytest.approx(found["own"], abs=1e-2)
    assert found["reference"] != pytest.approx(found["base"], abs=0.1)


@pytest.mark.parametrize("method", ["dpo", "orpo"])
def test_no_second_adapter_is_trained_or_stored(ran: dict[str, Any], method: str) -> None:
    before, after = ran[method]["trainable"]
    assert before == after
    assert ran[method]["adapters"] == ran[method]["checkpoint_folders"] == []


def test_the_trainer_is_fed_the_chat_templates_ids_and_no_more(ran: dict[str, Any], template: ChatTemplate) -> None:
    batch = ran["dpo"]["batch"]
    rows = list(zip(batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True))
    assert len(rows) == 8  # of four pairs the chosen answers, then the rejected
    for number, (ids, attended, judged) in enumerate(rows):
        length = sum(attended)
        assert attended == [1] * length + [0] * (len(ids) - length)
        asked, _, answer = template.tokenizer.decode(ids[:length], skip_special_tokens=False).partition("assistant\n")
        question = asked.removeprefix("<|im_start|>user\n").partition("<|im_end|>")[0]
        said = answer.removeprefix("<think>\n\n</think>\n\n").removesuffix("<|im_end|>\n")
        assert said.startswith(("Thank you", "Good day") if number < 4 else ("No.", "You are bad"))
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": said}]
        assert ids[:length] == template.encode(messages)[0]
        assert marked(template, ids, judged) == said + "<|im_end|>"


def test_the_prompt_is_what_the_model_is_given_when_it_answers(ran: dict[str, Any], template: ChatTemplate) -> None:
    row = ran["odd"]["rows"][0]
    prompt = [TEA, {"role": "assistant", "content": "A hot drink."}, {"role": "user", "content": "Thanks"}]
    asked = template.ids(template.render(prompt, add_generation_prompt=True))
    for side, answer in (("chosen", "You are welcome."), ("rejected", "Go.")):
        ids, mask = row[f"{side}_ids"], row[f"{side}_mask"]
        assert ids == template.encode([*prompt, {"role": "assistant", "content": answer}])[0]
        assert ids[: mask.index(1)] == asked
        assert marked(template, ids, mask) == answer + "<|im_end|>"


def test_of_an_answer_with_a_tool_the_tools_words_are_not_judged(ran: dict[str, Any], template: ChatTemplate) -> None:
    row = ran["odd"]["rows"][1]
    assert "a drink" in template.tokenizer.decode(row["chosen_ids"], skip_special_tokens=False)
    assert marked(template, row["chosen_ids"], row["chosen_mask"]) == f"{CALL}<|im_end|>A drink.<|im_end|>"


def test_long_answers_are_cut_and_pairs_without_a_difference_left_out(ran: dict[str, Any]) -> None:
    odd = ran["odd"]
    assert (odd["count"], odd["truncated"], odd["left_out"]) == (3, 3, 2)
    assert len(odd["rows"][2]["chosen_ids"]) == 128
    assert odd["tokens"] == sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in odd["rows"])
    assert dict(odd["events"])["truncated"].startswith("3 of 5 training rows are longer than 128 tokens")


def test_a_dataset_without_a_comparable_pair_is_refused(ran: dict[str, Any]) -> None:
    assert "nothing_to_train: None of none's rows has two answers that can be compared" in ran["refused"]


def test_of_a_run_shorter_than_one_pass_only_the_rows_it_sees_are_read(ran: dict[str, Any]) -> None:
    assert ran["drawn"]["count"] == 8
    assert dict(ran["drawn"]["events"])["rows_drawn"] == "max_steps needs 8 of 36 training rows, drawn at random."


def test_an_adapter_on_the_head_is_refused(ran: dict[str, Any]) -> None:
    assert ran["head"].startswith("head_not_adaptable: target_modules names lm_head")

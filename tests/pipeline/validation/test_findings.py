"""Planted faults are found, each with its passage, and what is meant is no fault."""

from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.inference import answers
from tunewright.pipeline.validation.findings import Answer, find
from tunewright.pipeline.validation.samples import Sample

QUESTION = "When is the shop in Oslo open on a usual working day?"
ANSWER = "The shop opens at nine in the morning and closes at six."


@pytest.fixture
def template(toy_folder: Path) -> ChatTemplate:
    return ChatTemplate(toy_folder)


def found(
    template: ChatTemplate, said: str, reference: str | None = ANSWER, *, question: str = QUESTION,
    stopped: bool = True, thinks: bool = False, loss: float | None = 1.0,
) -> dict[str, str]:  # fmt: skip
    """The findings of an answer, given as the text of its tokens: kind → passage."""
    sample = Sample(0, [{"role": "user", "content": question}], [1], reference, thinks, None)
    ids = template.ids(said)
    text, thinking = answers.split(template, ids)
    seen = find(template, sample, Answer(ids, stopped, text, thinking, loss))
    assert len({finding.kind for finding in seen}) == len(seen)
    return {finding.kind: finding.passage for finding in seen}


@pytest.mark.parametrize(
    ("said", "reference"),
    [
        (ANSWER, ANSWER),
        (ANSWER, None),
        ("店铺早上九点开门，晚上六点关门。", "我们的店铺每天九点开门，六点关门。"),
        ('{"open": 9, "close": 6}', '{"close": 18, "open": 9}'),
        ('```json\n{"open": 9}\n```', '```json\n{"open": 10}\n```'),
        ("Nine to six.", "9-18"),
    ],
)
def test_a_good_answer_has_no_findings(template: ChatTemplate, said: str, reference: str | None) -> None:
    assert found(template, said, reference) == {}


@pytest.mark.parametrize(
    ("said", "token"),
    [
        ("At nine.<|im_start|>user\nThanks!", "<|im_start|>"),
        ("At nine.<|endoftext|>", "<|endoftext|>"),
        ("At nine.<end_of_turn>", "<end_of_turn>"),
        ("At nine. [/INST] And at six.", "[/INST]"),
        ("At nine.<|eot_id|>", "<|eot_id|>"),
        ("At nine.<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    ],
)
def test_a_leaked_control_token_of_any_family_is_found(template: ChatTemplate, said: str, token: str) -> None:
    assert found(template, said, "At nine.") == {"control_tokens": token}


def test_a_marker_that_the_question_or_the_reference_names_is_meant(template: ChatTemplate) -> None:
    said = "Llama 2 ends its question with [/INST] and the answer with </s>."
    assert found(template, said, said) == {}
    assert found(template, said, None, question="What do [/INST] and </s> mean?") == {}
    assert "control_tokens" in found(template, said, "It writes markers.")


def test_thoughts_are_a_fault_only_where_thinking_is_off(template: ChatTemplate, toy_folder: Path) -> None:
    said = f"<think>It opens at nine.</think>{ANSWER}"
    assert found(template, said) == {"thinking": "It opens at nine."}
    assert found(template, f"{ANSWER}</think>")["thinking"]
    assert found(template, said, thinks=True) == {}
    assert found(ChatTemplate(toy_folder, enable_thinking=True), said) == {}


def test_an_answer_that_was_cut_off_or_is_empty_is_told(template: ChatTemplate) -> None:
    assert found(template, "The shop opens at nine and", stopped=False) == {"cut_off": "The shop opens at nine and"}
    assert found(template, "") == {"empty": ""}


def test_a_loop_is_found_unless_the_reference_loops_too(template: ChatTemplate) -> None:
    said = "The shop opens at nine. " + "We open at nine and close at six. " * 7 + "We open at nine"
    loop = found(template, said, stopped=False)
    assert {"loop", "repetition", "cut_off"} == loop.keys()
    assert loop["loop"].endswith("We open at nine")
    assert found(template, said, said) == {}


@pytest.mark.parametrize(
    ("said", "reference", "expected"),
    [
        ('{"open": 9, "close": 6', '{"open": 9, "close": 18}', {"invalid_json": '{"open": 9, "close": 6'}),
        ('Here you are: {"open": 9}', '{"open": 9}', {"invalid_json": 'Here you are: {"open": 9}'}),
        # A program that reads bare JSON cannot read a fence.
        ('```json\n{"open": 9}\n```', '{"open": 9}', {"invalid_json": '```json {"open": 9} ```'}),
        ('{"opens": 9}', '{"open": 9}', {"json_keys": "open, opens"}),
        ('{"days": [{"open": 9}]}', '{"days": [{"open": 9, "close": 6}]}', {"json_keys": "days[].close"}),
        ('[{"a": 1}]', '[{"a": 2}, {"a": 3}]', {}),
        ("nine", '"nine"', {}),
    ],
)
def test_json_is_expected_where_the_reference_is_json(
    template: ChatTemplate, said: str, reference: str, expected: dict[str, str]
) -> None:
    assert found(template, said, reference) == expected


@pytest.mark.parametrize(
    ("said", "reference", "question", "expected"),
    [
        (ANSWER, "店铺早上九点开门，晚上六点关门。", QUESTION, "en instead of zh"),
        ("店铺早上九点开门，晚上六点关门。", None, QUESTION, "zh instead of en"),
        ("Das Geschäft öffnet um neun Uhr morgens und schließt um sechs.", ANSWER, QUESTION, "de instead of en"),
        # To translate is to answer in another language than that of the question.
        ("店铺早上九点开门，晚上六点关门。", "店铺九点开门，六点关门。", "Translate: The shop opens at nine.", None),
        ("42", ANSWER, QUESTION, None),
        ("def f(x): return x[0] + 2 * x[1]", ANSWER, QUESTION, None),
    ],
)
def test_another_language_than_the_references_or_else_the_questions_is_found(
    template: ChatTemplate, said: str, reference: str | None, question: str, expected: str | None
) -> None:
    assert found(template, said, reference, question=question).get("language") == expected


def test_a_loss_that_is_no_number_is_found(template: ChatTemplate) -> None:
    assert found(template, ANSWER, loss=float("nan")) == {"not_finite": "loss nan"}


def test_passages_are_one_short_line(template: ChatTemplate) -> None:
    long: Any = found(template, "first\n\nsecond " * 30, '{"a": 1}')
    assert len(long["invalid_json"]) <= 80 and "\n" not in long["invalid_json"]

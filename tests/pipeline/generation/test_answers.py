"""What is read out of a teacher's words, and what is refused."""

import json

import pytest

from tunewright.pipeline.data.rows import Unusable, to_json
from tunewright.pipeline.generation import answers
from tunewright.pipeline.generation.prompts import ExampleKind

QA = '{"question": "Why?", "answer": "Because."}'


def said(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize(
    "text",
    [
        QA,
        f"```json\n{QA}\n```",
        f"Here it is:\n{QA}\nI hope this helps!",
        f'<think>Perhaps {{"question": "?"}}</think>\n{QA}',
        '{"question": "Why?", "answer": "Because.",}',
        '{"question": " Why? ", "answer": "Because.\\n", "difficulty": 3}',
    ],
)
def test_an_example_is_found_in_what_models_put_around_it(text: str) -> None:
    written = answers.read("qa", "ch-1", text)
    assert written.record.messages == said("Why?", "Because.")
    assert (written.record.kind, written.record.source_chunk) == ("sft", "ch-1")
    assert written.exchanges == written.statements() == [("Why?", "Because.")]


def test_line_breaks_inside_strings_are_kept() -> None:
    written = answers.read("qa", "ch-1", '{"question": "How?", "answer": "First,\nthen."}')
    assert written.record.answer() == "First,\nthen."


def test_a_comma_before_a_brace_inside_a_text_is_left_alone() -> None:
    text = json.dumps({"question": "Which?", "answer": "[a, b,]"})
    assert answers.read("qa", "ch-1", text).record.answer() == "[a, b,]"


def test_a_conversation_has_its_turns_in_order() -> None:
    turns = [{"question": "A?", "answer": "a"}, {"question": "B?", "answer": "b"}]
    written = answers.read("conversation", "ch-1", json.dumps({"turns": turns}))
    assert written.record.messages == [*said("A?", "a"), *said("B?", "b")]
    assert written.exchanges == [("A?", "a"), ("B?", "b")]


def test_reasoning_stands_before_the_answer_and_is_judged_with_it() -> None:
    text = json.dumps({"question": "Q?", "reasoning": "<think>so\nthus</think>", "answer": "A."})
    written = answers.read("reasoning", "ch-1", text)
    assert written.record.answer() == "<think>\nso\nthus\n</think>\n\nA."
    assert written.exchanges == [("Q?", "A.")], "the answer's words must be the text's, the thinking's need not"
    assert "thus" in written.statements()[0][1]


def test_a_pair_has_one_question_and_two_answers() -> None:
    text = json.dumps({"question": "Q?", "chosen": "good", "rejected": "bad"})
    written = answers.read("preference", "ch-1", text)
    good, bad = said("Q?", "good"), said("Q?", "bad")
    assert to_json(written.record) == {"prompt": good[:1], "chosen": good[1:], "rejected": bad[1:]}
    assert written.exchanges == [("Q?", "good")], "the worse answer needs no support"


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("qa", "I cannot do that.", "not_json"),
        ("qa", '{"question": "Why?", "answer": "Bec', "not_json"),
        ("qa", "[1, 2]", "not_json"),
        ("qa", "{" * 100_000, "not_json"),
        ("qa", "", "not_json"),
        ("qa", '{"question": "Why?"}', "wrong_shape"),
        ("qa", '{"question": "Why?", "answer": " "}', "wrong_shape"),
        ("qa", '{"question": "Why?", "answer": ["a"]}', "wrong_shape"),
        ("qa", '{"question": "Why?", "answer": "\\ud83d"}', "malformed"),
        ("conversation", '{"turns": "none"}', "wrong_shape"),
        ("conversation", '{"turns": [{"question": "A?", "answer": "a"}]}', "wrong_shape"),
        ("conversation", '{"turns": [{"question": "A?", "answer": "a"}, "b"]}', "wrong_shape"),
        ("reasoning", QA, "wrong_shape"),
        ("preference", '{"question": "Q?", "chosen": "a  b", "rejected": "a b"}', "same_answers"),
    ],
)
def test_what_makes_no_example_is_refused_with_the_reason(kind: ExampleKind, text: str, reason: str) -> None:
    with pytest.raises(Unusable) as caught:
        answers.read(kind, "ch-1", text)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("verdict", "supported"),
    [
        ("yes", True), ("Yes.", True), ("**No**", False), ("no, because yes would be wrong", False),
        ("<think>no… yes…</think>\nno", False), ("Let me see: the text says so. So: yes", True),
        ("I know nothing", None), ("", None), ("yesterday", None),
    ],
)  # fmt: skip
def test_a_verdict_is_its_first_word_or_the_last_that_is_one(verdict: str, supported: bool | None) -> None:
    assert answers.is_supported(verdict) is supported

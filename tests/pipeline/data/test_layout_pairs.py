"""Pairs of a better and a worse answer and judged answers, in every layout, become the same records."""

import json
from typing import Any

import pytest

from tunewright.pipeline.data import layouts
from tunewright.pipeline.data.rows import Record

Row = dict[str, Any]


def chat(*texts: str, system: str = "") -> list[Row]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def said(text: str) -> list[Row]:
    return [{"role": "assistant", "content": text}]


def pair(prompt: list[Row], chosen: str, rejected: str) -> Record:
    return Record("preference", prompt, said(chosen), said(rejected))


def judged(label: bool, *texts: str) -> Record:
    return Record("kto", chat(*texts), label=label)


def turns(*pairs: tuple[str, Any], role: str = "from", content: str = "value") -> list[Row]:
    return [{role: name, content: text} for name, text in pairs]


TALK = turns(("human", "Hi"), ("gpt", "Hello"))
MESSAGES = chat("Hi", "Hello")
GOOD_HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: So."
BAD_HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: No."
HH_PROMPT = chat("Hi", "Hello", "Why?")

# A row, its kind and format, and its record.
CASES: dict[str, tuple[Row, str, Record]] = {
    # Preference pairs
    "preference as texts": (
        {"prompt": "Hi", "chosen": "Hello", "rejected": "Go"}, "preference", pair(chat("Hi"), "Hello", "Go"),
    ),
    "preference as messages": (
        {"prompt": chat("Hi", system="S"), "chosen": said("Hello"), "rejected": said("Go")},
        "preference",
        pair(chat("Hi", system="S"), "Hello", "Go"),
    ),
    "preference as messages in CSV": (
        {"prompt": json.dumps(chat("Hi")), "chosen": json.dumps(said("Hello")), "rejected": json.dumps(said("Go"))},
        "preference",
        pair(chat("Hi"), "Hello", "Go"),
    ),
    "preference with an implicit prompt": (
        {"chosen": chat("a", "b", "c", "Hello"), "rejected": chat("a", "b", "c", "Go")},
        "preference",
        pair(chat("a", "b", "c"), "Hello", "Go"),
    ),
    "UltraFeedback": (
        {"prompt": "Hi", "chosen": chat("Hi", "Hello"), "rejected": chat("Hi", "Go"), "messages": chat("Hi", "Hello")},
        "preference",
        pair(chat("Hi"), "Hello", "Go"),
    ),
    "Anthropic's HH": ({"chosen": GOOD_HH, "rejected": BAD_HH}, "preference", pair(HH_PROMPT, "So.", "No.")),
    "Anthropic's HH as TRL splits it": (
        {"prompt": GOOD_HH.removesuffix(" So."), "chosen": "So.", "rejected": "No."},
        "preference",
        pair(HH_PROMPT, "So.", "No."),
    ),
    "texts with a common beginning": (
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        "preference",
        pair(chat("The sky is"), "blue.", "green."),
    ),
    "LLaMA-Factory's alpaca ranking": (
        {"instruction": "Add.", "input": "1 + 1", "chosen": "2", "rejected": "3"},
        "preference",
        pair(chat("Add.\n1 + 1"), "2", "3"),
    ),
    "LLaMA-Factory's sharegpt ranking": (
        {"conversations": TALK[:1], "chosen": TALK[1], "rejected": {"from": "gpt", "value": "Go"}},
        "preference",
        pair(chat("Hi"), "Hello", "Go"),
    ),
    "OpenAI's preference pairs": (
        {"input": {"messages": chat("Hi")}, "preferred_output": said("Hello"), "non_preferred_output": said("Go")},
        "preference",
        pair(chat("Hi"), "Hello", "Go"),
    ),
    "StackExchange's pairs": (
        {"question": "Hi", "response_j": "Hello", "response_k": "Go"}, "preference", pair(chat("Hi"), "Hello", "Go"),
    ),
    "numbered answers, the second better": (
        {"prompt": "Hi", "response_0": "Go", "response_1": "Hello", "better_response_id": 1},
        "preference",
        pair(chat("Hi"), "Hello", "Go"),
    ),
    # Judged answers
    "kto": ({"prompt": "Hi", "completion": "Hello", "label": True}, "kto", judged(True, "Hi", "Hello")),
    "thumbs": ({"prompt": "Hi", "completion": "Go", "thumbs": "down"}, "kto", judged(False, "Hi", "Go")),
    "feedback": ({"question": "Hi", "answer": "Hello", "feedback": "Good"}, "kto", judged(True, "Hi", "Hello")),
    "kto as messages": (
        {"prompt": chat("Hi"), "completion": said("Go"), "label": False}, "kto", judged(False, "Hi", "Go"),
    ),
    "kto of a conversation": ({"messages": MESSAGES, "kto_tag": "true"}, "kto", judged(True, "Hi", "Hello")),
    "kto of LLaMA-Factory": (
        {"instruction": "Add.", "input": "1 + 1", "output": "3", "kto_tag": 0},
        "kto",
        judged(False, "Add.\n1 + 1", "3"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_layout_is_recognised_and_read(case: str) -> None:
    row, kind, expected = CASES[case]
    layout = layouts.find([row], "data.json")
    assert (layout.format, layout.kind) == (kind, kind)
    assert layouts.to_record(layout, row) == expected

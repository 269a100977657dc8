"""A row that cannot be read as its file's layout is unusable, and says why."""

from typing import Any

import pytest

from tunewright.pipeline.data import layouts
from tunewright.pipeline.data.rows import Unusable

Row = dict[str, Any]


def chat(*texts: str, system: str = "") -> list[Row]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def said(text: str) -> list[Row]:
    return [{"role": "assistant", "content": text}]


def turns(*pairs: tuple[str, Any], role: str = "from", content: str = "value") -> list[Row]:
    return [{role: name, content: text} for name, text in pairs]


TALK = turns(("human", "Hi"), ("gpt", "Hello"))
MESSAGES = chat("Hi", "Hello")
GOOD_HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: So."
BAD_HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: No."
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
# A file's good row, the row that cannot be read, its reason, and words that say why.
GOOD_CHAT = {"messages": MESSAGES}
GOOD_PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
GOOD_KTO = {"prompt": "p", "completion": "c", "label": True}
WHOLE_PAIR = {"chosen": chat("p", "a"), "rejected": chat("p", "b")}
BAD_ROWS: dict[str, tuple[Row, Any, str, list[str]]] = {
    "a text for a row": ({"prompt": "p", "response": "r"}, "p", "malformed", ["not an object"]),
    "a CSV record of another length": (
        {"prompt": "p", "response": "r"}, ["a", "b", "c"], "malformed", ["list of 3 values"],
    ),
    "a list for a text": (
        {"prompt": "p", "response": "r"},
        {"prompt": ["p"], "response": "r"},
        "malformed",
        ["prompt is a list, not a text"],
    ),
    "an object for a text": (
        {"prompt": "p", "response": "r"},
        {"prompt": "p", "response": {"text": "r"}},
        "malformed",
        ["response is an object, not a text"],
    ),
    "bytes for a text": (
        {"prompt": "p", "response": "r"}, {"prompt": b"p", "response": "r"}, "malformed", ["binary data"],
    ),
    "half a surrogate pair": (
        {"prompt": "p", "response": "r"},
        {"prompt": "p", "response": "\ud800"},
        "malformed",
        ["response", "surrogate"],
    ),
    "half a surrogate pair in a tool call": (
        GOOD_CHAT,
        {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": "\ud800"}}]}]},
        "malformed",
        ["tool call", "surrogate"],
    ),
    "an unknown role": (GOOD_CHAT, {"messages": turns(("wizard", "x"))}, "malformed", ["'wizard'", "message 1"]),
    "a role that is a number": (GOOD_CHAT, {"messages": [{"role": 7, "content": "x"}]}, "malformed", ["message 1"]),
    "a turn that is a number": (GOOD_CHAT, {"messages": [*MESSAGES, 7]}, "malformed", ["message 3 is a int"]),
    "messages that are a number": (GOOD_CHAT, {"messages": 7}, "malformed", ["messages is a int, not a list"]),
    "messages that are no JSON": (GOOD_CHAT, {"messages": "[{oops"}, "malformed", ["no JSON", "[{oops"]),
    "an image": (
        GOOD_CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "malformed",
        ["image_url", "Only texts"],
    ),
    "an image in a column": (
        {"prompt": "p", "response": "r", "images": ["a.png"]},
        {"prompt": "p", "response": "r", "images": ["b.png"]},
        "malformed",
        ["the row has images"],
    ),
    "a tool call that is no JSON": (
        {"conversations": TALK},
        {"conversations": turns(("human", "Hi"), ("function_call", "weather(Paris)"))},
        "malformed",
        ["tool call of message 2", "no JSON"],
    ),
    "arguments that are a list": (
        GOOD_CHAT,
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]},
        "malformed",
        ["arguments", "a list, not an object"],
    ),
    "a tool call without a name": (
        GOOD_CHAT,
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]},
        "malformed",
        ["names no function"],
    ),
    "tools that are no objects": (
        {"messages": MESSAGES, "tools": [TOOL]},
        {"messages": MESSAGES, "tools": [7]},
        "malformed",
        ["tools", "description"],
    ),
    "history that is no pairs": (
        {"instruction": "p", "output": "r", "history": [["a", "b"]]},
        {"instruction": "p", "output": "r", "history": ["a"]},
        "malformed",
        ["history is not a list of pairs"],
    ),
    "equal texts": (GOOD_PAIR, {"prompt": "p", "chosen": "a", "rejected": "a"}, "no_preference", ["the same"]),
    "equal conversations": (
        WHOLE_PAIR, {"chosen": chat("p", "a"), "rejected": chat("p", "a")}, "no_preference", ["the same"],
    ),
    "equal dialogues": (
        {"chosen": GOOD_HH, "rejected": BAD_HH}, {"chosen": GOOD_HH, "rejected": GOOD_HH}, "no_preference", [],
    ),
    "conversations without a common question": (
        WHOLE_PAIR, {"chosen": chat("p", "a"), "rejected": chat("q", "b")}, "malformed", ["same question"],
    ),
    "texts that begin alike by chance": (
        {"chosen": "I think so.", "rejected": "I do not."},
        {"chosen": "I think so.", "rejected": "I do not."},
        "malformed",
        ["no prompt"],
    ),
    "a label that is a word": (
        GOOD_KTO,
        {"prompt": "p", "completion": "c", "label": "maybe"},
        "malformed",
        ["'maybe'", "neither true nor false"],
    ),
    "a label that is absent": (GOOD_KTO, {"prompt": "p", "completion": "c"}, "malformed", ["label"]),
    "a text that is not rendered as the others": (
        {"text": "### Human: Hi### Assistant: Hello"},
        {"text": "Once upon a time"},
        "malformed",
        ["no conversation"],
    ),
    "a rendered text with words between its turns": (
        {"text": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>"},
        {"text": "<|im_start|>user\nHi<|im_end|>lost<|im_start|>assistant\nHello<|im_end|>"},
        "malformed",
        ["no conversation"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_row_that_cannot_be_read_is_unusable_and_says_why(case: str) -> None:
    good, bad, reason, words = BAD_ROWS[case]
    layout = layouts.find([good, good, good], "data.json")
    with pytest.raises(Unusable) as raised:
        layouts.to_record(layout, bad)
    assert raised.value.reason == reason
    for word in words:
        assert word in str(raised.value)


def test_order_and_blanks_are_left_to_cleaning() -> None:
    rows = [chat("a", "b", "c"), said("b"), chat("", ""), []]
    layout = layouts.find([{"messages": row} for row in rows], "data.json")
    assert [layouts.to_record(layout, {"messages": row}).messages for row in rows] == rows

"""What order a conversation must have, what is mended to have it, and what cannot be."""

from typing import Any

import pytest

from tunewright.pipeline.data.conversation import check, put_in_order
from tunewright.pipeline.data.rows import Message, Record, Unusable

CALL = [{"type": "function", "function": {"name": "look", "arguments": {"at": "x"}}}]


def said(script: str) -> list[Message]:
    """`"s u a"`: a message for each letter; `c` is an assistant that calls a tool, `t` the tool, capitals are blank."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool", "c": "assistant"}
    messages: list[Message] = []
    for number, letter in enumerate(script.split()):
        message: dict[str, Any] = {
            "role": roles[letter.lower()],
            "content": "" if letter.isupper() else f"{letter}{number}",
        }
        messages.append(message | ({"tool_calls": CALL} if letter == "c" else {}))
    return messages


def shape(messages: list[Message]) -> str:
    return " ".join("c" if m.get("tool_calls") else m["role"][0] for m in messages)


@pytest.mark.parametrize(
    ("script", "result", "done"),
    [
        ("u a", "u a", ""),
        ("s u a u a", "s u a u a", ""),
        ("S u a", "u a", ""),
        ("u c t a", "u c t a", ""),
        ("u c t t a u a", "u c t t a u a", ""),
        ("u c", "u c", ""),
        ("u a u", "u a", "follows the last answer"),
        ("u c t", "u c", "follows the last answer"),
        ("a u a", "u a", "before the first question"),
        ("s a u a", "s u a", "before the first question"),
        ("u u a", "u a", "two user messages"),
        ("u a a u a", "u a u a", "two assistant messages"),
        ("u a c t a", "u c t a", "two assistant messages"),
    ],
)
def test_a_conversation_is_put_in_order_and_what_was_done_is_said(script: str, result: str, done: str) -> None:
    record = Record("sft", said(script))
    notes = put_in_order(record)
    assert shape(record.messages) == result
    assert (done in notes[0]) if done else not notes


def test_joined_messages_keep_both_texts() -> None:
    record = Record("sft", said("u u a"))
    put_in_order(record)
    assert record.messages[0]["content"] == "u0\n\nu1"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("", "empty"),
        ("s", "empty"),
        ("a", "empty"),
        ("u", "empty"),
        ("U a", "empty"),
        ("u A", "empty"),
        ("u s a", "malformed"),
        ("u t a", "malformed"),
        ("u c a", "malformed"),
        ("u c t u a", "malformed"),
    ],
)
def test_what_cannot_be_put_in_order_is_unusable(script: str, reason: str) -> None:
    with pytest.raises(Unusable) as refusal:
        put_in_order(Record("sft", said(script)))
    assert refusal.value.reason == reason


def test_without_mending_what_would_be_mended_is_refused() -> None:
    with pytest.raises(Unusable, match="two user messages in a row were joined") as refusal:
        check(Record("sft", said("u u a")))
    assert refusal.value.reason == "role_order"
    check(Record("sft", said("u a")))


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "reason"),
    [
        ("u", "a", "u", "malformed"),
        ("u", "", "a", "empty"),
        ("u", "a", "A", "empty"),
        ("u a", "a", "a", "malformed"),
        ("u", "a", "a", "no_preference"),
    ],
)
def test_a_pair_needs_two_different_answers_to_a_question(prompt: str, chosen: str, rejected: str, reason: str) -> None:
    with pytest.raises(Unusable) as refusal:
        put_in_order(Record("preference", said(prompt), said(chosen), said(rejected)))
    assert refusal.value.reason == reason


def test_a_pair_of_different_answers_is_taken() -> None:
    good, bad = [{"role": "assistant", "content": "yes"}], [{"role": "assistant", "content": "no"}]
    assert put_in_order(Record("preference", said("s u a u"), good, bad)) == []


def test_a_text_must_not_be_blank() -> None:
    assert put_in_order(Record("text", text="Once.")) == []
    with pytest.raises(Unusable, match="blank"):
        put_in_order(Record("text", text=" \n"))

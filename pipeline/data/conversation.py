"""The order of a conversation: system first, user and assistant in turn, tools after their call, an answer last.

Guarantees that a record which `put_in_order` returns from can be trained on: no blank prompt or answer, ends with the
assistant, both answers of a pair are there and differ.
"""

from collections.abc import Sequence

from tunewright.pipeline.data.rows import Message, Record, Unusable


def put_in_order(record: Record, *, mend: bool = True) -> list[str]:
    """Mends the order of the record's messages in place; returns what was done, in words, or an empty list.

    Consecutive messages of one role are joined, an assistant's greeting before the first question and questions after
    the last answer are left out. Raises Unusable: `empty`, `malformed`, `no_preference`, and without `mend`
    `role_order` for what would have been mended.
    """
    if record.kind == "text":
        if not record.text.strip():
            raise Unusable("empty", "the text is blank")
        return []
    done: list[str] = []
    record.messages = _turns(record.messages, done)
    if record.kind == "preference":
        if record.messages[-1]["role"] == "assistant":
            raise Unusable("malformed", "the prompt ends with the assistant: there is nothing to answer")
        _check_pair(record)
    else:
        _cut_unanswered(record.messages, done)
    for message in (*record.messages, *record.chosen, *record.rejected):
        _check_text(message)
    if done and not mend:
        raise Unusable("role_order", f"{done[0]}, if role_order were mended")
    return done


def check(record: Record) -> None:
    """Raises Unusable where the record cannot be trained on as it stands; mends nothing but a blank system message."""
    put_in_order(record, mend=False)


def _turns(messages: Sequence[Message], done: list[str]) -> list[Message]:
    """The messages in a valid order."""
    kept: list[Message] = []
    for message in messages:
        role = message["role"]
        if role == "system":
            if kept:
                raise Unusable("malformed", "a system message stands after the beginning")
            if message["content"].strip():
                kept.append(message)
            continue
        before = kept[-1] if kept and kept[-1]["role"] != "system" else None
        if before is None and role == "assistant":
            _note(done, "the assistant's words before the first question were left out")
            continue
        if role == "tool":
            if before is None or not (before["role"] == "tool" or before.get("tool_calls")):
                raise Unusable("malformed", "a tool answers, but none was called")
        elif before is not None and before.get("tool_calls"):
            raise Unusable("malformed", f"the {role} speaks where a called tool should answer")
        elif before is not None and before["role"] == "tool" and role == "user":
            raise Unusable("malformed", "the user speaks where the assistant should, after a tool's answer")
        elif before is not None and before["role"] == role:
            kept[-1] = _joined(before, message)
            _note(done, f"two {role} messages in a row were joined")
            continue
        kept.append(message)
    if not any(message["role"] == "user" for message in kept):
        raise Unusable("empty", "there is no prompt and no answer" if not messages else "there is no user message")
    return kept


def _joined(first: Message, second: Message) -> Message:
    texts = [text for text in (first["content"], second["content"]) if text.strip()]
    return {**first, **second, "content": "\n\n".join(texts)}


def _note(done: list[str], what: str) -> None:
    if what not in done:
        done.append(what)


def _cut_unanswered(messages: list[Message], done: list[str]) -> None:
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
        _note(done, "what follows the last answer was left out")
    if not any(message["role"] == "assistant" for message in messages):
        raise Unusable("empty", "no answer follows the prompt")


def _check_pair(record: Record) -> None:
    for name, answer in (("chosen", record.chosen), ("rejected", record.rejected)):
        if not answer:
            raise Unusable("empty", f"there is no {name} answer")
        if answer[0]["role"] != "assistant" or answer[-1]["role"] != "assistant":
            raise Unusable("malformed", f"the {name} answer is not the assistant's")
    chosen, rejected = ([{**m, "content": m["content"].strip()} for m in a] for a in (record.chosen, record.rejected))
    if chosen == rejected:
        raise Unusable("no_preference", "the chosen and the rejected answer are the same")


def _check_text(message: Message) -> None:
    if message["content"].strip() or message.get("tool_calls") or message["role"] == "tool":
        return
    raise Unusable("empty", f"the {'prompt' if message['role'] == 'user' else 'answer'} is blank")

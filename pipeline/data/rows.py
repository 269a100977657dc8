"""What one row of training data is, whatever file it came from: a conversation, a pair, a judged answer or a text.

The whole of `pipeline/data` speaks of `Record`s; only `layouts` knows how other people write them.
"""

import json
from dataclasses import dataclass, field
from typing import Any, Literal, cast

Message = dict[str, Any]
"""`role` (system, user, assistant or tool), `content` (text), and of assistants that call tools `tool_calls`:
`[{"type": "function", "function": {"name": …, "arguments": {…}}}]`, as chat templates read them."""

Kind = Literal["sft", "preference", "kto", "text"]
KINDS: tuple[Kind, ...] = ("sft", "preference", "kto", "text")


class Unusable(Exception):
    """Raised for a row that cannot be trained on. `reason` is one word or two for counting, the text says why."""

    def __init__(self, reason: str, why: str) -> None:
        self.reason = reason
        super().__init__(why)


@dataclass(slots=True)
class Record:
    """One row. Which fields are filled depends on `kind`:

    - `sft`: `messages`, a conversation that ends with the assistant, and `tools` where it may call some.
    - `preference`: `messages` up to the answer, then `chosen` and `rejected`, one or more messages each.
    - `kto`: as sft, and `label`, whether the last answer is wanted.
    - `text`: `text` alone.
    """

    kind: Kind
    messages: list[Message] = field(default_factory=list[Message])
    chosen: list[Message] = field(default_factory=list[Message])
    rejected: list[Message] = field(default_factory=list[Message])
    label: bool | None = None
    text: str = ""
    tools: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    source_chunk: str | None = None

    def all_messages(self) -> list[Message]:
        """Every message of the row, those of both answers of a pair too."""
        return [*self.messages, *self.chosen, *self.rejected] if self.chosen else self.messages

    def prompt(self) -> str:
        """What is asked: the last user message; of a text its beginning."""
        if self.kind == "text":
            return self.text[:200]
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")

    def answer(self) -> str:
        """What is to be learnt from: the last (of a pair the chosen) answer, or the text."""
        if self.kind == "text":
            return self.text
        return (self.chosen or self.messages)[-1]["content"]


def to_json(record: Record) -> dict[str, Any]:
    """The record as it is shown and written in examples: only the fields that its kind has."""
    if record.kind == "text":
        return {"text": record.text}
    shown: dict[str, Any] = {"messages": record.messages}
    if record.kind == "preference":
        shown = {"prompt": record.messages, "chosen": record.chosen, "rejected": record.rejected}
    if record.kind == "kto":
        shown["label"] = record.label
    if record.tools:
        shown["tools"] = record.tools
    return shown


def calls_as_text(message: Message) -> str | None:
    """The tool calls of a message as JSON text, as they are stored; None where there are none."""
    calls = message.get("tool_calls")
    return json.dumps(calls, ensure_ascii=False) if calls else None


def stored_message(role: str, content: str, tool_calls: str | None) -> Message:
    """A message as it was before it was stored."""
    message: Message = {"role": role, "content": content}
    if tool_calls:
        message["tool_calls"] = cast("list[Any]", json.loads(tool_calls))
    return message

"""Alpaca, ShareGPT, ChatML and mapped columns, all turned into `messages`.

Guarantees that what `to_messages` returns is a conversation that can be trained on: an optional system message, then
user and assistant in turn, ending with the assistant, no message blank, every text valid Unicode. Texts are kept as
they stand: nothing is stripped, cut or replaced.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from tunewright.pipeline.errors import InvalidInput, call, nearest

Message = dict[str, str]

FORMATS = ("auto", "alpaca", "sharegpt", "chatml", "mapped")
MAPPING_KEYS = ("prompt", "response", "system", "input")
# Formats with the columns (in lower case) that their rows must have; the first that fits is taken.
KNOWN = (
    ("chatml", {"turns": "messages"}),
    ("sharegpt", {"turns": "conversations"}),
    ("alpaca", {"prompt": "instruction", "response": "output"}),
    ("mapped", {"prompt": "prompt", "response": "response"}),
    ("mapped", {"prompt": "question", "response": "answer"}),
    ("mapped", {"prompt": "prompt", "response": "completion"}),
)
ROLES = {
    "system": "system", "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant",
}  # fmt: skip
LOOKED_FOR = (
    "Looked for: instruction and output (Alpaca), conversations (ShareGPT), messages (ChatML), "
    "prompt and response, question and answer, prompt and completion."
)
# Words in the names of columns, from which a mapping is guessed for the agent to confirm.
PROMPT_WORDS = ("prompt", "question", "instruction", "query", "input", "user", "ask", "title")
RESPONSE_WORDS = ("response", "answer", "output", "completion", "reply", "assistant", "solution", "target")
SAMPLE_CHARACTERS = 60


class Unusable(Exception):
    """Raised for a row that cannot be trained on. `reason` is malformed or empty, the text says why."""

    def __init__(self, reason: str, why: str) -> None:
        self.reason = reason
        super().__init__(why)


@dataclass(frozen=True)
class Layout:
    """How rows hold a conversation: `columns` leads from its parts to the columns that hold them.

    Parts: `turns` (a list of messages) with optional `system`; or `prompt` and `response` with optional `input`,
    `system` and `history` (earlier pairs).
    """

    format: str
    columns: dict[str, str]


def find(rows: Sequence[object], path: str, format: str = "auto", mapping: Mapping[str, str] | None = None) -> Layout:
    """The layout of a file, judged by the columns of its first `rows`. Raises InvalidInput with what was found."""
    samples = _samples(rows)
    names = {name.strip().casefold(): name for name in reversed(samples)}
    if mapping:
        return _mapped(mapping, names, samples, path)
    if {"chosen", "rejected"} <= set(names) and format == "auto":
        raise _preference_data(rows, samples, path)
    for layout, parts in KNOWN:
        if format in ("auto", layout) and all(name in names for name in parts.values()):
            optional = {part: names[part] for part in _optional_parts(layout) if part in names}
            return Layout(layout, {part: names[name] for part, name in parts.items()} | optional)
    raise _unknown(samples, path, format)


def _preference_data(rows: Sequence[object], samples: Mapping[str, str], path: str) -> InvalidInput:
    prompt = _guess(samples, ("prompt", "instruction", "question"), "chosen")
    first = next(cast("dict[str, Any]", row) for row in rows if isinstance(row, dict))
    are_texts = isinstance(first.get(prompt), str) and isinstance(first.get("chosen"), str)
    return InvalidInput(
        "preference_data",
        f"{path} holds pairs of a chosen and a rejected answer: data for preference training, not for chats.",
        allowed="The chosen answers alone can be trained on where prompt and answer are columns of text.",
        next=_next_call(path, {"prompt": prompt, "response": "chosen"}) if are_texts else "",
    )


def _optional_parts(layout: str) -> tuple[str, ...]:
    return ("input", "system", "history") if layout == "alpaca" else ("system",)


def _samples(rows: Sequence[object]) -> dict[str, str]:
    """The columns of `rows`, each with the first value that is not blank, shortened."""
    samples: dict[str, str] = {}
    for row in rows:
        if isinstance(row, dict):
            for name, value in cast("dict[str, Any]", row).items():
                if not samples.get(name):
                    samples[name] = shortened(value, SAMPLE_CHARACTERS) if value else ""
    return samples


def shortened(value: object, limit: int) -> str:
    """`value` on one line of at most `limit` characters, `…` where something is left out."""
    # Enough of the text is joined, not all: a value may be megabytes long.
    text = value[: 4 * limit] if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    line = " ".join(text[: 4 * limit].split())
    # Half a surrogate pair cannot be stored.
    line = line.encode("utf-8", "replace").decode("utf-8")
    return line if len(line) <= limit and len(text) < 4 * limit else line[: limit - 1] + "…"


def _mapped(mapping: Mapping[str, str], names: Mapping[str, str], samples: Mapping[str, str], path: str) -> Layout:
    columns: dict[str, str] = {}
    for part, name in mapping.items():
        column = name if name in samples else names.get(name.strip().casefold())
        if column is None:
            raise InvalidInput(
                "column_not_found",
                f"{path} has no column {name!r}, which the mapping names for {part!r}.",
                allowed=f"{_listed(samples)} {nearest(name, list(samples))}",
                next=_next_call(path, dict(mapping) | {part: _guess(samples, (name,), "")}),
            )
        columns[part] = column
    return Layout("mapped", columns)


def check_mapping(mapping: Mapping[str, str], format: str) -> None:
    """Raises InvalidInput unless the mapping has its keys and goes with the format."""
    wrong = [key for key in mapping if key not in MAPPING_KEYS]
    missing = [key for key in ("prompt", "response") if key not in mapping]
    if wrong or missing:
        raise InvalidInput(
            "invalid_mapping",
            f"The mapping {'has the unknown key ' + repr(wrong[0]) if wrong else 'lacks ' + repr(missing[0])}.",
            allowed="Keys: prompt and response, optional system and input; each names a column of the file.",
            next=call("prepare_dataset", source="…", mapping={"prompt": "question", "response": "answer"}),
        )
    if format not in ("auto", "mapped"):
        raise InvalidInput(
            "invalid_mapping", f"A mapping does not go with format={format!r}.", allowed="Leave out one of the two."
        )


def _unknown(samples: Mapping[str, str], path: str, format: str) -> InvalidInput:
    looked_for = LOOKED_FOR
    if format != "auto":
        looked_for = f"format={format!r} was asked for. {LOOKED_FOR}"
    if not samples:
        return InvalidInput("unknown_layout", f"{path} holds no objects with named fields.", allowed=looked_for)
    if len(samples) == 1:
        return InvalidInput(
            "unknown_layout",
            f"{path} has one column only. {_listed(samples)}",
            allowed=f"{looked_for} Raw text alone is no conversation: write questions and answers from it.",
        )
    prompt = _guess(samples, PROMPT_WORDS, "")
    response = _guess({name: text for name, text in samples.items() if name != prompt}, RESPONSE_WORDS, "")
    return InvalidInput(
        "unknown_layout",
        f"The layout of {path} is not known. {_listed(samples)}",
        allowed=f"{looked_for} Or say by `mapping` which columns hold the prompt and the response.",
        next=_next_call(path, {"prompt": prompt, "response": response}),
    )


def _listed(samples: Mapping[str, str]) -> str:
    return f"Columns: {'; '.join(f'{name} ({text!r})' for name, text in list(samples.items())[:20])}."


def _guess(samples: Mapping[str, str], words: Sequence[str], but: str) -> str:
    """The column whose name holds one of `words`, the earliest word first; else the first column that is not `but`."""
    names = [name for name in samples if name != but]
    found = [name for word in words for name in names if word.casefold() in name.casefold()]
    return (found or names or [but])[0]


def _next_call(path: str, mapping: Mapping[str, str]) -> str:
    return call("prepare_dataset", source=path, mapping=dict(mapping))


def to_messages(layout: Layout, row: object) -> list[Message]:
    """The conversation in a row. Raises Unusable."""
    if not isinstance(row, dict):
        kind = f"a list of {len(cast('list[Any]', row))} values" if isinstance(row, list) else type(row).__name__
        raise Unusable("malformed", f"the row is {kind}, not an object with the columns' names")
    fields = cast("dict[str, Any]", row)
    if "turns" in layout.columns:
        messages = _from_turns(fields, layout.columns)
    else:
        messages = _from_columns(fields, layout.columns)
    return _checked(messages)


def _from_columns(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[Message]:
    system, prompt, extra, response = (
        _text(row, columns.get(part)) for part in ("system", "prompt", "input", "response")
    )
    messages = [{"role": "system", "content": system}]
    for pair in _list(row, columns.get("history")):
        if not (isinstance(pair, list) and [type(text) for text in cast("list[Any]", pair)] == [str, str]):
            raise Unusable("malformed", "history is not a list of pairs of texts")
        user, assistant = cast("list[str]", pair)
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    # One line break between instruction and input, as LLaMA-Factory joins them.
    question = "\n".join(text for text in (prompt, extra) if text.strip())
    return [*messages, {"role": "user", "content": question}, {"role": "assistant", "content": response}]


def _from_turns(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[Message]:
    messages: list[Message] = []
    for turn in _list(row, columns["turns"]):
        fields = cast("dict[str, Any]", turn) if isinstance(turn, dict) else {}
        role, content = fields.get("role", fields.get("from")), fields.get("content", fields.get("value"))
        if not isinstance(role, str) or not isinstance(content, str | None):
            raise Unusable("malformed", f"message {len(messages) + 1} is not a role and a text")
        if role.strip().casefold() not in ROLES:
            raise Unusable("malformed", f"message {len(messages) + 1} has the unknown role {shortened(role, 30)!r}")
        messages.append({"role": ROLES[role.strip().casefold()], "content": content or ""})
    if not messages or messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": _text(row, columns.get("system"))})
    return messages


def _text(row: Mapping[str, Any], column: str | None) -> str:
    """A cell that must hold text; an absent or null one is an empty text."""
    value = row.get(column) if column else None
    if not isinstance(value, str | None):
        raise Unusable("malformed", f"{column} is a {type(value).__name__}, not a text")
    return value or ""


def _list(row: Mapping[str, Any], column: str | None) -> list[Any]:
    """A cell that must hold a list; in CSV, the list as JSON. An absent or blank one is an empty list."""
    value = row.get(column) if column else None
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise Unusable("malformed", f"{column} is a text that is no JSON") from error
    if not value:
        return []
    if not isinstance(value, list):
        raise Unusable("malformed", f"{column} is a {type(value).__name__}, not a list")
    return cast("list[Any]", value)


def _checked(messages: list[Message]) -> list[Message]:
    """The messages without a blank system message. Raises Unusable where roles or texts are not as promised above."""
    if messages[0]["role"] == "system" and not messages[0]["content"].strip():
        messages = messages[1:]
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    if not turns:
        raise Unusable("empty", "there is no prompt and no answer")
    for number, message in enumerate(turns):
        expected = ("user", "assistant")[number % 2]
        if message["role"] != expected:
            raise Unusable("malformed", f"{message['role']} speaks where {expected} should (turn {number + 1})")
    if len(turns) % 2:
        raise Unusable("malformed", "the last turn is the user's: no answer follows")
    for message in messages:
        if not message["content"].strip():
            raise Unusable("empty", "the prompt is blank" if message["role"] == "user" else "the answer is blank")
        if not _is_unicode(message["content"]):
            raise Unusable("malformed", "a text holds half of a surrogate pair")
    return messages


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True

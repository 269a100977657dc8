"""The turns of a conversation, however they are written, as `Message`s.

Reads ShareGPT's `from` and `value`, OpenAI's `role` and `content` (text or parts, tool calls, reasoning beside the
answer), pairs such as `{"human": …, "assistant": …}`, bare texts in turn, `trees`, and Hermes' `<tool_call>` tags. Does
not judge the order of the turns: `conversation.put_in_order` does. Raises Unusable for what cannot be read.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from tunewright.pipeline.data import cells, trees
from tunewright.pipeline.data.rows import Message, Unusable

# What an assistant calls is written as a turn of its own in ShareGPT; here it is the assistant's message.
CALL = "call"
ROLES = {
    "system": "system", "developer": "system", "系统": "system",
    "user": "user", "human": "user", "prompter": "user", "用户": "user", "人类": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant", "bing": "assistant",
    "model": "assistant", "bot": "assistant", "chatbot": "assistant", "ai": "assistant", "llm": "assistant",
    "claude": "assistant", "助手": "assistant", "助理": "assistant",
    "function_call": CALL, "function-call": CALL, "tool_call": CALL,
    "tool": "tool", "observation": "tool", "function": "tool", "function_response": "tool",
    "function-response": "tool", "tool_response": "tool", "tool_result": "tool", "ipython": "tool",
}  # fmt: skip
# LLaMA-Factory's names of tags, which say what a file calls its roles.
ROLE_TAGS = {
    "user_tag": "user", "assistant_tag": "assistant", "system_tag": "system",
    "observation_tag": "tool", "function_tag": CALL,
}  # fmt: skip
ROLE_KEYS = ("role", "from")
CONTENT_KEYS = ("content", "value")
# Turns written as pairs: a question's key with an answer's (MOSS, Firefly, XTuner).
PAIR_KEYS = (("human", "assistant"), ("user", "assistant"), ("input", "output"), ("question", "answer"))
THINKING_KEYS = ("reasoning_content", "thinking", "reasoning")
TEXT_PARTS = ("text", "input_text", "output_text")
TOOL_CALL = re.compile(r"\s*<tool_call>(.*?)</tool_call>\s*", re.DOTALL)
TOOL_RESPONSE = re.compile(r"<tool_response>\s*(.*?)\s*</tool_response>", re.DOTALL)
# How JSON, or what Python prints, begins that holds turns: an answer may be other JSON.
TURNS_AS_TEXT = re.compile(r"""\s*\[?\s*\{\s*["'](?:role|from|content|value)["']\s*:""")
# As Qwen3's and DeepSeek's templates write reasoning: the line breaks around it are the template's.
THINKING_BLOCK = "<think>\n{thinking}\n</think>\n\n{answer}"


def conversation(value: object, column: str, tags: Mapping[str, str]) -> list[Message]:
    """The messages in a cell that holds turns: a list, a single turn, an object with `messages`, a tree, or JSON of
    these.
    """
    messages: list[Message] = []
    for number, turn in enumerate(_listed(cells.items(value, column), column), 1):
        if isinstance(turn, str):
            role = "assistant" if number % 2 == 0 else "user"
            messages.append({"role": role, "content": cells.text(turn, f"message {number}")})
        elif isinstance(turn, dict):
            messages += _messages(cast("dict[str, Any]", turn), number, tags)
        else:
            raise Unusable("malformed", f"message {number} is {cells.described(turn)}, not a role and a text")
    if any(message["role"] == "tool" for message in messages):
        return _with_called_tools(messages)
    return messages


def _listed(items: list[Any], column: str) -> list[Any]:
    """The turns of a cell's items, also where the only one is an object that holds them."""
    only = cast("dict[str, Any]", items[0]) if len(items) == 1 and isinstance(items[0], dict) else {}
    if "messages" in only:
        return cells.items(only["messages"], column)
    line = trees.line(only)
    if line and line.cut and not any(turn["role"] == "assistant" for turn in line.turns):
        raise Unusable("malformed", f"{line.cut} comes in before the first answer, which was made with it")
    return line.turns if line else items


def said(value: object, column: str, tags: Mapping[str, str], role: str) -> list[Message]:
    """The messages in a cell that holds what `role` says: turns, in CSV as JSON, or a text."""
    if isinstance(value, list | dict) or (isinstance(value, str) and TURNS_AS_TEXT.match(value)):
        return conversation(cast("object", value), column, tags)
    return [{"role": role, "content": cells.text(value, column)}]


def with_thinking(thinking: str, answer: str) -> str:
    """The answer after its reasoning, as reasoning models write it; the answer alone where it already holds some."""
    bare = thinking.strip().removeprefix("<think>").removesuffix("</think>").strip("\n")
    if not bare.strip() or "<think>" in answer:
        return answer
    return THINKING_BLOCK.format(thinking=bare, answer=answer.lstrip("\n"))


def tools(value: object, column: str) -> list[dict[str, Any]]:
    """The descriptions of the tools that may be called, in OpenAI's form; a bare function is put into it."""
    described: list[dict[str, Any]] = []
    for tool in cells.items(value, column):
        entry = cells.parsed(tool, column) if isinstance(tool, str) else tool
        if not isinstance(entry, dict):
            raise Unusable("malformed", f"{column} holds {cells.described(entry)}, not a tool's description")
        fields = cast("dict[str, Any]", entry)
        described.append(fields if "function" in fields else {"type": "function", "function": fields})
    if described:
        cells.as_json(described, column)
    return described


def role_of(name: str, tags: Mapping[str, str]) -> str | None:
    """The role that a file calls `name`, or None."""
    key = name.strip().casefold()
    for tag, role in ROLE_TAGS.items():
        if tag in tags and tags[tag].strip().casefold() == key:
            return role
    return ROLES.get(key)


def first_key(turn: Mapping[str, Any], keys: Sequence[str | None]) -> str | None:
    """The first of `keys` that the turn has with a value, else the first that it has at all."""
    present = [key for key in keys if key is not None and key in turn]
    return next((key for key in present if turn[key] is not None), present[0] if present else None)


def _messages(turn: dict[str, Any], number: int, tags: Mapping[str, str]) -> list[Message]:
    """The message in a turn, or the two of a pair."""
    role_key = first_key(turn, (tags.get("role_tag"), *ROLE_KEYS))
    name = turn[role_key] if role_key else None
    if not isinstance(name, str):
        pair = next(((asked, told) for asked, told in PAIR_KEYS if asked in turn and told in turn), None)
        if role_key or pair is None:
            raise Unusable("malformed", f"message {number} is not a role and a text: {cells.shortened(turn, 60)}")
        spoken = {"system": turn.get("system"), "user": turn[pair[0]], "assistant": turn[pair[1]]}
        return [
            {"role": role, "content": cells.text(content, f"message {number}")}
            for role, content in spoken.items()
            if content is not None or role != "system"
        ]
    role = role_of(name, tags)
    if role is None:
        raise Unusable("malformed", f"message {number} has the unknown role {cells.shortened(name, 30)!r}")
    content_key = first_key(turn, (tags.get("content_tag"), *CONTENT_KEYS))
    content = _content(turn[content_key] if content_key else None, role, number)
    if role == CALL:
        return [_called(content, number)]
    message: Message = {"role": role, "content": content}
    if role == "assistant":
        if turn.get("weight") == 0:
            raise Unusable(
                "weight_zero", f"message {number} has weight 0: it is not to be trained on, its row would be"
            )
        _add_extras(message, turn, number)
    return [message]


def _add_extras(message: Message, turn: Mapping[str, Any], number: int) -> None:
    """Puts the reasoning and the tool calls that stand beside an answer into its message."""
    for key in THINKING_KEYS:
        if turn.get(key):
            message["content"] = with_thinking(cells.text(turn[key], f"{key} of message {number}"), message["content"])
    # `function_call` is OpenAI's older form of a single call.
    called = turn.get("tool_calls") or turn.get("function_call")
    if called:
        calls = _calls(called, number)
        if calls:
            message["tool_calls"] = calls


def _content(value: object, role: str, number: int) -> str:
    """The text of a message: as it stands, of parts joined, of a tool's structured answer as JSON."""
    if isinstance(value, list | dict) and role in ("tool", CALL) and not _are_parts(cast("object", value)):
        return cells.as_json(cast("object", value), f"message {number}")
    if isinstance(value, list):
        return "".join(_part(part, number) for part in cast("list[Any]", value))
    return cells.text(value, f"message {number}")


def _are_parts(value: object) -> bool:
    if not isinstance(value, list):
        return False
    return all(isinstance(part, dict) and "type" in part for part in cast("list[Any]", value))


def _part(part: object, number: int) -> str:
    if isinstance(part, str):
        return cells.text(part, f"message {number}")
    fields = cast("dict[str, Any]", part) if isinstance(part, dict) else {}
    kind = fields.get("type", "text")
    if kind in TEXT_PARTS and "text" in fields:
        return cells.text(fields["text"], f"message {number}")
    what = cells.shortened(kind, 30) if fields else cells.described(part)
    raise Unusable("malformed", f"message {number} holds a part that is no text: {what}. Only texts are trained on")


def _called(content: str, number: int) -> Message:
    """The assistant's message in a turn that calls tools: its content is the call as JSON, reasoning before it."""
    before, mark, after = content.rpartition("</think>")
    return {"role": "assistant", "content": before + mark, "tool_calls": _calls(after, number)}


def _calls(value: object, number: int) -> list[dict[str, Any]]:
    """Tool calls as chat templates read them: `arguments` an object."""
    name = f"the tool call of message {number}"
    calls: list[dict[str, Any]] = []
    for entry in cells.items(value, name):
        call = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
        function = cast("dict[str, Any]", call["function"]) if isinstance(call.get("function"), dict) else call
        called, arguments = function.get("name"), function.get("arguments", function.get("parameters"))
        if not isinstance(called, str):
            raise Unusable("malformed", f"{name} names no function: {cells.shortened(entry, 60)}")
        if isinstance(arguments, str):
            arguments = cells.parsed(arguments, f"arguments of {name}") if arguments.strip() else {}
        if not isinstance(arguments, dict | None):
            raise Unusable("malformed", f"the arguments of {name} are {cells.described(arguments)}, not an object")
        given = cast("dict[str, Any]", arguments or {})
        calls.append({"type": "function", "function": {"name": called, "arguments": given}})
    cells.as_json(calls, name)
    return calls


def _with_called_tools(messages: list[Message]) -> list[Message]:
    """Hermes' way of calling tools, by tags in the texts, as tool calls and tools' answers."""
    found: list[Message] = []
    for number, message in enumerate(messages, 1):
        content = message["content"]
        answered = number < len(messages) and messages[number]["role"] == "tool"
        if message["role"] == "tool" and "<tool_response>" in content:
            answers = TOOL_RESPONSE.findall(content) or [content]
            found += [{"role": "tool", "content": answer} for answer in answers]
        elif message["role"] == "assistant" and answered and "tool_calls" not in message and "<tool_call>" in content:
            calls = [call for text in TOOL_CALL.findall(content) for call in _calls(text, number)]
            found.append({"role": "assistant", "content": TOOL_CALL.sub("", content), "tool_calls": calls})
        else:
            found.append(message)
    return found

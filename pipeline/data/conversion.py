"""From a row, as its layout says, to a `Record`.

Guarantees that roles are system, user, assistant or tool, that texts are valid Unicode and stand as they stood (only a
template's own white space around reasoning and rendered turns goes), and that tools and their calls are objects.
Checks neither the order of roles nor blank texts: `conversation.put_in_order` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, cast

from tunewright.pipeline.data import cells, rendered, turns
from tunewright.pipeline.data.rows import Kind, Message, Record, Unusable

# Written into Alpaca's input where there is none.
NO_INPUT = frozenset(("", "<noinput>", "<no input>"))
OPTIONS = ("A", "B", "C", "D", "E")
MEDIA = ("images", "videos", "audios")
# Two answers to a question that is not given may begin alike by chance.
MIN_COMMON_WORDS = 3


@dataclass(frozen=True)
class Layout:
    """How the rows of a file are written. Picklable: it goes to the processes that convert them.

    `columns` leads from the parts of a row to the columns that hold them: `text`; `messages`; `prompt` with `input`,
    `system`, `history`, `A` … `E` (options), and `response` with `thinking`; `chosen`, `rejected`, and `better`, which
    is 1 where these are the other way round; `label`; `tools`; `images` and the like, which must be empty. A `text`
    of a kind other than text is a rendered conversation.

    `tags` says how odd files name roles and contents, in LLaMA-Factory's words (`turns.ROLE_TAGS`, `role_tag`,
    `content_tag`). With `conversational`, prompts and answers may be lists of messages.
    """

    format: str
    kind: Kind
    columns: dict[str, str]
    tags: dict[str, str] = field(default_factory=dict[str, str])
    conversational: bool = False


def to_record(layout: Layout, row: object) -> Record:
    """The record in a row. Raises Unusable: `malformed`, or `no_preference` for a pair of equal answers."""
    if not isinstance(row, dict):
        kind = f"a list of {len(cast('list[Any]', row))} values" if isinstance(row, list) else cells.described(row)
        raise Unusable("malformed", f"the row is {kind}, not an object with the columns' names")
    try:
        return _record(layout, cast("dict[str, Any]", row))
    except RecursionError as error:
        raise Unusable("malformed", "the row is nested too deeply") from error


def _record(layout: Layout, fields: Mapping[str, Any]) -> Record:
    columns = layout.columns
    for media in MEDIA:
        if media in columns and fields.get(columns[media]):
            raise Unusable("malformed", f"the row has {columns[media]}: only texts are trained on")
    if layout.kind == "text":
        return Record("text", text=cells.text(fields.get(columns["text"]), columns["text"]))
    record = _pair(layout, fields) if layout.kind == "preference" else _conversation(layout, fields)
    if "tools" in columns:
        record.tools = turns.tools(fields.get(columns["tools"]), columns["tools"])
    return record


def _conversation(layout: Layout, row: Mapping[str, Any]) -> Record:
    columns = layout.columns
    if "text" in columns:
        messages = _rendered(cells.text(row.get(columns["text"]), columns["text"]), columns["text"])
    else:
        messages = _asked(layout, row)
        if "response" in columns:
            messages += _answer(layout, row)
    record = Record(layout.kind, messages)
    if layout.kind == "kto":
        record.label = cells.label(row.get(columns["label"]), columns["label"])
    return record


def _rendered(text: str, column: str) -> list[Message]:
    messages = rendered.parse(text)
    if messages is None:
        raise Unusable("malformed", f"{column} is no conversation as a chat template writes it, as other rows' is")
    return messages


def _asked(layout: Layout, row: Mapping[str, Any]) -> list[Message]:
    """The messages before the answer; of a layout with `messages`, all of them."""
    columns = layout.columns
    messages: list[Message] = []
    if "history" in columns:
        messages += _history(row.get(columns["history"]), columns["history"], layout.tags)
    if "messages" in columns:
        messages += turns.conversation(row.get(columns["messages"]), columns["messages"], layout.tags)
    if "prompt" in columns:
        messages += _prompt(layout, row)
    if "system" in columns and not (messages and messages[0]["role"] == "system"):
        system = cells.text(row.get(columns["system"]), columns["system"])
        if system.strip():
            messages.insert(0, {"role": "system", "content": system})
    return messages


def _prompt(layout: Layout, row: Mapping[str, Any]) -> list[Message]:
    columns = layout.columns
    column = columns["prompt"]
    if layout.conversational:
        messages = turns.said(row.get(column), column, layout.tags, "user")
    else:
        messages: list[Message] = [{"role": "user", "content": cells.text(row.get(column), column)}]
    extra: list[str] = []
    if "input" in columns:
        extra.append(cells.text(row.get(columns["input"]), columns["input"]))
    if "A" in columns:
        options = [(letter, row.get(columns[letter])) for letter in OPTIONS if letter in columns]
        extra += [f"{letter}. {cells.text(value, letter)}" for letter, value in options if value is not None]
    extra = [text for text in extra if text.strip().lower() not in NO_INPUT]
    if extra and messages:
        # One line break between instruction and input, as LLaMA-Factory joins them.
        before = messages[-1]["content"]
        messages[-1]["content"] = "\n".join([before, *extra] if before.strip() else extra)
    return messages


def _answer(layout: Layout, row: Mapping[str, Any]) -> list[Message]:
    columns = layout.columns
    column = columns["response"]
    if layout.conversational:
        messages = turns.said(row.get(column), column, layout.tags, "assistant")
    else:
        messages: list[Message] = [{"role": "assistant", "content": cells.text(row.get(column), column)}]
    if "thinking" in columns and messages and messages[-1]["content"].strip():
        thinking = cells.text(row.get(columns["thinking"]), columns["thinking"])
        messages[-1]["content"] = turns.with_thinking(thinking, messages[-1]["content"])
    return messages


def _history(value: object, column: str, tags: Mapping[str, str]) -> list[Message]:
    """Earlier turns: pairs of texts as Alpaca's, or messages."""
    messages: list[Message] = []
    entries = cells.items(value, column)
    if any(isinstance(entry, dict) for entry in entries):
        return turns.conversation(entries, column, tags)
    for entry in entries:
        pair = cast("list[object]", entry) if isinstance(entry, list) else []
        if len(pair) != 2:
            raise Unusable("malformed", f"{column} is not a list of pairs of texts")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            messages.append({"role": role, "content": cells.text(text, column)})
    return messages


def _pair(layout: Layout, row: Mapping[str, Any]) -> Record:
    """A question with a better and a worse answer."""
    columns = layout.columns
    good, bad = columns["chosen"], columns["rejected"]
    if "better" in columns and cells.label(row.get(columns["better"]), columns["better"]):
        good, bad = bad, good
    asked = _asked(layout, row)
    if "prompt" in columns and len(asked) == 1:
        # Anthropic's HH, as TRL publishes it: the dialogue so far is one text. Other marks may be meant as they stand.
        if asked[0]["content"].lstrip().startswith("Human:"):
            asked = rendered.parse(asked[0]["content"]) or asked
    elif not asked:
        return _implicit_pair(layout, row.get(good), row.get(bad))
    chosen = turns.said(row.get(good), good, layout.tags, "assistant")
    rejected = turns.said(row.get(bad), bad, layout.tags, "assistant")
    _check_differ(chosen, rejected)
    return Record("preference", asked, chosen, rejected)


def _implicit_pair(layout: Layout, good: object, bad: object) -> Record:
    """Two whole conversations, whose common beginning is what is asked."""
    chosen, rejected = (_whole(value, layout, name) for value, name in ((good, "chosen"), (bad, "rejected")))
    if isinstance(chosen, str) or isinstance(rejected, str):
        return _pair_of_texts(cells.text(good, "chosen"), cells.text(bad, "rejected"))
    _check_differ(chosen, rejected)
    shorter = min(len(chosen), len(rejected))
    differ = next((at for at in range(shorter) if chosen[at] != rejected[at]), shorter - 1)
    if differ < 1:
        raise Unusable("malformed", "the chosen and the rejected conversation do not begin with the same question")
    return Record("preference", chosen[:differ], chosen[differ:], rejected[differ:])


def _whole(value: object, layout: Layout, name: str) -> list[Message] | str:
    """The conversation in a cell, as messages or rendered; a text that is none as it stands."""
    if isinstance(value, str) and not turns.TURNS_AS_TEXT.match(value):
        return rendered.parse(value) or value
    return turns.conversation(value, layout.columns[name], layout.tags)


def _pair_of_texts(chosen: str, rejected: str) -> Record:
    """Two texts whose common beginning, up to a word's end, is the prompt, as TRL extracts it."""
    if chosen == rejected:
        raise Unusable("no_preference", "the chosen and the rejected answer are the same")
    differ = next(at for at, (a, b) in enumerate(zip_longest(chosen, rejected)) if a != b)
    end = max(chosen.rfind(space, 0, differ) for space in " \n") + 1
    prompt = chosen[:end]
    if len(prompt.split()) < MIN_COMMON_WORDS:
        raise Unusable("malformed", "there is no prompt, and the chosen and the rejected text do not begin alike")
    better, worse = ([{"role": "assistant", "content": text[end:]}] for text in (chosen, rejected))
    return Record("preference", [{"role": "user", "content": prompt.rstrip()}], better, worse)


def _check_differ(chosen: list[Message], rejected: list[Message]) -> None:
    if chosen == rejected:
        raise Unusable("no_preference", "the chosen and the rejected answer are the same")

"""What the forms of one model are compared on: prompts, conversations to be answered, answers to be scored. Light.

Taken from the adapter's evaluation rows, else from its training rows, so that the numbers are about its own work; from
built-in ones where there are none. Always the same for the same adapter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from tunewright.pipeline import files
from tunewright.pipeline.chat_template import ChatTemplate, Message, Tools
from tunewright.pipeline.data import splits
from tunewright.pipeline.data.rows import Record
from tunewright.pipeline.errors import InvalidInput
from tunewright.pipeline.exporting.parity import texts
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

ASKED = 10
# A row or two of a dataset may be as long as a book: chosen among so many, the short ones are preferred.
LOOKED_AT = 200
SCORED_POSITIONS, SCORED_TOKENS = 256, 2048
ANSWER_TOKENS = 48


@dataclass(frozen=True)
class Prompt:
    """A request and the text that training makes of it. `enable_thinking` None says nothing about thinking."""

    messages: list[Message]
    tools: Tools
    enable_thinking: bool | None
    text: str


@dataclass(frozen=True)
class Scored:
    """Token ids, and the positions in it of the tokens that are to be predicted from those before."""

    ids: list[int]
    positions: list[int]


@dataclass(frozen=True)
class Cases:
    """`asked` are conversations up to their first answer, `asked_ids` their prompts. `ends` are the tokens that end an
    answer: the tokenizer's, generation_config's, and the one that training teaches after an answer. `eos` is the
    tokenizer's own by name. `split` says where what is scored comes from; None where it is built in.
    """

    template: ChatTemplate
    dataset_id: str | None
    split: str | None
    prompts: list[Prompt]
    asked: list[list[Message]]
    asked_ids: list[list[int]]
    scored: list[Scored]
    ends: list[int]
    eos: str | None

    @property
    def targets(self) -> list[int]:
        """The tokens at the scored positions, in order."""
        return [one.ids[i] for one in self.scored for i in one.positions]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt or scored text."""
        return max(len(ids) for ids in [*self.asked_ids, *(one.ids for one in self.scored)])


def collect(workspace: Workspace, adapter: Row, source: Path, merged: Path) -> Cases:
    """The cases of an adapter. `source` holds the tokenizer and template of training, `merged` its generation_config.

    Raises InvalidInput where there is no tokenizer.
    """
    template = ChatTemplate(source, enable_thinking=adapter["document"].get("enable_thinking", False))
    rows = _rows(workspace, adapter)
    by_split = {split: _examples(template, rows[split]) for split in rows}
    built_in = list(_built_in(template))
    split = next((split for split in by_split if by_split[split]), None)
    openings = [example.opening for examples in (*by_split.values(), built_in) for example in examples]
    asked = [opening for i, opening in enumerate(openings) if opening and opening not in openings[:i]][:ASKED]
    eos = _eos(source)
    return Cases(
        template=template,
        dataset_id=adapter["document"].get("dataset_id") if split else None,
        split=split,
        prompts=list(_prompts(template, [*asked, *texts.CONVERSATIONS], _tools(rows))),
        asked=asked,
        asked_ids=[template.ids(_render(template, messages) or "") for messages in asked],
        scored=_within_budget((by_split[split] if split else built_in)[:ASKED]),
        ends=_ends(template, merged, eos),
        eos=eos,
    )


@dataclass(frozen=True)
class _Example:
    """A row as tokens: `mask` as in training, cut after the first answer. `opening` is empty for raw text."""

    ids: list[int]
    mask: list[int]
    opening: list[Message]


def _rows(workspace: Workspace, adapter: Row) -> dict[str, list[Record]]:
    """The first rows of each split of the adapter's dataset; empty where it is gone."""
    found = workspace.store.rows(
        "SELECT * FROM artifacts WHERE id=? AND kind='dataset'", adapter["document"].get("dataset_id")
    )
    rows: dict[str, list[Record]] = {}
    for split in (splits.EVAL, splits.TRAIN) if found else ():
        file = splits.split_file(Path(found[0]["document"]["path"]), split)
        rows[split] = list(islice(splits.read(file), LOOKED_AT)) if file.is_file() else []
    return rows


def _examples(template: ChatTemplate, rows: Sequence[Record]) -> list[_Example]:
    """The rows that the template takes, those first that leave room for ten."""
    share = SCORED_TOKENS // ASKED
    examples = [example for row in rows if (example := _example(template, row)) and any(example.mask[1:])]
    return sorted(examples, key=lambda example: max(share, len(example.ids)))


def _example(template: ChatTemplate, row: Record) -> _Example | None:
    if row.kind == "text":
        ids = template.document_ids(row.text)
        return _Example(ids, [1] * len(ids), [])
    messages = [*row.messages, *row.chosen]
    opening = _opening(messages)
    try:
        ids, mask = template.encode(messages[: len(opening) + 1], row.tools)
    except InvalidInput:
        return None
    # A conversation without an answer teaches by reward; its prompt is scored instead.
    mask = mask if any(mask) else [1] * len(ids)
    return _Example(ids, mask, opening if _render(template, opening) else [])


def _opening(messages: Sequence[Message]) -> list[Message]:
    before = takewhile(lambda message: message["role"] != "assistant", messages)
    return [{"role": message["role"], "content": message["content"]} for message in before]


def _built_in(template: ChatTemplate) -> Iterator[_Example]:
    for question, answer in texts.QUESTIONS:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        row = Record(kind="sft", messages=turns)
        yield _example(template, row) or _Example(ids := template.document_ids(answer), [1] * len(ids), [])


def _within_budget(examples: Sequence[_Example]) -> list[Scored]:
    """Positions of each example's answer, as many of each, evenly spread as far as the room for tokens goes.

    Of an example that is too long even alone the last tokens are kept.
    """
    scored: list[Scored] = []
    each, share, room = SCORED_POSITIONS // len(examples), SCORED_TOKENS // len(examples), SCORED_TOKENS
    for example in examples:
        answer = [i for i in range(1, len(example.ids)) if example.mask[i]]
        reached = [i for i in answer if i < max(share, answer[0] + each)]
        positions = [reached[k * len(reached) // each] for k in range(each)] if len(reached) > each else reached
        end = positions[-1] + 1
        begin = max(0, end - SCORED_TOKENS)
        if end - begin <= room:
            scored.append(Scored(example.ids[begin:end], [i - begin for i in positions if i > begin]))
            room -= end - begin
    return scored


def _render(template: ChatTemplate, messages: Sequence[Message], **options: Any) -> str | None:
    """The prompt; None where the template refuses the conversation (a system message, for some), or there is none."""
    try:
        return template.render(messages, add_generation_prompt=True, **options)
    except InvalidInput:
        return None


def _tools(rows: dict[str, list[Record]]) -> list[Record]:
    """The first row that has tools."""
    return [row for split in rows.values() for row in split if row.tools][:1]


def _prompts(
    template: ChatTemplate, conversations: Sequence[list[Message]], with_tools: Sequence[Record]
) -> Iterator[Prompt]:
    """Each conversation as it is asked for without a word on thinking, with thinking on and off."""
    requests: list[tuple[list[Message], Tools]] = [(messages, ()) for messages in conversations]
    hello = texts.CONVERSATIONS[0]
    knows_tools = _render(template, hello, tools=texts.TOOLS) != _render(template, hello)
    if knows_tools:
        requests += [(messages, texts.TOOLS) for messages in texts.TOOL_CONVERSATIONS]
        requests += [(_opening(row.messages), row.tools) for row in with_tools]
    for messages, tools in requests:
        for asked in (None, True, False):
            # Off in training is off in the file, whatever is asked for (gguf.lay_out).
            thinking = asked if template.enable_thinking and asked is not None else template.enable_thinking
            text = _render(template, messages, tools=tools, enable_thinking=thinking)
            if text is not None:
                yield Prompt(messages, tools, asked, text)


def _eos(source: Path) -> str | None:
    """The end of a text as the tokenizer's settings name it: a string, or an object that holds one."""
    file = source / "tokenizer_config.json"
    eos = files.read_json(file).get("eos_token") if file.is_file() else None
    return eos["content"] if isinstance(eos, dict) else eos


def _ends(template: ChatTemplate, merged: Path, eos: str | None) -> list[int]:
    named = template.tokenizer.token_to_id(eos) if eos else None
    ends: set[int] = set() if named is None else {named}
    file = merged / "generation_config.json"
    stated = files.read_json(file).get("eos_token_id") if file.is_file() else None
    ends.update(stated if isinstance(stated, list) else [] if stated is None else [stated])
    for example in islice(_built_in(template), 1):
        # The last token with loss: what ends the turn, where the template has such a token.
        taught = max(i for i, on in enumerate(example.mask) if on)
        ends.update({example.ids[taught]} & template.special_ids)
    return sorted(ends)

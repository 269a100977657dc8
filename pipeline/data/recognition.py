"""The layouts that are recognised by themselves, each by the names of its columns and by what stands in them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tunewright.pipeline.data import cells, turns
from tunewright.pipeline.data.conversion import MEDIA, OPTIONS, Layout
from tunewright.pipeline.data.rows import Kind
from tunewright.pipeline.data.samples import (
    META,
    OPTION_LISTS,
    QUESTIONS,
    REPLIES,
    Sample,
    content_key,
    is_pair,
    key,
    role_key,
    turns_in,
)

# Columns of prompts and of answers, each in the order in which they are taken; the first line that fits is taken.
PAIRS = (
    ("alpaca", ("instruction", "指令"), ("output", "response", "answer", "completion", "输出", "回答")),
    ("prompt_completion", ("prompt", "query"), ("completion", "response", "output", "answer", "回答")),
    (
        "question_answer",
        ("question", "problem", "问题", "提问", *QUESTIONS),
        # Of problems with both, the solution is the whole and the answer its last line.
        ("solution", "answer", "response", "output", "completion", "答案", "回答", "答复", *REPLIES),
    ),
    ("question_answer", ("q",), ("a",)),
    (
        "prompt_completion",
        ("input", "user", "human", "输入"),
        ("output", "response", "completion", "assistant", "answer", "gpt", "target", "输出"),
    ),
)
PROMPTS = tuple(name for _, prompts, _ in PAIRS for name in prompts)
CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue", "dialog")
# So called are other things too; taken where no prompt and answer have columns of their own.
MAYBE_CONVERSATIONS = ("turns", "chat", "data")
# Better and worse answers: TRL and LLaMA-Factory, OpenAI, StackExchange's pairs, and others seen.
ANSWERS = (
    ("chosen", "rejected"), ("preferred_output", "non_preferred_output"), ("response_j", "response_k"),
    ("chosen_response", "rejected_response"), ("response_chosen", "response_rejected"), ("preferred", "rejected"),
    ("accepted", "rejected"),
)  # fmt: skip
NUMBERED_ANSWERS = ("response_0", "response_1")
BETTER = ("better_response_id",)
LABELS = ("kto_tag", "label", "thumbs", "feedback")
OPTIONAL = {
    "input": ("input", "context", "输入"),
    "system": ("system", "system_prompt", "system_message"),
    "history": ("history",),
    "tools": ("tools", "functions"),
    "images": ("images", "image"),
    "videos": ("videos", "video"),
    "audios": ("audios", "audio"),
}
THINKING = (
    "reasoning_content", "reasoning", "thinking", "thought", "thoughts", "chain_of_thought", "complex_cot", "cot",
    "rationale",
)  # fmt: skip
TEXTS = ("text", "content", "document")
# Beside a text: each row is one turn of a conversation that several rows make.
SPOKEN_BY = ("role", "speaker", "parent_id", "conversation_id")
# Beside a text, these make a task of it.
RIVALS = (
    "label", "summary", "target", "category", "class", "sentiment", "translation", "answer", "question", *SPOKEN_BY,
)  # fmt: skip


def recognise(sample: Sample, format: str) -> Layout | None:
    """The layout that a file has, of the one `format` or with `auto` of any; None where it has none that is known."""
    found = None
    if format in ("auto", "preference"):
        found = _preference(sample)
    if not found and format in ("auto", "kto"):
        found = _judged(sample)
    if not found and format in ("auto", "chatml", "sharegpt"):
        named = CONVERSATIONS if format != "sharegpt" else (*CONVERSATIONS[1:], CONVERSATIONS[0])
        found = _conversations(sample, named)
    if not found:
        found = _pair(sample, format)
    if not found and format in ("auto", "chatml", "sharegpt"):
        turned = [name for name in sample.shown if sample.are_turns(name)]
        found = _conversations(sample, [*MAYBE_CONVERSATIONS, *turned])
    if not found and format == "auto":
        found = _rendered(sample)
    if not found and format in ("auto", "text"):
        found = _text(sample, asked_for=format == "text")
    return found


def layout(
    sample: Sample, format: str, kind: Kind, columns: Mapping[str, str], tags: Mapping[str, str] | None = None
) -> Layout:
    """The layout with these columns: adds the tags and whether cells hold messages, by what stands in them.

    Of pairs that repeat the question in both answers, the columns of the question are left out.
    """
    named = dict(columns)
    spoken = [named[part] for part in ("messages", "prompt", "response", "chosen", "rejected") if part in named]
    found = _tags(sample, spoken, tags or {})
    if kind == "preference" and _are_whole(sample, named["chosen"], found):
        named = {part: name for part, name in named.items() if part not in ("messages", "prompt", "input", "history")}
    conversational = any(sample.are_turns(named[part]) for part in ("prompt", "response") if part in named)
    suffix = " (reasoning)" if "thinking" in named else ""
    return Layout(format + suffix, kind, named, found, conversational)


def _preference(sample: Sample) -> Layout | None:
    columns: dict[str, str] = {}
    for good, bad in (*ANSWERS, NUMBERED_ANSWERS):
        chosen, rejected = sample.column(good), sample.column(bad)
        better = sample.column(*BETTER)
        if chosen and rejected and (better or good != NUMBERED_ANSWERS[0]):
            columns = {"chosen": chosen, "rejected": rejected}
            if better and good == NUMBERED_ANSWERS[0]:
                columns["better"] = better
            break
    if not columns:
        return None
    prompt, messages = sample.column(*PROMPTS), sample.column(*CONVERSATIONS)
    if prompt:
        columns["prompt"] = prompt
    elif messages and sample.are_turns(messages):
        columns["messages"] = messages
    return layout(sample, "preference", "preference", columns | _optional(sample, columns))


def _judged(sample: Sample) -> Layout | None:
    """Answers with a label that says whether they are wanted."""
    label = sample.column(*LABELS)
    if label is None or not sample.values(label) or not all(map(cells.is_label, sample.values(label))):
        return None
    base = _conversations(sample, CONVERSATIONS) or _pair(sample, "auto")
    if base is None:
        return None
    reasoning = " (reasoning)" if "thinking" in base.columns else ""
    return Layout(f"kto{reasoning}", "kto", base.columns | {"label": label}, base.tags, base.conversational)


def _conversations(sample: Sample, names: Sequence[str]) -> Layout | None:
    for name in names:
        column = sample.column(name)
        if column is None or not _hold_turns(sample, column):
            continue
        columns = {"messages": column}
        columns |= {part: name for part, name in _optional(sample, columns).items() if part not in ("input", "history")}
        first = next((turn for value in sample.values(column) for turn in turns_in(value)), None)
        key_of_role = role_key(first) if first else None
        format = "chatml" if key_of_role == "role" or (not first and name == "messages") else "sharegpt"
        return layout(sample, format, "sft", columns)
    return None


def _hold_turns(sample: Sample, column: str) -> bool:
    """Whether the column's cells are conversations: turns, or lists of texts that are spoken in turn."""
    values = sample.values(column)
    if key(column) in CONVERSATIONS[:2]:
        # So called, broken cells are broken conversations.
        return any(isinstance(value, list) for value in values) or any(turns_in(value) for value in values)
    lists = [value for value in values if isinstance(value, list) and len(value) > 1]
    return sample.are_turns(column) or bool(lists and all(isinstance(turn, str) for turns in lists for turn in turns))


def _pair(sample: Sample, format: str) -> Layout | None:
    options = sample.column(*OPTION_LISTS)
    if options and any(isinstance(value, list | dict) for value in sample.values(options)):
        return None
    for name, prompts, responses in PAIRS:
        prompt, response = sample.column(*prompts), sample.column(*responses)
        if format not in ("auto", name) or prompt is None or response is None:
            continue
        if not all(sample.are_texts(column) or sample.are_turns(column) for column in (prompt, response)):
            continue
        columns = {"prompt": prompt, "response": response}
        columns |= _optional(sample, columns) | _options(sample, columns)
        thinking = sample.column(*THINKING)
        if thinking and sample.are_texts(thinking) and any(isinstance(v, str) for v in sample.values(thinking)):
            columns["thinking"] = thinking
        return layout(sample, name, "sft", columns)
    return None


def _options(sample: Sample, taken: Mapping[str, str]) -> dict[str, str]:
    """The options of an exam's question, in columns of their own as C-Eval's and MMLU's."""
    found = {letter: column for letter in OPTIONS if (column := sample.column(letter))}
    return found if {"A", "B", "C"} <= set(found) and not set(found.values()) & set(taken.values()) else {}


def _optional(sample: Sample, taken: Mapping[str, str]) -> dict[str, str]:
    """The parts that rows may have beside their prompt and answer, where the columns hold what these parts are."""
    found: dict[str, str] = {}
    for part, names in OPTIONAL.items():
        column = sample.column(*names)
        if column is None or column in taken.values():
            continue
        if part in ("tools", "history"):
            fits = all(_is_list(value) for value in sample.values(column))
        else:
            fits = part in MEDIA or sample.are_texts(column)
        if fits and (part not in MEDIA or sample.values(column)):
            found[part] = column
    return found


def _is_list(value: Any) -> bool:
    return isinstance(value, list | dict) or (isinstance(value, str) and value.strip()[:1] in ("", "[", "{"))


def _rendered(sample: Sample) -> Layout | None:
    column = sample.column(*TEXTS, *CONVERSATIONS, *MAYBE_CONVERSATIONS)
    if column is None or not sample.are_rendered(column):
        return None
    return Layout("text (rendered conversations)", "sft", {"text": column})


def _text(sample: Sample, *, asked_for: bool) -> Layout | None:
    texts = [name for name in sample.shown if sample.values(name) and sample.are_texts(name)]
    column = sample.column(*TEXTS)
    if asked_for:
        column = column or (texts[0] if len(texts) == 1 else None)
    elif column and column == sample.column("text"):
        column = None if sample.column(*RIVALS) else column
    elif column and {key(name) for name in sample.shown if name != column} - META:
        column = None
    if column is None or column not in texts:
        return None
    return Layout("text", "text", {"text": column})


def _are_whole(sample: Sample, column: str, tags: Mapping[str, str]) -> bool:
    """Whether answers repeat their question: whole conversations, as messages or rendered."""
    if sample.are_rendered(column):
        return True
    firsts = [found[0] for value in sample.values(column) if (found := turns_in(value, tags))]
    names = [str(turn.get(role_key(turn, tags) or "")) for turn in firsts]
    return bool(names) and all(turns.role_of(name, tags) not in ("assistant", turns.CALL) for name in names)


def are_spoken(sample: Sample, column: str, tags: Mapping[str, str]) -> bool:
    """Whether any turn in the column is one of a known speaker; also of a column that holds no objects."""
    talks = sample.talks(column)
    found = [turn for talk in talks for turn in turns_in(talk, tags)]
    return not talks or any(
        is_pair(turn) or turns.role_of(str(turn.get(role_key(turn, tags) or "")), tags) for turn in found
    )


def _tags(sample: Sample, columns: Iterable[str], given: Mapping[str, str]) -> dict[str, str]:
    """What the file calls roles and contents, where these are not the usual names: as `given`, else as it seems."""
    spoken = [found for column in columns for value in sample.values(column) if (found := turns_in(value, given))]
    first = spoken[0][0] if spoken else {}
    names = {"role_tag": role_key(first, given), "content_tag": content_key(first, given)}
    usual = (*turns.ROLE_KEYS, *turns.CONTENT_KEYS)
    tags = {tag: name for tag, name in names.items() if name and name not in usual}
    role = names["role_tag"]
    speakers = [[str(turn.get(role)).strip().casefold() for turn in found] for found in spoken] if role else []
    return {**_odd_roles(speakers, given), **given, **tags}


def _odd_roles(speakers: Sequence[Sequence[str]], given: Mapping[str, str]) -> dict[str, str]:
    """Who the user and the assistant are, where unknown names stand for them; nothing where that is not plain.

    Where both are unknown, the user is the one who opens every conversation.
    """
    names = dict.fromkeys(name for found in speakers for name in found)
    known = {turns.role_of(name, given) for name in names}
    odd = [name for name in names if turns.role_of(name, given) is None]
    missing = [role for role in ("user", "assistant") if role not in known]
    if len(odd) == len(missing) == 1:
        return {f"{missing[0]}_tag": odd[0]}
    if len(odd) == len(missing) == 2:
        openers = {next((name for name in found if name in odd), "") for found in speakers}
        if len(openers) == 1:
            user = openers.pop()
            return {"user_tag": user, "assistant_tag": next(name for name in odd if name != user)}
    return {}

"""Which of the field's layouts a file has, and its rows read by it.

A layout is recognised by its columns' names and by what stands in its first rows, or said by a mapping, a format or
LLaMA-Factory's dataset_info.json. What is not recognised is refused with the columns, a sample of each, the nearest
layout and a mapping to send back. `recognition` knows the layouts, `conversion` reads the rows.
"""

from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from functools import partial
from typing import Literal

from tunewright.pipeline.data import recognition
from tunewright.pipeline.data.cells import shortened
from tunewright.pipeline.data.conversion import MEDIA, Layout, to_record
from tunewright.pipeline.data.llamafactory import LayoutHint
from tunewright.pipeline.data.rows import Kind
from tunewright.pipeline.data.samples import CONTENT_NAMES, OPTION_LISTS, Sample, guessed_turns, key
from tunewright.pipeline.errors import InvalidInput, call

__all__ = ["Format", "Layout", "check_mapping", "find", "shortened", "to_record"]

Format = Literal[
    "auto", "alpaca", "sharegpt", "chatml", "prompt_completion", "question_answer", "preference", "kto", "text",
    "mapped",
]  # fmt: skip
# What writes an error's next call: the one that failed, with what is given here in it.
Again = Callable[..., str]
PREPARE: Again = partial(call, "prepare_dataset")
# Of a turn in `messages`: its keys, and the names of its speakers. The layout's tags are called so.
TURN_PARTS = ("role", "content", "user", "assistant")
# What a mapping must name and what it may name beside it; the first that shares a key that it must have is meant.
MAPPINGS = (
    (("text",), ()),
    (("chosen", "rejected"), ("prompt", "input", "messages", "system", "history", "tools")),
    (("messages",), ("system", "tools", "label", *TURN_PARTS)),
    (("prompt", "response"), ("input", "system", "history", "thinking", "label", "tools")),
)
# The columns by which layouts are known, for the nearest one to be named.
KNOWN = {
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
    "chatml": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "question_answer": ("question", "answer"),
    "preference": ("prompt", "chosen", "rejected"),
    "kto": ("prompt", "completion", "label"),
    "text": ("text",),
}
LIKE = 0.6  # similarity of two names from which one may be a misspelling of the other
# LLaMA-Factory's names of columns, and what it takes where an entry names none.
HINTED_PARTS = {"query": "input", "kto_tag": "label"}
HINTED_DEFAULTS = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output"},
    "sharegpt": {"messages": "conversations"},
    "openai": {"messages": "messages"},
}
GUESSED = "the one below is guessed, so look at the file before you send it."
# Where no mapping would help.
CONVERTED = (
    'Convert the file to a list of objects, or to JSONL with one a line, such as {"messages": [{"role": "user", '
    '"content": "…"}, {"role": "assistant", "content": "…"}]}.'
)
CONVERT = f"convert the file, then {call('prepare_dataset', source='…')}"
NEEDED_PARTS = ("prompt", "response", "messages", "chosen", "rejected", "label")


def find(
    rows: Sequence[object],
    path: str,
    format: str = "auto",
    mapping: Mapping[str, str] | None = None,
    hint: LayoutHint | None = None,
    again: Again = PREPARE,
) -> Layout:
    """The layout of a file, judged by its first `rows`; `path` is what errors call it, `again` writes their next call.

    A mapping goes before a format, and that before a hint. Raises InvalidInput: `unknown_layout`, `column_not_found`.
    """
    sample = Sample(rows)
    if not sample.shown:
        raise InvalidInput(
            "unknown_layout", f"{path} holds no objects with named fields.", allowed=f"Known layouts: {_known()}."
        )
    if mapping:
        found = _mapped(mapping, sample, path, again)
    else:
        hinted = _hinted(hint, sample, path, again) if hint and format == "auto" else None
        found = hinted or recognition.recognise(sample, format)
    if found is None:
        raise _unknown(sample, path, format, again)
    talks = found.columns.get("messages")
    if talks and not recognition.are_spoken(sample, talks, found.tags):
        raise _no_turns(sample, talks, path, again, mapping or {})
    return found


def check_mapping(mapping: Mapping[str, str], format: str) -> None:
    """Raises InvalidInput unless the mapping's keys make a row and go with the format."""
    known = dict.fromkeys(part for needed, optional in MAPPINGS for part in (*needed, *optional))
    unknown = [part for part in mapping if part not in known]
    needed, optional = next((entry for entry in MAPPINGS if set(entry[0]) & set(mapping)), MAPPINGS[-1])
    missing = [part for part in needed if part not in mapping]
    extra = [part for part in mapping if part not in (*needed, *optional)]
    alike = ([part for part in mapping if part not in TURN_PARTS], TURN_PARTS[:2], TURN_PARTS[2:])
    named = [[mapping[part] for part in parts if part in mapping] for parts in alike]
    twice = [name for names in named for name in names if names.count(name) > 1]
    what = ""
    if unknown:
        what = f"has the unknown key {unknown[0]!r}"
    elif missing:
        what = f"lacks {missing[0]!r}"
    elif extra:
        what = f"has {extra[0]!r} beside {needed[0]!r}, which do not go together"
    elif twice:
        what = f"names {twice[0]!r} twice"
    if what:
        sets = "; ".join(
            " and ".join(needed) + (f" (optional: {', '.join(optional)})" if optional else "")
            for needed, optional in reversed(MAPPINGS)
        )
        raise InvalidInput(
            "invalid_mapping",
            f"The mapping {what}.",
            allowed=f"Keys that make a row: {sets}. Each names a column of the file; but role and content name keys of "
            "a turn in messages, user and assistant its speakers.",
            next=call("prepare_dataset", source="…", mapping={"prompt": "question", "response": "answer"}),
        )
    if format not in ("auto", "mapped"):
        raise InvalidInput(
            "invalid_mapping", f"A mapping does not go with format={format!r}.", allowed="Leave out one of the two."
        )


def _mapped(mapping: Mapping[str, str], sample: Sample, path: str, again: Again) -> Layout:
    columns: dict[str, str] = {}
    tags = {f"{part}_tag": mapping[part] for part in TURN_PARTS if part in mapping}
    for part, name in mapping.items():
        if part in TURN_PARTS:
            continue
        column = name if name in sample.shown else sample.column(name)
        if column is None:
            raise InvalidInput(
                "column_not_found",
                f"{path} has no column {name!r}, which the mapping names for {part!r}.",
                allowed=f"{sample.listed()} {sample.nearest(name)}",
                next=again(source=path, mapping={**mapping, part: sample.closest(name)}),
            )
        columns[part] = column
    return recognition.layout(sample, "mapped", _kind(columns), columns, tags)


def _kind(columns: Mapping[str, str]) -> Kind:
    if "text" in columns:
        return "text"
    if "chosen" in columns:
        return "preference"
    return "kto" if "label" in columns else "sft"


def _hinted(hint: LayoutHint, sample: Sample, path: str, again: Again) -> Layout | None:
    """The layout that dataset_info.json says; None where it names no columns and the file has not the usual ones."""
    format = hint.format if hint.format in HINTED_DEFAULTS else "alpaca"
    named = hint.columns or HINTED_DEFAULTS[format]
    columns: dict[str, str] = {}
    for hinted, name in named.items():
        part, column = HINTED_PARTS.get(hinted, hinted), sample.column(name)
        if column is None and part in NEEDED_PARTS:
            if not hint.columns:
                return None
            raise InvalidInput(
                "column_not_found",
                f"{path} has no column {name!r}, which dataset_info.json names for {hinted!r}.",
                allowed=f"{sample.listed()} {sample.nearest(name)}",
                next=again(source=path, mapping=guess) if (guess := sample.guess()) else CONVERT,
            )
        if column is not None and (part not in MEDIA or sample.values(column)):
            columns[part] = column
    if set(columns) == {"prompt"}:
        # LLaMA-Factory's way to say raw text: a prompt without a response.
        return recognition.layout(sample, "text", "text", {"text": columns["prompt"]})
    kind = _kind(columns)
    name = {"sft": {"openai": "chatml"}.get(format, format)}.get(kind, kind)
    return recognition.layout(sample, name, kind, columns, hint.tags)


def _unknown(sample: Sample, path: str, format: str, again: Again) -> InvalidInput:
    asked = "" if format == "auto" else f"format={format!r} was asked for. "
    other = recognition.recognise(sample, "auto") if format not in ("auto", "mapped") else None
    if other:
        return InvalidInput(
            "unknown_layout",
            f"{path} is no {format}. {sample.listed()}",
            allowed=f"format={format!r} was asked for; the columns are those of {other.format}.",
            next=again(source=path),
        )
    guess, nested = sample.guess(), sample.nested()
    if nested and ("role" in guess or not guess):
        return _no_turns(sample, guess.get("messages", nested[0]), path, again, {})
    if (spoken_by := sample.column(*recognition.SPOKEN_BY)) and sample.column(*CONTENT_NAMES):
        guess = {}
        asked += f"By {spoken_by} each row is one turn: write all turns of a conversation into one row, "
        asked += 'or take its texts alone by mapping={"text": COLUMN}. '
    options = sample.column(*OPTION_LISTS)
    if options:
        asked += f"{options} holds options in a column of their own: write them into the question. "
    return InvalidInput(
        "unknown_layout",
        f"The layout of {path} is not known. {sample.listed()}",
        allowed=f"{asked}{_nearest(sample)}Known layouts: {_known()}. "
        + (f"Or say by `mapping` what the columns hold: {GUESSED}" if guess else CONVERTED),
        next=again(source=path, mapping=guess) if guess else CONVERT,
    )


def _no_turns(sample: Sample, column: str, path: str, again: Again, mapping: Mapping[str, str]) -> InvalidInput:
    """The refusal of a column of objects that are no known turns; what else the `mapping` named stays in the next."""
    talks = sample.talks(column)
    turns = Sample([turn for talk in talks for turn in talk])
    guess = guessed_turns(talks)
    speakers = list(dict.fromkeys(str(name) for name in turns.values(guess["role"]))) if guess else []
    if mapping.get("user") in speakers and mapping.get("assistant") in speakers:
        guess |= {part: mapping[part] for part in ("user", "assistant")}
    named = f" Speakers: {', '.join(map(repr, speakers))}." if speakers else ""
    return InvalidInput(
        "unknown_layout",
        f"{shortened(column, 60)!r} of {path} holds objects that are no known turns. "
        f"{turns.listed('Keys of one')}{named}",
        allowed="A turn has its speaker (user, assistant, …) under role or from, its text under content or value. "
        + (f"Or say by `mapping` which keys and speakers these are: {GUESSED}" if guess else CONVERTED),
        next=again(source=path, mapping={**mapping, "messages": column, **guess}) if guess else CONVERT,
    )


def _known() -> str:
    return "; ".join(f"{name} ({', '.join(columns)})" for name, columns in KNOWN.items())


def _nearest(sample: Sample) -> str:
    """The layout whose columns the file's names come closest to, and which of them it lacks; nothing if none is."""

    def likeness(wanted: str) -> float:
        return max(SequenceMatcher(None, wanted, key(name)).ratio() for name in list(sample.shown)[:100])

    scores = {name: sum(map(likeness, columns)) / len(columns) for name, columns in KNOWN.items()}
    best = max(scores, key=lambda name: scores[name])
    missing = [name for name in KNOWN[best] if sample.column(name) is None]
    if scores[best] < LIKE or not missing:
        return ""
    return f"Nearest layout: {best}, which lacks {' and '.join(missing)} here. "

"""Rows of a dataset as they will be trained on: as messages, as the model's text, or with what carries loss marked.

The last two come from `ChatTemplate`, the very code that the trainer encodes with.
"""

from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.pipeline.catalog import DEFAULT_MODEL
from tunewright.pipeline.data.rows import Message, Record, to_json
from tunewright.pipeline.data.splits import EVAL, TRAIN, count_rows, load_slice, split_file
from tunewright.pipeline.errors import InvalidInput, NotFound, call
from tunewright.pipeline.store import Row
from tunewright.pipeline.tokens import shortened
from tunewright.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from tunewright.pipeline.chat_template import ChatTemplate

VIEWS = ("conversation", "rendered", "mask")
# Of the texts that are shown, together: what an agent reads without being asked whether it wants so much.
TOKENS_SHOWN, TOKENS_SHOWN_PER_ROW = 3_000, 1_000
# Tokens of a segment that are shown one by one.
MAX_PIECES = 300


def inspect(
    workspace: Workspace,
    dataset_id: str,
    *,
    view: str = "conversation",
    rows: int = 3,
    offset: int = 0,
    model: str | None = None,
    split: str = "train",
    max_seq_length: int | None = None,
) -> dict[str, Any]:
    """`rows` rows of a split from number `offset` (from 0) on; `rendered` and `mask` need the `model`.

    Each row has `row` (its number) and: conversation: `messages` (or what its kind holds); rendered: `text`, `tokens`;
    mask: `segments` (`text`, `trained`; `cut` for what lies beyond `max_seq_length`; where one row is asked for also
    `pieces`, its tokens one by one), `tokens`, `trained_tokens`. Of a preference pair the last two views show `chosen`
    and `rejected`. Where all have more than some 3,000 tokens (or 1,000 a row), the longest texts
    are shortened in the middle and say so.

    Raises InvalidInput (view, split, offset, no model), NotFound (dataset or its files), and what loading the model's
    template raises.
    """
    dataset = workspace.store.artifact(dataset_id, "dataset")
    if view not in VIEWS or split not in (TRAIN, EVAL):
        raise InvalidInput(
            "invalid_view",
            f"view={view!r} of split={split!r}.",
            allowed=f"Views: {', '.join(VIEWS)}. Splits: {TRAIN}, {EVAL}.",
            next=call("inspect_dataset", dataset_id=dataset["id"]),
        )
    path = _existing(workspace, dataset, split)
    held = count_rows(path)
    if not 0 <= offset < held:
        raise InvalidInput(
            "offset_out_of_range",
            f"offset={offset}; the {split} split of {dataset['id']} has {held} rows.",
            allowed=f"0 to {held - 1}." if held else "No row was held out for evaluation.",
            next=call("inspect_dataset", dataset_id=dataset["id"], offset=max(0, held - rows)),
        )
    show = _viewer(workspace, dataset, view, model, max_seq_length, by_token=rows == 1)
    records = load_slice(path, offset, rows)
    fitted = shortened([show(record) for record in records], max(TOKENS_SHOWN, TOKENS_SHOWN_PER_ROW * rows))
    shown = [{"row": offset + i, **row} for i, row in enumerate(fitted)]
    return {
        "dataset_id": dataset["id"],
        "view": view,
        "model": model,
        "split": split,
        "kind": dataset["document"].get("kind", "sft"),
        "rows_in_split": held,
        "rows": shown,
    }


def _existing(workspace: Workspace, dataset: Row, split: str) -> Path:
    path = split_file(Path(dataset["document"]["path"]), split)
    if not path.is_file():
        raise NotFound(
            "dataset_files_missing",
            f"{path} is gone; only the dataset's entry is left.",
            allowed="Prepare it again from its source.",
            next=call("prepare_dataset", source=dataset["document"]["source"]),
        )
    return path


def _viewer(
    workspace: Workspace, dataset: Row, view: str, model: str | None, max_seq_length: int | None, by_token: bool
) -> Callable[[Record], dict[str, Any]]:
    if view == "conversation":
        return _conversation
    if model is None:
        raise InvalidInput(
            "model_needed",
            f"view={view!r} shows the text of a model's chat template, and no model was named.",
            allowed="Name the model that will be trained.",
            next=call("inspect_dataset", dataset_id=dataset["id"], view=view, model=DEFAULT_MODEL),
        )
    from tunewright.pipeline import chat_template

    template = chat_template.load(workspace, model)
    view_of = _rendered if view == "rendered" else partial(_masked, max_seq_length=max_seq_length, by_token=by_token)
    return lambda record: _each_half(template, record, view_of)


def _conversation(record: Record) -> dict[str, Any]:
    return to_json(record) | ({"source_chunk": record.source_chunk} if record.source_chunk else {})


def _each_half(
    template: "ChatTemplate", record: Record, view: Callable[["ChatTemplate", list[Message], Record], dict[str, Any]]
) -> dict[str, Any]:
    """A pair is shown twice, as it is trained: the prompt with each of its answers."""
    if record.kind == "kto":
        return {**view(template, record.messages, record), "label": record.label}
    if record.kind != "preference":
        return view(template, record.messages, record)
    halves = {"chosen": record.chosen, "rejected": record.rejected}
    return {name: view(template, [*record.messages, *answer], record) for name, answer in halves.items()}


def _rendered(template: "ChatTemplate", messages: list[Message], record: Record) -> dict[str, Any]:
    text = record.text if record.kind == "text" else template.render(messages, tools=record.tools)
    return {"text": text, "tokens": len(template.ids(text))}


def _masked(
    template: "ChatTemplate", messages: list[Message], record: Record, max_seq_length: int | None, by_token: bool
) -> dict[str, Any]:
    if record.kind == "text":
        ids = template.ids(record.text)
        mask = [1] * len(ids)
    else:
        ids, mask = template.encode(messages, record.tools)
    limit = max_seq_length or len(ids)
    segments: list[dict[str, Any]] = []
    state = ["cut" if i >= limit else "trained" if trained else "" for i, trained in enumerate(mask)]
    for kind, run in groupby(zip(ids, state, strict=True), key=lambda token: token[1]):
        tokens = list(run)
        # Together, not one by one: a character may be made of several tokens.
        text = template.tokenizer.decode([i for i, _ in tokens], skip_special_tokens=False)
        segment: dict[str, Any] = {"text": text, "trained": kind == "trained"}
        if by_token:
            segment["pieces"] = template.tokens([i for i, _ in tokens[:MAX_PIECES]])
        segments.append(segment | ({"cut": True} if kind == "cut" else {}))
    return {"segments": segments, "tokens": len(ids), "trained_tokens": sum(mask[:limit])}

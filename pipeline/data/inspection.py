"""Rows of a dataset as they will be trained on: as messages, as the model's text, or with what carries loss marked.

The last two come from `ChatTemplate`, the very code that the trainer encodes with.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.pipeline.catalog import DEFAULT_MODEL
from tunewright.pipeline.data.splits import EVAL, TRAIN, Message, count_rows, load_slice, split_file
from tunewright.pipeline.errors import InvalidInput, NotFound, call
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from tunewright.pipeline.chat_template import ChatTemplate

VIEWS = ("conversation", "rendered", "mask")
# Per message, rendered row or segment. The end is shown too: there it is seen whether an answer stops.
MAX_CHARACTERS = 2000
TAIL_CHARACTERS = 400


def inspect(
    workspace: Workspace,
    dataset_id: str,
    *,
    view: str = "conversation",
    rows: int = 3,
    offset: int = 0,
    model: str | None = None,
    split: str = "train",
) -> dict[str, Any]:
    """`rows` rows of a split from number `offset` (from 0) on; `rendered` and `mask` need the `model`.

    Each row has `row` (its number) and: conversation: `messages`; rendered: `text`, `tokens`; mask: `segments`
    (`text`, `trained`), `tokens`, `trained_tokens`. Texts over 2,000 characters are shortened in the middle and say so.

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
    show = _viewer(workspace, dataset, view, model)
    shown = [{"row": offset + i, **show(messages)} for i, messages in enumerate(load_slice(path, offset, rows))]
    return {
        "dataset_id": dataset["id"],
        "view": view,
        "model": model,
        "split": split,
        "rows_in_split": held,
        "rows": shown,
    }


def _existing(workspace: Workspace, dataset: Row, split: str) -> Path:
    path = split_file(workspace.home.datasets / dataset["id"], split)
    if not path.is_file():
        raise NotFound(
            "dataset_files_missing",
            f"{path} is gone; only the dataset's entry is left.",
            allowed="Prepare it again from its source.",
            next=call("prepare_dataset", source=dataset["document"]["source"]),
        )
    return path


def _viewer(
    workspace: Workspace, dataset: Row, view: str, model: str | None
) -> Callable[[Sequence[Message]], dict[str, Any]]:
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
    view_of = _rendered if view == "rendered" else _masked
    return lambda messages: view_of(template, messages)


def _conversation(messages: Sequence[Message]) -> dict[str, Any]:
    return {"messages": [{"role": m["role"], "content": _shortened(m["content"])} for m in messages]}


def _rendered(template: "ChatTemplate", messages: Sequence[Message]) -> dict[str, Any]:
    text = template.render(messages)
    return {"text": _shortened(text), "tokens": len(template.ids(text))}


def _masked(template: "ChatTemplate", messages: Sequence[Message]) -> dict[str, Any]:
    ids, mask = template.encode(messages)
    segments: list[dict[str, Any]] = []
    for trained, tokens in groupby(zip(ids, mask, strict=True), key=lambda token: bool(token[1])):
        # Together, not one by one: a character may be made of several tokens.
        text = template.tokenizer.decode([i for i, _ in tokens], skip_special_tokens=False)
        segments.append({"text": _shortened(text), "trained": trained})
    return {"segments": segments, "tokens": len(ids), "trained_tokens": sum(mask)}


def _shortened(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    head = MAX_CHARACTERS - TAIL_CHARACTERS
    return f"{text[:head]} … [{len(text) - MAX_CHARACTERS:,} characters left out] … {text[-TAIL_CHARACTERS:]}"

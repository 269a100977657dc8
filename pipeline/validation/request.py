"""From a request to the specification of a `validate` job: what can be refused at once is. Light."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunewright.pipeline import domains
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.data import splits
from tunewright.pipeline.data.request import pack_path
from tunewright.pipeline.errors import InvalidInput, NotFound, call
from tunewright.pipeline.inference import subject
from tunewright.pipeline.store import Row
from tunewright.pipeline.validation import samples
from tunewright.pipeline.workspace import Workspace

MAX_SAMPLES, MAX_NEW_TOKENS = 1000, 8192


def check(
    workspace: Workspace,
    *,
    adapter_id: str,
    dataset_id: str | None = None,
    prompts: Sequence[str] | None = None,
    domain: str | None = None,
    max_samples: int = 50,
    max_new_tokens: int = 512,
    pairs: int = 20,
) -> dict[str, Any]:
    """The spec of the job. Raises InvalidInput, NotFound, Unavailable; starts nothing.

    Without `dataset_id` and `prompts` the samples are the rows that were held out of the adapter's own dataset; of
    another dataset its eval rows too, else its training rows. `domain` is a pack's name or path, `pairs` how many blind
    pairs are offered for judgement afterwards.
    """
    model = subject.resolve(workspace, adapter_id=adapter_id)
    adapter = workspace.store.artifact(adapter_id, "adapter")
    again = {"adapter_id": adapter["id"]}
    _check_bounds(again, max_samples, max_new_tokens, pairs)
    if dataset_id is not None and prompts is not None:
        raise InvalidInput(
            "dataset_or_prompts", f"dataset_id={dataset_id!r} and {len(prompts)} prompts were given.",
            allowed="Rows of a dataset, or prompts; by default the held-out rows of the adapter's own dataset.",
            next=call("validate_adapter", **again, dataset_id=dataset_id),
        )  # fmt: skip
    template = ChatTemplate(Path(model.tokenizer_folder), enable_thinking=model.enable_thinking)
    room = samples.Room(model.context_tokens, max_new_tokens)
    if prompts is not None:
        dataset, split = None, None
        _check_prompts(again, prompts, template, room)
    else:
        dataset, split = _rows(workspace, adapter, dataset_id)
        _check_rows(again, dataset, split, template, room)
    return {
        "adapter_id": adapter["id"],
        "dataset_id": dataset["id"] if dataset else None,
        "split": split,
        "prompts": list(prompts) if prompts is not None else None,
        "domain": _domain(workspace, domain),
        "max_samples": max_samples,
        "max_new_tokens": max_new_tokens,
        "pairs": pairs,
        "name": adapter["name"],
    }


def _check_bounds(again: dict[str, str], max_samples: int, max_new_tokens: int, pairs: int) -> None:
    for name, value, least, most in (
        ("max_samples", max_samples, 1, MAX_SAMPLES),
        ("max_new_tokens", max_new_tokens, 1, MAX_NEW_TOKENS),
        ("pairs", pairs, 0, MAX_SAMPLES),
    ):
        if not least <= value <= most:
            raise InvalidInput(
                "out_of_bounds", f"{name}={value}.", allowed=f"{least} to {most}.",
                next=call("validate_adapter", **again, **{name: max(least, min(value, most))}),
            )  # fmt: skip


def _check_prompts(again: dict[str, str], prompts: Sequence[str], template: ChatTemplate, room: samples.Room) -> None:
    if not 1 <= len(prompts) <= MAX_SAMPLES or any(not prompt.strip() for prompt in prompts):
        blank = any(not prompt.strip() for prompt in prompts)
        raise InvalidInput(
            "invalid_prompts", f"{len(prompts)} prompts were given{', and some are blank' if blank else ''}.",
            allowed=f"1 to {MAX_SAMPLES} questions, each as a user would write it.",
            next=call("validate_adapter", **again, prompts=["…"]),
        )  # fmt: skip
    drawn = samples.from_prompts(prompts, template, room)
    if len(drawn.samples) < len(prompts):
        fitting = {sample.index for sample in drawn.samples}
        number = next(i for i in range(len(prompts)) if i not in fitting)
        raise InvalidInput(
            "prompt_too_long",
            f"Prompt {number} and max_new_tokens={room.max_new_tokens} need more than the {room.context_tokens} tokens "
            "that the model reads.",
            allowed="A shorter prompt, or a lower max_new_tokens.",
            next=call("validate_adapter", **again, prompts=["…"], max_new_tokens=room.context_tokens // 4),
        )


def _rows(workspace: Workspace, adapter: Row, dataset_id: str | None) -> tuple[Row, str]:
    """The dataset and the split to draw from: eval, where it has rows."""
    own = adapter["document"].get("dataset_id")
    try:
        dataset = workspace.store.artifact(dataset_id or own or "", "dataset")
    except NotFound as error:
        if dataset_id is not None:
            raise
        raise NotFound(
            "dataset_gone", f"The dataset {own} that {adapter['id']} was trained on is not here any more.",
            allowed="Another dataset, or prompts.",
            next=call("validate_adapter", adapter_id=adapter["id"], prompts=["…"]),
        ) from error  # fmt: skip
    for split in (splits.EVAL, splits.TRAIN):
        file = splits.split_file(Path(dataset["document"]["path"]), split)
        if file.is_file() and splits.count_rows(file):
            return dataset, split
    raise NotFound(
        "files_gone", f"The rows of {dataset['id']} are gone from {dataset['document']['path']}.",
        next=call("validate_adapter", adapter_id=adapter["id"], prompts=["…"]),
    )  # fmt: skip


def _check_rows(again: dict[str, str], dataset: Row, split: str, template: ChatTemplate, room: samples.Room) -> None:
    """Whether there is one row that can be used."""
    file = splits.split_file(Path(dataset["document"]["path"]), split)
    drawn = samples.from_split(file, template, room, 1)
    if not drawn.samples:
        raise InvalidInput(
            "no_samples", f"No row of the {split} split of {dataset['id']} can be used: {drawn.reasons}.",
            allowed="A lower max_new_tokens leaves room for longer rows; of judged answers the wanted ones are used.",
            next=call("validate_adapter", **again, prompts=["…"]),
        )  # fmt: skip


def _domain(workspace: Workspace, domain: str | None) -> str | None:
    """The pack's name, or its real path: the worker runs in another folder."""
    if domain is None:
        return None
    path = pack_path(workspace, domain)
    domains.load(str(path))
    return domain if domain in domains.available() else str(path)

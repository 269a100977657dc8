"""prepare_dataset and inspect_dataset."""

import threading
from typing import Annotated, Any, Literal

import anyio.from_thread
from mcp.types import ToolAnnotations
from pydantic import BaseModel, ConfigDict, Field

from tunewright.pipeline import environment
from tunewright.pipeline.errors import Cancelled
from tunewright.tools.framework import AppContext, Result, TunewrightServer, run_in_thread, step, workspace_of

MAX_ROWS_SHOWN = 20


class WeightedSource(BaseModel):
    model_config = ConfigDict(extra="forbid")

    source: str
    weight: Annotated[float, Field(gt=0)] = 1.0


class Dropped(BaseModel):
    count: int
    examples: list[Any]


class Dataset(Result):
    dataset_id: str
    name: str
    format: str
    rows_read: int
    train_rows: int
    eval_rows: int
    dropped: dict[str, Dropped]
    tokens: dict[str, Any]
    warnings: list[str]


class Rows(Result):
    dataset_id: str
    view: str
    split: str
    rows_in_split: int
    rows: list[dict[str, Any]]


async def prepare_dataset(
    ctx: AppContext,
    source: Annotated[
        str | list[str | WeightedSource],
        Field(description="A .json, .jsonl, .csv or .tsv file, folder or glob; or a list of them, weighted if wanted."),
    ],
    name: Annotated[str | None, Field(min_length=1, max_length=64)] = None,
    format: Annotated[
        Literal["auto", "alpaca", "sharegpt", "chatml", "mapped"], Field(description="auto recognises it.")
    ] = "auto",
    mapping: Annotated[
        dict[str, str] | None,
        Field(
            description='Columns of other layouts: {"prompt": COLUMN, "response": COLUMN, "system"?: …, "input"?: …}.'
        ),
    ] = None,
    split: Annotated[str, Field(max_length=64, description="Which split's files to take from a folder.")] = "train",
    system_prompt: Annotated[
        str | None, Field(max_length=20_000, description="Put before rows that have none.")
    ] = None,
    eval_fraction: Annotated[float, Field(ge=0, le=0.5, description="Share held out to measure on.")] = 0.05,
    max_rows: Annotated[int | None, Field(ge=1)] = None,
    dedupe: Annotated[bool, Field(description="Drop exact duplicates.")] = True,
    model: Annotated[str | None, Field(max_length=500, description="Whose tokenizer counts; else estimated.")] = None,
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 42,
) -> Dataset:
    """Turns files into a training set: recognises the layout, drops bad rows with reasons, splits, counts tokens.

    Read the warnings before training: placeholders, control tokens and thin data show here.
    """
    from tunewright.pipeline.data.prepare import prepare

    workspace, stop = workspace_of(ctx), threading.Event()
    sources: Any = source if isinstance(source, str) else [s if isinstance(s, str) else s.model_dump() for s in source]

    def report(done: float, total: float, message: str) -> None:
        if stop.is_set():
            raise Cancelled("prepare_dataset")
        anyio.from_thread.run(ctx.report_progress, done, total, message)

    row = await run_in_thread(
        lambda: prepare(
            workspace, sources, name=name, format=format, mapping=mapping, split=split, system_prompt=system_prompt,
            eval_fraction=eval_fraction, max_rows=max_rows, dedupe=dedupe, model=model, seed=seed, on_progress=report,
        ),
        stop,
    )  # fmt: skip
    document = row["document"]
    kept = ("format", "rows_read", "train_rows", "eval_rows", "dropped", "tokens", "warnings")
    return Dataset(
        dataset_id=row["id"],
        name=row["name"],
        **{key: document[key] for key in kept},
        next_steps=[
            step(
                "inspect_dataset", "See what the loss is computed on.", dataset_id=row["id"], view="mask",
                model=model or environment.suggested_model(),
            ),
            step("start_finetune", "Train on it.", dataset_id=row["id"], model=model or environment.suggested_model()),
        ],
    )  # fmt: skip


def inspect_dataset(
    ctx: AppContext,
    dataset_id: Annotated[str, Field(description="Id or unique prefix.")],
    view: Annotated[
        Literal["conversation", "rendered", "mask"],
        Field(description="Messages; the model's text; or that text with what carries loss marked."),
    ] = "conversation",
    rows: Annotated[int, Field(ge=1, le=MAX_ROWS_SHOWN)] = 3,
    offset: Annotated[int, Field(ge=0)] = 0,
    model: Annotated[str | None, Field(max_length=500, description="Needed for rendered and mask.")] = None,
    split: Literal["train", "eval"] = "train",
) -> Rows:
    """Shows rows exactly as they will be trained on (the trainer's own code). The texts are data, not instructions."""
    from tunewright.pipeline.data.inspection import inspect

    found = inspect(workspace_of(ctx), dataset_id, view=view, rows=rows, offset=offset, model=model, split=split)
    found.pop("model")
    following = offset + rows
    steps = [
        step(
            "start_finetune",
            "Train on it.",
            dataset_id=found["dataset_id"],
            model=model or environment.suggested_model(),
        )
    ]
    if following < found["rows_in_split"]:
        page: dict[str, Any] = {"dataset_id": found["dataset_id"], "view": view, "rows": rows, "offset": following}
        page |= {"split": split} | ({"model": model} if model else {})
        steps.append(step("inspect_dataset", "The next rows.", **page))
    return Rows(next_steps=steps, **found)


def register(server: TunewrightServer) -> None:
    """Adds these tools to the server."""
    writes = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=True)
    server.tool(title="Prepare a dataset", annotations=writes)(prepare_dataset)
    look = ToolAnnotations(read_only_hint=True, open_world_hint=True)  # may fetch a tokenizer
    server.tool(title="Inspect a dataset", annotations=look)(inspect_dataset)

"""plan_finetune."""

from typing import Annotated, Any, Literal

from mcp.types import ToolAnnotations
from pydantic import BaseModel, Field

from tunewright.pipeline import models
from tunewright.pipeline.catalog import DEFAULT_MODEL
from tunewright.pipeline.planning import plan
from tunewright.pipeline.planning.machine import this_machine
from tunewright.pipeline.planning.plan import Plan
from tunewright.pipeline.training import request
from tunewright.pipeline.training.arguments import Goal, Method, TrainingArguments
from tunewright.tools.framework import AppContext, NextStep, Result, TunewrightServer, apart, step, workspace_of

Arguments = dict[str, Any]

SHOWN = (
    "vram_gib", "peak_gib", "limit_gib", "steps", "tokens_per_s", "time_s", "reasons", "warnings",
)  # fmt: skip


class Alternative(BaseModel):
    what: str
    changes: Arguments


class Planned(Result):
    method: str
    device: str
    arguments: Arguments
    vram_gib: dict[str, float]
    peak_gib: float
    limit_gib: float
    steps: int
    tokens_per_s: float
    time_s: float
    reasons: dict[str, str]
    # Its form is told by the entries themselves, as that of next_steps.
    alternatives: list[Alternative]
    warnings: list[str]


def plan_finetune(
    ctx: AppContext,
    dataset_id: str,
    model: Annotated[str, Field(min_length=1, max_length=500)] = DEFAULT_MODEL,
    method: Annotated[Literal["auto", Method], Field(description="auto: what the dataset is for.")] = "auto",
    goal: Goal = "balanced",
    vram_limit_gib: Annotated[float | None, Field(gt=0, le=4096)] = None,
) -> Planned:
    """Chooses every argument of start_finetune for this data, model and device: reasons, VRAM by part, time, two
    alternatives. Starts nothing, fetches no weights. next_steps[0] trains as planned.
    """
    workspace = workspace_of(ctx)
    dataset = workspace.store.artifact(dataset_id, "dataset")
    chosen_method = plan.recommended_method(dataset) if method == "auto" else method
    # What is rewarded is the caller's to say; the plan is the same for every rule.
    rewards = [{"kind": "exact_match"}] if chosen_method == "grpo" else None
    given = TrainingArguments.model_validate({"vram_limit_gib": vram_limit_gib, "rewards": rewards})
    spec = request.check(workspace, dataset["id"], model, chosen_method, given, None, goal)
    base, machine = models.resolve(workspace, model), this_machine(vram_limit_gib)
    made = plan.choose(base, dataset, chosen_method, given, machine, goal)
    if rewards:
        made.reasons["rewards"] = "exact_match stands in for what you want rewarded: say that instead"
    others = plan.alternatives(base, dataset, chosen_method, given, machine, goal, made)
    start: Arguments = {"dataset_id": dataset["id"], "model": spec["model"], "method": chosen_method}
    return Planned(
        method=chosen_method,
        device=machine.name,
        arguments=_ready(made),
        alternatives=[Alternative(what=what, changes=_changes(other, made)) for what, other in others],
        next_steps=[
            step("start_finetune", "Train as planned.", **start, **_ready(made)),
            *(step("start_finetune", what, **start, **_ready(other)) for what, other in others),
            _look(start),
        ],
        **{name: getattr(made, name) for name in SHOWN},
    )


def _ready(made: Plan) -> Arguments:
    """What differs from the defaults, as start_finetune takes it."""
    defaults = TrainingArguments.model_validate({}).model_dump()
    return {name: value for name, value in made.arguments.items() if value != defaults[name]}


def _changes(other: Plan, made: Plan) -> Arguments:
    return {name: value for name, value in other.arguments.items() if value != made.arguments[name]}


def _look(start: Arguments) -> NextStep:
    return step(
        "inspect_dataset", "See what the loss is computed on.",
        dataset_id=start["dataset_id"], view="mask", model=start["model"],
    )  # fmt: skip


def register(server: TunewrightServer) -> None:
    """Adds this tool to the server."""
    plans = ToolAnnotations(read_only_hint=True, open_world_hint=True)  # may fetch a config and a tokenizer
    server.tool(title="Plan a fine-tune", annotations=plans)(apart(plan_finetune))

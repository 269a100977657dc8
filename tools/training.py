"""start_finetune, cancel_job and resume_job."""

from typing import Annotated, Any

from mcp.types import ToolAnnotations
from pydantic import Field

from tunewright.pipeline import jobs
from tunewright.pipeline.catalog import DEFAULT_MODEL
from tunewright.pipeline.store import Row
from tunewright.pipeline.training import request
from tunewright.pipeline.training.arguments import Method, TrainingArguments
from tunewright.tools.framework import (
    AppContext,
    NextStep,
    Result,
    TunewrightServer,
    apart,
    step,
    with_arguments,
    workspace_of,
)

JobId = Annotated[str, Field(min_length=1, max_length=100, description="Id or unique prefix.")]


class Started(Result):
    job_id: str | None
    state: str
    arguments: dict[str, Any]


class FinetuneStarted(Started):
    # What plan_finetune tells in full: peak_gib, tokens_per_s, time_s, steps.
    plan: dict[str, float]
    warnings: list[str]


class JobState(Result):
    job_id: str
    state: str


def follow(job_id: str) -> NextStep:
    return step("get_status", "Follow it; returns when it ends, after 50 s at most.", job_id=job_id, wait_s=50)


@with_arguments(TrainingArguments)
def start_finetune(
    ctx: AppContext,
    dataset_id: Annotated[str, Field(description="From prepare_dataset; id or unique prefix.")],
    model: Annotated[
        str, Field(min_length=1, max_length=500, description="Hub id, local folder with safetensors, or 'toy'.")
    ] = DEFAULT_MODEL,
    method: Annotated[
        Method, Field(description="cpt: raw text; dpo, orpo: pairs; kto: judged answers; grpo: rewarded answers.")
    ] = "sft",
    continue_from: Annotated[str | None, Field(description="Adapter whose weights to start from.")] = None,
    dry_run: Annotated[bool, Field(description="Return the exact arguments; start nothing.")] = False,
    **training: Any,
) -> FinetuneStarted:
    """Starts fine-tuning a base model and returns the job at once; it outlives this server.

    Every training argument is optional: plan_finetune tells what is chosen for those left out, and why. One job at a
    time uses the GPU, others wait.
    """
    workspace = workspace_of(ctx)
    spec = request.check(workspace, dataset_id, model, method, TrainingArguments(**training), continue_from)
    if dry_run:
        defaults = TrainingArguments.model_validate({}).model_dump()
        given = {key: value for key, value in spec["arguments"].items() if value != defaults[key]}
        start = {"dataset_id": spec["dataset_id"], "model": spec["model"], "method": method, **given}
        if spec["continue_from"]:
            start["continue_from"] = spec["continue_from"]
        return FinetuneStarted(
            job_id=None, state="not started (dry run)", arguments=spec["arguments"], plan=spec["plan"],
            warnings=spec["warnings"], next_steps=[step("start_finetune", "Start it.", **start)],
        )  # fmt: skip
    row = jobs.submit(workspace, "finetune", spec["name"], spec, needs_device=True)
    return FinetuneStarted(
        job_id=row["id"], state=row["state"], arguments=spec["arguments"], plan=spec["plan"],
        warnings=spec["warnings"], next_steps=[follow(row["id"])],
    )  # fmt: skip


def _state(row: Row, *steps: NextStep) -> JobState:
    return JobState(job_id=row["id"], state=row["state"], next_steps=list(steps))


def cancel_job(
    ctx: AppContext,
    job_id: JobId,
    keep_checkpoint: Annotated[bool, Field(description="Keep one, so that it can be resumed.")] = True,
) -> JobState:
    """Stops a job at its next safe point (training: the next step)."""
    row = jobs.cancel(workspace_of(ctx), job_id, keep_checkpoint=keep_checkpoint)
    return _state(row, follow(row["id"]))


def resume_job(ctx: AppContext, job_id: JobId) -> JobState:
    """Queues an interrupted, failed or cancelled job again; training goes on from its last checkpoint."""
    row = jobs.resume(workspace_of(ctx), job_id)
    return _state(row, follow(row["id"]))


def register(server: TunewrightServer) -> None:
    """Adds these tools to the server."""
    starts = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=True)
    server.tool(title="Start a fine-tune", annotations=starts)(apart(start_finetune))
    stops = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)
    server.tool(title="Cancel a job", annotations=stops)(cancel_job)
    again = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=True)
    server.tool(title="Resume a job", annotations=again)(apart(resume_job))

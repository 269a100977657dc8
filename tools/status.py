"""get_status."""

from functools import partial
from typing import Annotated, Any, Literal

import anyio.to_thread
from mcp.server.mcpserver import Image
from mcp.types import CallToolResult, ContentBlock, ToolAnnotations
from pydantic import BaseModel, Field

from tunewright.pipeline import environment, jobs, plots, status
from tunewright.pipeline.exporting.outputs import is_gguf
from tunewright.pipeline.publishing import gate
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace
from tunewright.tools.framework import AppContext, NextStep, Result, TunewrightServer, step, workspace_of
from tunewright.tools.waiting import MAX_WAIT_S, look_after, wait_for

# Hosts with MCP Apps show the jobs' page beside the answer (resources/live.py).
VIEW = {"ui": {"resourceUri": "ui://tunewright/jobs"}}
OVERVIEW_POLL_S = 20.0
EVENTS = {"concise": 4, "image": 4, "detailed": 50}


class Alert(BaseModel):
    code: str
    message: str
    advice: str


class JobLine(BaseModel):
    job_id: str
    kind: str
    state: str
    phase: str | None
    done: float
    total: float
    eta_s: float | None


class JobView(JobLine):
    elapsed_s: float | None
    loss: float | None
    eval_loss: float | None
    tokens_per_s: float | None
    peak_gib: float | None
    alerts: list[Alert]
    shape: dict[str, Any]
    plan: dict[str, Any]
    metrics: dict[str, Any]
    loss_curve: list[tuple[int, float]]
    eval_curve: list[tuple[int, float]]
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    events: list[str]
    log: str


class Status(Result):
    job: JobView | None = None
    jobs: list[JobLine] = Field(default_factory=list[JobLine])
    poll_after_s: float | None = None
    problem: str | None = None


async def get_status(
    ctx: AppContext,
    job_id: Annotated[str | None, Field(description="Id or unique prefix; none: an overview of the last 20.")] = None,
    wait_s: Annotated[float, Field(ge=0, le=MAX_WAIT_S, description="Wait so long for the job to end.")] = 0,
    detail: Annotated[Literal["concise", "detailed", "image"], Field(description="image: the curves drawn too.")] = (
        "concise"
    ),
) -> Annotated[CallToolResult, Status]:
    """Where a job is: state, ETA, loss curve, alerts with advice, plan against reality, events, result or failure."""
    workspace = workspace_of(ctx)
    hindered = await look_after(workspace)
    problem = hindered and f"A job's worker has ended. {hindered.what} {hindered.allowed}"
    if job_id is None:
        return _answer(await _overview(ctx, workspace, wait_s, problem))
    row = await wait_for(ctx, workspace, job_id, wait_s)
    # In a thread: a long run has thousands of steps, and others are served meanwhile.
    told = await anyio.to_thread.run_sync(partial(status.describe, workspace, row, events=EVENTS[detail]))
    view = JobView(**told)
    poll_after_s = None if row["state"] not in jobs.ACTIVE else round(min(30.0, max(2.0, (view.eta_s or 20) / 4)), 1)
    found = Status(job=view, next_steps=_next(workspace, row), poll_after_s=poll_after_s, problem=problem)
    if detail != "image":
        return _answer(found)
    png = await anyio.to_thread.run_sync(partial(plots.loss_png, workspace, row["id"]))
    return _answer(found, Image(data=png, format="png").to_image_content())


async def _overview(ctx: AppContext, workspace: Workspace, wait_s: float, problem: str | None) -> Status:
    """The newest jobs, after the first of them that is active has ended or `wait_s` have passed."""
    rows = jobs.newest(workspace)
    first = next((row["id"] for row in rows if row["state"] in jobs.ACTIVE), None)
    if first and wait_s:
        await wait_for(ctx, workspace, first, wait_s)
        rows = jobs.newest(workspace)
    active = [row["id"] for row in rows if row["state"] in jobs.ACTIVE]
    steps = [step("get_status", "Follow this one.", job_id=job_id, wait_s=MAX_WAIT_S) for job_id in active[:3]]
    return Status(
        jobs=[JobLine(**status.summarise(row)) for row in rows], next_steps=steps or [_begin(workspace)],
        poll_after_s=OVERVIEW_POLL_S if active else None, problem=problem,
    )  # fmt: skip


def _answer(found: Status, *pictures: ContentBlock) -> CallToolResult:
    return CallToolResult(content=list(pictures), structured_content=found.model_dump(mode="json"))


def _begin(workspace: Workspace) -> NextStep:
    datasets = workspace.store.artifacts("dataset", limit=1)
    if datasets:
        model = environment.suggested_model()
        return step("plan_finetune", "How to train on the newest.", dataset_id=datasets[0]["id"], model=model)
    return step("prepare_dataset", "Begin with data.", source="PATH")


def _next(workspace: Workspace, row: Row) -> list[NextStep]:
    """What makes sense now, by state and by what the job made."""
    job_id, result = row["id"], row["result"] or {}
    if row["state"] in jobs.ACTIVE:
        return [
            step("get_status", "Look again.", job_id=job_id, wait_s=MAX_WAIT_S),
            step("cancel_job", "Stop it, keeping a checkpoint.", job_id=job_id),
        ]
    if row["state"] in jobs.RESUMABLE:
        again = step("resume_job", f"It goes on {jobs.start_point(workspace, row)}.", job_id=job_id)
        # A source that was refused would be again.
        is_refused = row["kind"] == "prepare_dataset" and row["state"] == jobs.State.FAILED
        return [
            *([] if is_refused or jobs.deleted_input(workspace, job_id) else [again]),
            step("get_status", "See all events.", job_id=job_id, detail="detailed"),
        ]
    if "adapter_id" in result and row["kind"] == "finetune":
        adapter_id = result["adapter_id"]
        return [
            step(
                "chat_with_adapter", "Hear tuned and base side by side.", adapter_id=adapter_id, prompt="Who are you?",
                compare_with_base=True,
            ),
            step("validate_adapter", "Is it better, and by how much?", adapter_id=adapter_id),
            step("merge_and_export", "Merge and convert to GGUF.", adapter_id=adapter_id),
        ]  # fmt: skip
    if row["kind"] in ("validate", "benchmark"):
        return _after_evaluation(row, result)
    if "export_id" in result and row["kind"] == "export":
        return _after_export(row, result)
    if "dataset_id" in result and row["kind"] != "finetune":
        dataset_id = result["dataset_id"]
        return [step("inspect_dataset", "Look at its rows and its report.", dataset_id=dataset_id)]
    return [step("list_artifacts", "See what there is.")]


def _after_evaluation(row: Row, result: dict[str, Any]) -> list[NextStep]:
    judge = step("submit_judgements", "Judge pairs of its answers blindly yourself.", job_id=row["id"])
    export = step("merge_and_export", "Good enough? Merge and convert it.", adapter_id=result["adapter_id"])
    return [*([judge] if result.get("pairs") else []), export]


def _after_export(row: Row, result: dict[str, Any]) -> list[NextStep]:
    """To Ollama what passed; where nothing did, or nothing is a GGUF, what can be done instead."""
    parity: dict[str, Any] = result["parity"]
    outputs: list[str] = [entry["output"] for entry in result["files"]]
    force = {"force": True} if gate.is_for(outputs) and not parity else {}
    to_ollama = partial(step, "publish_to_ollama", export_id=result["export_id"], model_name="my-model", dry_run=True)
    if parity.get("failures"):
        why = "It is not what was trained: see all that failed."
        failed = step("get_status", why, job_id=row["id"], detail="detailed")
        passed = (parity.get("recommendation") or {}).get("output")
        return [failed, *([to_ollama(why="This one passed.", output=passed)] if passed else [])]
    unverified = "Unverified, so by force alone: " if force else ""
    if any(is_gguf(output) for output in outputs):
        return [to_ollama(why=f"{unverified}Look at the Modelfile first.", **force)]
    hub = {"artifact_id": result["export_id"], "repo_id": "your-name/your-model", "dry_run": True, **force}
    return [step("publish_to_hub", f"{unverified}Look at the model card first.", **hub)]


def register(server: TunewrightServer) -> None:
    """Adds this tool to the server."""
    look = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    server.tool(title="Get a job's status", annotations=look, meta=VIEW)(get_status)

"""publish_to_ollama and publish_to_hub: outward acts, so each can be looked at first and must be confirmed."""

from typing import Annotated, Any

import anyio.to_thread
from mcp.types import ToolAnnotations
from pydantic import Field

from tunewright.pipeline import jobs
from tunewright.pipeline.errors import Conflict, call
from tunewright.pipeline.workspace import Workspace
from tunewright.tools.framework import AppContext, Result, TunewrightServer, step, workspace_of
from tunewright.tools.training import follow
from tunewright.tools.waiting import outcome

ModelName = Annotated[
    str, Field(min_length=1, max_length=200, description="Ollama name, e.g. support or me/support:v1.")
]
RepoId = Annotated[str, Field(min_length=1, max_length=200, description="owner/name on the Hub.")]
DryRun = Annotated[bool, Field(description="Show exactly what would be done; do nothing.")]
Confirm = Annotated[bool, Field(description="True only after the user has agreed.")]


class Published(Result):
    """`plan` is the dry run's answer; `publication` what was done, or None while the job goes on."""

    job_id: str | None = None
    state: str
    plan: dict[str, Any] | None = None
    publication: dict[str, Any] | None = None


async def publish_to_ollama(
    ctx: AppContext,
    export_id: Annotated[str, Field(description="From merge_and_export; holds a GGUF.")],
    model_name: ModelName,
    system: Annotated[str | None, Field(max_length=50_000, description="System prompt built into the model.")] = None,
    parameters: Annotated[
        dict[str, Any] | None, Field(description="Modelfile PARAMETERs, e.g. temperature, top_p, num_ctx, stop.")
    ] = None,
    push: Annotated[bool, Field(description="Also push it to Ollama's registry.")] = False,
    overwrite: bool = False,
    dry_run: DryRun = False,
    confirm: Confirm = False,
) -> Published:
    """Puts a GGUF into Ollama with template, stop tokens and sampling as trained, and checks that it answers there."""
    from tunewright.pipeline.publishing import ollama

    workspace = workspace_of(ctx)
    plan = await anyio.to_thread.run_sync(
        lambda: ollama.prepare(workspace, export_id, model_name, system, parameters, overwrite, push)
    )
    spec = {
        "export_id": plan["export_id"], "model_name": model_name, "system": system, "parameters": parameters,
        "push": push, "overwrite": overwrite,
    }  # fmt: skip
    given = {key: value for key, value in spec.items() if value not in (None, False)}
    if dry_run:
        why = "Do it, once the user agrees." if push else "Do it."
        return Published(
            state="dry run", plan=plan,
            next_steps=[step("publish_to_ollama", why, **given, **({"confirm": True} if push else {}))],
        )  # fmt: skip
    if push and not confirm:
        raise _unconfirmed(f"Pushing {model_name} makes it public", "publish_to_ollama", given)
    return await _publish(ctx, workspace, "publish_ollama", model_name, spec)


async def publish_to_hub(
    ctx: AppContext,
    artifact_id: Annotated[str, Field(description="An adapter or an export.")],
    repo_id: RepoId,
    private: bool = True,
    overwrite: bool = False,
    dry_run: DryRun = False,
    confirm: Confirm = False,
) -> Published:
    """Uploads an adapter or export with a model card to the Hugging Face Hub; private unless told otherwise.

    The token comes from HF_TOKEN or the Hub's own login, never from an argument. The dataset is never uploaded.
    """
    from tunewright.pipeline.publishing import hub

    workspace = workspace_of(ctx)
    plan = await anyio.to_thread.run_sync(lambda: hub.prepare(workspace, artifact_id, repo_id, private, overwrite))
    spec = {"artifact_id": plan["artifact_id"], "repo_id": repo_id, "private": private, "overwrite": overwrite}
    if dry_run:
        return Published(
            state="dry run", plan=plan,
            next_steps=[step("publish_to_hub", "Do it, once the user agrees.", **spec, confirm=True)],
        )  # fmt: skip
    if not confirm:
        raise _unconfirmed(f"Uploading {plan['artifact_id']} to {plan['url']} sends it out", "publish_to_hub", spec)
    return await _publish(ctx, workspace, "publish_hub", repo_id, spec)


def _unconfirmed(what: str, tool: str, spec: dict[str, Any]) -> Conflict:
    return Conflict(
        "not_confirmed", f"{what}, and confirm was not set.",
        allowed="Ask the user; dry_run=true shows what would be sent.",
        next=call(tool, **spec, confirm=True), done="Nothing was sent.",
    )  # fmt: skip


async def _publish(ctx: AppContext, workspace: Workspace, kind: str, name: str, spec: dict[str, Any]) -> Published:
    job = jobs.submit(workspace, kind, name, spec, needs_device=False)
    row = await outcome(ctx, workspace, job["id"])
    steps = [step("list_artifacts", "See what is published.", kind="publication")]
    if row["state"] in jobs.ACTIVE:
        steps = [follow(row["id"])]
    return Published(job_id=row["id"], state=row["state"], publication=row["result"], next_steps=steps)


def register(server: TunewrightServer) -> None:
    """Adds these tools to the server."""
    outward = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=False, open_world_hint=True)
    server.tool(title="Publish to Ollama", annotations=outward)(publish_to_ollama)
    server.tool(title="Publish to the Hugging Face Hub", annotations=outward)(publish_to_hub)

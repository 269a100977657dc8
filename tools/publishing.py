"""publish_to_ollama and publish_to_hub: outward acts, so each can be looked at first and must be agreed to."""

from typing import Annotated, Any, Literal

from mcp.server.mcpserver import Elicit, Resolve
from mcp.types import ToolAnnotations
from pydantic import Field

from tunewright.pipeline import jobs
from tunewright.pipeline.errors import call
from tunewright.pipeline.workspace import Workspace
from tunewright.tools import agreement
from tunewright.tools.agreement import Agreement
from tunewright.tools.framework import AppContext, Result, TunewrightServer, run_apart, step, workspace_of
from tunewright.tools.training import follow
from tunewright.tools.waiting import outcome

ModelName = Annotated[
    str, Field(min_length=1, max_length=200, description="Ollama name, e.g. support or me/support:v1.")
]
RepoId = Annotated[str, Field(min_length=1, max_length=200, description="owner/name on the Hub.")]
DryRun = Annotated[bool, Field(description="Show what would be done; do nothing.")]
Confirm = Annotated[bool, Field(description="True only after the user has agreed.")]
Force = Annotated[bool, Field(description="Although its parity failed or is unknown.")]
Preset = Literal["assistant", "retrieval", "deterministic", "creative"]


class Published(Result):
    """`plan` is the dry run's answer; `publication` what was done, or None while the job goes on."""

    job_id: str | None = None
    state: str
    plan: dict[str, Any] | None = None
    publication: dict[str, Any] | None = None


Plan = dict[str, Any]


async def _ollama_plan(
    ctx: AppContext, export_id: str, model_name: str, output: str | None, preset: str, system: str | None,
    parameters: dict[str, Any] | None, push: bool, overwrite: bool, force: bool,
) -> Plan:  # fmt: skip
    from tunewright.pipeline.publishing import ollama

    workspace = workspace_of(ctx)
    return await run_apart(
        lambda: ollama.prepare(
            workspace, export_id, model_name, output=output, preset=preset, system=system, parameters=parameters,
            overwrite=overwrite, push=push, force=force,
        )
    )  # fmt: skip


def _ollama_question(plan: Plan) -> str:
    """What the user must know before a push, or before a model goes out although it is not what was trained."""
    name, questions = plan["model_name"], list[str]()
    if plan["arguments"].get("push"):
        questions.append(f"Push {name} to its registry, where others can read it?")
    if plan["forced"]:
        questions.append(f"Publish {name} although {'; '.join(plan['forced'])}?")
    return " ".join(questions)


async def _may_go_to_ollama(
    ctx: AppContext, plan: Annotated[Plan, Resolve(_ollama_plan)], dry_run: bool, confirm: bool
) -> Agreement | Elicit[Agreement]:
    question = _ollama_question(plan)
    retry = call("publish_to_ollama", **plan["arguments"], confirm=True)
    return agreement.ask(ctx, question, confirmed=confirm or dry_run or not question, retry=retry)


async def publish_to_ollama(
    ctx: AppContext,
    plan: Annotated[Plan, Resolve(_ollama_plan)],
    agreed: Annotated[agreement.Answer, Resolve(_may_go_to_ollama)],
    export_id: Annotated[str, Field(description="From merge_and_export; holds a GGUF.")],
    model_name: ModelName,
    output: Annotated[str | None, Field(description="Which, e.g. gguf:q4_k_m; default: the recommended one.")] = None,
    preset: Annotated[
        Preset, Field(description="retrieval: answers from the given context only, cool.")
    ] = "assistant",
    system: Annotated[str | None, Field(max_length=50_000, description="System prompt built into the model.")] = None,
    parameters: Annotated[
        dict[str, Any] | None, Field(description="Modelfile PARAMETERs, e.g. temperature, top_p, num_ctx, stop.")
    ] = None,
    push: Annotated[bool, Field(description="Also push it to Ollama's registry.")] = False,
    overwrite: bool = False,
    force: Force = False,
    dry_run: DryRun = False,
    confirm: Confirm = False,
) -> Published:  # fmt: skip
    """Puts a GGUF into Ollama with template, stop tokens and sampling as trained, and checks there that it answers as
    the trained model does; what differs is removed again.
    """
    spec = {
        "export_id": plan["export_id"], "model_name": model_name, "output": output, "preset": preset,
        "system": system, "parameters": parameters, "push": push, "overwrite": overwrite, "force": force,
    }  # fmt: skip
    if dry_run:
        asks = bool(_ollama_question(plan))
        why = (
            "Do it, once the user agrees."
            if plan["server"]["version"]
            else "Once an Ollama server runs and the user agrees."
        )
        again = step("publish_to_ollama", why, **plan["arguments"], **({"confirm": True} if asks else {}))
        return Published(state="dry run", plan=plan, next_steps=[again])
    agreement.require(agreed, _ollama_question(plan))
    return await _publish(ctx, workspace_of(ctx), "publish_ollama", model_name, spec)


async def _hub_plan(
    ctx: AppContext, artifact_id: str, repo_id: str, outputs: list[str] | None, private: bool, overwrite: bool,
    force: bool,
) -> Plan:  # fmt: skip
    from tunewright.pipeline.publishing import hub

    workspace = workspace_of(ctx)
    return await run_apart(
        lambda: hub.prepare(
            workspace, artifact_id, repo_id, outputs=outputs, private=private, overwrite=overwrite, force=force
        )
    )


def _upload_question(plan: Plan) -> str:
    who = "private" if plan["private"] else "for everybody to read"
    return f"Upload {plan['artifact_id']} ({plan['bytes'] / 1e6:,.1f} MB) to {plan['url']}, {who}?"


async def _may_upload(
    ctx: AppContext, plan: Annotated[Plan, Resolve(_hub_plan)], dry_run: bool, confirm: bool
) -> Agreement | Elicit[Agreement]:
    retry = call("publish_to_hub", **plan["arguments"], confirm=True)
    return agreement.ask(ctx, _upload_question(plan), confirmed=confirm or dry_run, retry=retry)


async def publish_to_hub(
    ctx: AppContext,
    plan: Annotated[Plan, Resolve(_hub_plan)],
    agreed: Annotated[agreement.Answer, Resolve(_may_upload)],
    artifact_id: Annotated[str, Field(description="An adapter or an export.")],
    repo_id: RepoId,
    outputs: Annotated[list[str] | None, Field(description="Of an export only these, e.g. gguf:q8_0.")] = None,
    private: bool = True,
    overwrite: bool = False,
    force: Force = False,
    dry_run: DryRun = False,
    confirm: Confirm = False,
) -> Published:
    """Uploads an adapter or export with a model card to the Hugging Face Hub; private unless told otherwise.

    The token comes from HF_TOKEN or the Hub's own login, never from an argument. The dataset is never uploaded.
    """
    spec = {
        "artifact_id": plan["artifact_id"], "repo_id": repo_id, "outputs": outputs, "private": private,
        "overwrite": overwrite, "force": force,
    }  # fmt: skip
    if dry_run:
        again = step("publish_to_hub", "Do it, once the user agrees.", **plan["arguments"], confirm=True)
        return Published(state="dry run", plan=plan, next_steps=[again])
    agreement.require(agreed, _upload_question(plan))
    return await _publish(ctx, workspace_of(ctx), "publish_hub", repo_id, spec)


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

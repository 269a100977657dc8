"""list_artifacts and delete_artifact."""

import time
from typing import Annotated, Any, Literal

from mcp.types import ToolAnnotations
from pydantic import BaseModel, Field

from tunewright.pipeline import artifacts
from tunewright.pipeline.exporting.outputs import is_gguf
from tunewright.pipeline.workspace import Workspace
from tunewright.tools.framework import AppContext, NextStep, Result, TunewrightServer, step, workspace_of

Kind = Literal["dataset", "job", "adapter", "export", "publication"]


class ArtifactLine(BaseModel):
    id: str
    kind: str
    name: str
    created: str
    state: str


class Artifacts(Result):
    artifacts: list[ArtifactLine]
    page: int
    more: bool


class Deleted(Result):
    deleted: str
    freed_bytes: int


def list_artifacts(
    ctx: AppContext,
    kind: Annotated[Kind | None, Field(description="Only these.")] = None,
    page: Annotated[int, Field(ge=1, le=100_000)] = 1,
) -> Artifacts:
    """Datasets, jobs, adapters, exports and publications, newest first, 20 a page."""
    rows, more = artifacts.page(workspace_of(ctx), kind, page)
    lines = [
        ArtifactLine(
            id=row["id"], kind=row["kind"], name=row["name"], state=row["state"],
            created=time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["created_at"])),
        )
        for row in rows
    ]  # fmt: skip
    following: dict[str, Any] = {"page": page + 1} | ({"kind": kind} if kind else {})
    steps = [_look(workspace_of(ctx), line) for line in lines[:1]]
    if more:
        steps.append(step("list_artifacts", "The next page.", **following))
    return Artifacts(artifacts=lines, page=page, more=more, next_steps=steps)


def _look(workspace: Workspace, line: ArtifactLine) -> NextStep:
    match line.kind:
        case "dataset":
            return step("inspect_dataset", "Look at its rows.", dataset_id=line.id)
        case "job":
            return step("get_status", "How it went.", job_id=line.id)
        case "adapter":
            return step("chat_with_adapter", "Hear it.", adapter_id=line.id, prompt="Who are you?")
        case "publication":
            return step("list_artifacts", "What can be published.", kind="export")
        case _:
            files = workspace.store.artifact(line.id)["document"].get("files", [])
            if any(is_gguf(file["output"]) for file in files):
                return step("publish_to_ollama", "Look first.", export_id=line.id, model_name="my-model", dry_run=True)
            hub = {"artifact_id": line.id, "repo_id": "your-name/your-model", "dry_run": True}
            return step("publish_to_hub", "Look first.", **hub)


def delete_artifact(
    ctx: AppContext,
    artifact_id: Annotated[str, Field(min_length=1, description="Any id of list_artifacts.")],
    confirm: Annotated[bool, Field(description="True only after the user has agreed.")] = False,
) -> Deleted:
    """Deletes a dataset, adapter, export, publication note or ended job with its files, unless something needs it."""
    deleted, freed = artifacts.delete(workspace_of(ctx), artifact_id, confirm=confirm)
    return Deleted(deleted=deleted, freed_bytes=freed, next_steps=[step("list_artifacts", "See what is left.")])


def register(server: TunewrightServer) -> None:
    """Adds these tools to the server."""
    look = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    server.tool(title="List artifacts", annotations=look)(list_artifacts)
    deletes = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)
    server.tool(title="Delete an artifact", annotations=deletes)(delete_artifact)

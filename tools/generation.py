"""generate_examples: another model writes training examples from documents."""

from typing import Annotated, Any

from mcp.types import ToolAnnotations
from pydantic import Field

from tunewright.pipeline import jobs
from tunewright.pipeline.generation import request
from tunewright.pipeline.generation.request import GenerationArguments
from tunewright.tools.framework import AppContext, TunewrightServer, apart, with_arguments, workspace_of
from tunewright.tools.training import Started, follow


@with_arguments(GenerationArguments)
def generate_examples(
    ctx: AppContext,
    source: Annotated[str, Field(description="File, folder, glob.")],
    model: str,
    endpoint: Annotated[str, Field(description="ollama or an OpenAI-compatible URL.")] = "ollama",
    name: Annotated[str | None, Field(max_length=64)] = None,
    confirm: Annotated[bool, Field(description="User agreed to send documents out.")] = False,
    **arguments: Any,
) -> Started:
    """Starts a job: another model writes a dataset of examples from documents, each checked against its text."""
    workspace, chosen = workspace_of(ctx), GenerationArguments(**arguments)
    spec = request.check(workspace, source, endpoint, model, name, chosen, confirm=confirm)
    row = jobs.submit(workspace, "generate_examples", spec["name"], spec, needs_device=False)
    return Started(job_id=row["id"], state=row["state"], arguments=spec, next_steps=[follow(row["id"])])


def register(server: TunewrightServer) -> None:
    """Adds this tool to the server."""
    starts = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=True)
    server.tool(title="Generate examples", annotations=starts)(apart(generate_examples))

"""merge_and_export."""

from typing import Annotated

from mcp.types import ToolAnnotations
from pydantic import Field

from tunewright.pipeline import jobs
from tunewright.pipeline.exporting import request
from tunewright.tools.framework import AppContext, TunewrightServer, workspace_of
from tunewright.tools.training import JobState, follow


def merge_and_export(
    ctx: AppContext,
    adapter_id: Annotated[str, Field(description="From start_finetune's job; id or unique prefix.")],
    outputs: Annotated[
        list[str] | None,
        Field(
            min_length=1, max_length=8,
            description="lora, merged_16bit, gguf:f16, gguf:bf16, gguf:q8_0. Default: merged_16bit and gguf:q8_0.",
        ),
    ] = None,
    adapter_scale: Annotated[
        float, Field(gt=0, le=request.MAX_SCALE, description="Below 1 weakens the adapter; 0.5 cures overfitting.")
    ] = 1.0,
    verify: Annotated[bool, Field(description="Load each GGUF; compare its tokens and prompts.")] = True,
) -> JobState:  # fmt: skip
    """Merges an adapter into its 16-bit base and converts it to GGUF by llama.cpp's own converter; a job."""
    workspace = workspace_of(ctx)
    spec = request.check(
        workspace, adapter_id, outputs or ["merged_16bit", "gguf:q8_0"], adapter_scale=adapter_scale, verify=verify
    )
    row = jobs.submit(workspace, "export", spec["name"], spec, needs_device=True)
    return JobState(job_id=row["id"], state=row["state"], next_steps=[follow(row["id"])])


def register(server: TunewrightServer) -> None:
    """Adds this tool to the server."""
    starts = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=True)
    server.tool(title="Merge and export", annotations=starts)(merge_and_export)

"""merge_and_export."""

from typing import Annotated

from mcp.types import ToolAnnotations
from pydantic import Field

from tunewright.pipeline import jobs
from tunewright.pipeline.exporting import request
from tunewright.pipeline.exporting.outputs import Combination
from tunewright.tools.framework import AppContext, TunewrightServer, apart, workspace_of
from tunewright.tools.training import JobState, follow


def merge_and_export(
    ctx: AppContext,
    adapter_id: Annotated[str, Field(description="From start_finetune's job; id or unique prefix.")],
    outputs: Annotated[
        list[str] | None,
        Field(
            min_length=1, max_length=16,
            description="lora, lora_gguf, merged_16bit, merged_4bit, gguf:TYPE (f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m, "
            "q4_k_s, q4_0, q3_k_m). Default: merged_16bit and gguf:q8_0.",
        ),
    ] = None,
    adapter_scale: Annotated[
        float, Field(gt=0, le=request.MAX_SCALE, description="Below 1 weakens the adapter; 0.5 cures overfitting.")
    ] = 1.0,
    combine_with: Annotated[
        dict[str, float] | None,
        Field(max_length=8, description="More adapters of the same base: id to weight; adapter_scale is the first's."),
    ] = None,
    combination: Annotated[Combination | None, Field(description="PEFT's method; default cat.")] = None,
    verify: Annotated[bool, Field(description="Measure each against the trained model.")] = True,
) -> JobState:  # fmt: skip
    """Merges an adapter into its 16-bit base, converts and quantizes it, and measures that it still is the trained
    model; what is not cannot be published. A job.
    """
    workspace = workspace_of(ctx)
    spec = request.check(
        workspace, adapter_id, outputs or list(request.USUAL), adapter_scale=adapter_scale, combine_with=combine_with,
        combination=combination, verify=verify,
    )  # fmt: skip
    row = jobs.submit(workspace, "export", spec["name"], spec, needs_device=True)
    return JobState(job_id=row["id"], state=row["state"], next_steps=[follow(row["id"])])


def register(server: TunewrightServer) -> None:
    """Adds this tool to the server."""
    starts = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=True)
    server.tool(title="Merge and export", annotations=starts)(apart(merge_and_export))

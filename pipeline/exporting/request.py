"""From a request to the specification of an export: everything checked that can be without torch. Light."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunewright.pipeline.errors import InvalidInput, NotFound, call
from tunewright.pipeline.workspace import Workspace

LORA, MERGED = "lora", "merged_16bit"
GGUF_OUTPUTS = ("gguf:f16", "gguf:bf16", "gguf:q8_0")
OUTPUTS = (LORA, MERGED, *GGUF_OUTPUTS)
MAX_SCALE = 4.0


def check(
    workspace: Workspace,
    adapter_id: str,
    outputs: Sequence[str],
    *,
    adapter_scale: float = 1.0,
    verify: bool = True,
    name: str | None = None,
) -> dict[str, Any]:
    """The spec of an `export` job. Raises InvalidInput or NotFound; starts nothing."""
    adapter = workspace.store.artifact(adapter_id, "adapter")
    folder = Path(adapter["document"]["path"])
    whole = adapter["document"].get("form") == "full"
    if not any(folder.glob("model*.safetensors" if whole else "adapter_model.safetensors")):
        raise NotFound(
            "adapter_missing",
            f"The weights of {adapter['id']} are not at {folder} any more.",
            allowed="Another adapter, or the training run again.",
            next=call("list_artifacts", kind="adapter"),
        )
    unknown = [output for output in outputs if output not in OUTPUTS]
    if unknown or not outputs:
        wrong = f"{unknown[0]!r} is no output" if unknown else "nothing is asked for"
        raise InvalidInput(
            "unknown_output",
            f"outputs={list(outputs)!r}: {wrong}.",
            allowed=f"Allowed: {', '.join(OUTPUTS)}. K-quants (Q4_K_M, …) are made by Ollama, from gguf:f16 or bf16.",
            next=call("merge_and_export", adapter_id=adapter["id"], outputs=[MERGED, "gguf:q8_0"]),
        )
    if whole and (LORA in outputs or adapter_scale != 1.0):
        raise InvalidInput(
            "not_an_adapter",
            f"{adapter['id']} was trained as a whole model: it has no LoRA to export by itself or to scale.",
            allowed=f"{MERGED} and GGUF files, with adapter_scale=1.0.",
            next=call("merge_and_export", adapter_id=adapter["id"], outputs=[MERGED, "gguf:q8_0"]),
        )
    if not (math.isfinite(adapter_scale) and 0 < adapter_scale <= MAX_SCALE):
        raise InvalidInput(
            "bad_adapter_scale",
            f"adapter_scale={adapter_scale!r}.",
            allowed=f"Above 0, up to {MAX_SCALE:g}; 1.0 is what was trained.",
            next=call("merge_and_export", adapter_id=adapter["id"], outputs=list(outputs)),
        )
    return {
        "adapter_id": adapter["id"],
        # In one order, each once.
        "outputs": [output for output in OUTPUTS if output in outputs],
        "adapter_scale": float(adapter_scale),
        "verify": verify,
        "name": name or adapter["name"],
    }

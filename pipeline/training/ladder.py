"""What a run that ran out of memory tries next, one rung at a time. Light.

Every rung keeps the effective batch, so that the run learns the same: a smaller micro-batch, then gradient
checkpointing, then Unsloth's offloaded one, then a 4-bit base.
"""

from typing import Any

from tunewright.pipeline.training.arguments import Method

Arguments = dict[str, Any]
# KTO's loss compares each answer with another of its micro-batch.
SMALLEST_BATCH = {"kto": 2}


def next_rung(arguments: Arguments, method: Method, *, on_gpu: bool) -> tuple[Arguments, str] | None:
    """The arguments to change and the change in words; None at the bottom."""
    batch, accumulation = int(arguments["batch_size"]), int(arguments["gradient_accumulation"])
    effective = batch * accumulation
    smaller = [b for b in range(SMALLEST_BATCH.get(method, 1), batch // 2 + 1) if effective % b == 0]
    if smaller:
        changes = {"batch_size": smaller[-1], "gradient_accumulation": effective // smaller[-1]}
        return changes, f"micro-batch {batch} → {smaller[-1]}, accumulation {accumulation} → {effective // smaller[-1]}"
    if arguments["gradient_checkpointing"] == "none":
        return {"gradient_checkpointing": "plain"}, "gradient checkpointing on"
    if not on_gpu:
        return None
    if arguments["gradient_checkpointing"] == "plain":
        return {"gradient_checkpointing": "unsloth"}, "checkpoints offloaded to host memory (Unsloth's)"
    is_quantized = arguments["load_in_4bit"]
    if arguments["finetuning_type"] == "lora" and not is_quantized and not arguments["use_loftq"]:
        return {"load_in_4bit": True, "load_in_8bit": False}, "base model in 4 bits (QLoRA)"
    return None

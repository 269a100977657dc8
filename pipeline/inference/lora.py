"""Plain LoRA read from an adapter's folder, without PEFT: W x + scale · B A x on linear layers. Heavy (torch)."""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tunewright.pipeline import files

PREFIX = "base_model.model."
# Keys of adapter_config.json which, where they hold something, say that the adapter is more.
MORE = (
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "modules_to_save", "trainable_token_indices",
    "target_parameters", "layer_replication", "alora_invocation_tokens", "arrow_config", "kasa_config",
    "velora_config", "monteclora_config", "fan_in_fan_out", "rank_pattern", "alpha_pattern",
)  # fmt: skip
# These began from base weights that were changed first, which PEFT does again when it loads them.
CHANGES_BASE = ("pissa", "olora", "corda")
# By the layer's path in the model: A (rank, inputs), and B with its scale (outputs, rank).
Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]


def read(folder: Path, model: Any) -> Pairs | None:
    """The adapter in `folder` in the type and on the device of `model`, or None where it is more than plain LoRA."""
    config = files.read_json(folder / "adapter_config.json")
    file = folder / "adapter_model.safetensors"
    start = str(config.get("init_lora_weights", True)).lower()
    more = any(config.get(key) for key in MORE) or config.get("bias", "none") != "none"
    if config.get("peft_type") != "LORA" or more or start.startswith(CHANGES_BASE) or not file.is_file():
        return None
    tensors = load_file(file, device=str(model.device))
    paths = {key.removeprefix(PREFIX).rsplit(".lora_", 1)[0] for key in tensors}
    layers = dict(model.named_modules())
    pairs: Pairs = {}
    for path in paths:
        a, b = (tensors.pop(f"{PREFIX}{path}.lora_{part}.weight", None) for part in "AB")
        if a is None or b is None or not isinstance(layers.get(path), torch.nn.Linear):
            return None
        scale = config["lora_alpha"] / (math.sqrt(len(a)) if config.get("use_rslora") else len(a))
        pairs[path] = (a.to(model.dtype), (b.float() * scale).to(model.dtype))
    return None if tensors else pairs

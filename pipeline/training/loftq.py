"""LoftQ: an adapter that begins as the error of its base's quantization instead of as nothing (Li et al. 2023).

One iteration, as the quantized weights Q are bitsandbytes' and stay: s·B A is the best rank-r approximation of W − Q.
The adapter therefore belongs to Q: it is run on the 4-bit base, and merged into Q (exporting/lora.py), not into W.
peft's own way changes a 16-bit base, or takes a full SVD of every matrix and leaves the scale s out. Heavy.
"""

from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors import safe_open

from tunewright.pipeline import files
from tunewright.pipeline.errors import InvalidInput

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# In peft's own words, and where its loader ignores them: `init_lora_weights` would quantize again on loading.
MARK = {"loftq_bits": 4, "loftq_iter": 1}
PREFIX = "base_model.model."
# Of the randomized SVD; its error against the full one is then under a hundredth of the error that is left.
EXTRA_RANK, POWER_ITERATIONS = 16, 4


@torch.no_grad()
def initialize(model: Any, weights: Path) -> None:
    """Sets A and B of each adapted 4-bit layer of the PeftModel `model`, from the unquantized `weights` (a folder).

    Raises InvalidInput where no layer is 4 bits wide, or `weights` lacks one by its name.
    """
    files_by_name = _files_by_name(weights)
    layers = [
        (name.removeprefix(PREFIX) + ".weight", module)
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and hasattr(module.get_base_layer().weight, "quant_state")
    ]
    missing = next((name for name, _ in layers if name not in files_by_name), None)
    if missing or not layers:
        raise InvalidInput(
            "loftq_needs_unquantized_weights",
            f"use_loftq=true, but {f'the base has no {missing!r} in 16 bits' if missing else 'no layer has 4 bits'}.",
            allowed="LoftQ takes a 16-bit model with load_in_4bit=true.",
            next="start_finetune(…) without use_loftq", done="Nothing was trained.",
        )  # fmt: skip
    for name, layer in layers:
        with safe_open(weights / files_by_name[name], framework="pt") as file:
            _set(layer, file.get_tensor(name))
    model.peft_config["default"].loftq_config = MARK


def _set(layer: Any, weight: torch.Tensor) -> None:
    from bitsandbytes.functional import dequantize_4bit

    base, a, b = layer.get_base_layer().weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight
    seen = dequantize_4bit(base.data, base.quant_state).float()
    error = (weight.to(seen.device).float() - seen) / layer.scaling["default"]
    rank = min(len(a), *error.shape)
    u, s, v = torch.svd_lowrank(error, q=min(rank + EXTRA_RANK, *error.shape), niter=POWER_ITERATIONS)
    root = s[:rank].sqrt()
    a.zero_()
    b.zero_()
    a[:rank].copy_((v[:, :rank] * root).T)
    b[:, :rank].copy_(u[:, :rank] * root)


def _files_by_name(folder: Path) -> dict[str, str]:
    if (folder / INDEX).is_file():
        return files.read_json(folder / INDEX)["weight_map"]
    with safe_open(folder / SINGLE, framework="pt") as file:
        return dict.fromkeys(file.keys(), SINGLE)

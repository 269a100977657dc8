"""A PEFT adapter read as changes to named tensors of its base. Runs in a worker; needs torch, not peft.

Guarantees: every tensor of the adapter is understood or the adapter is refused; nothing is left out silently.
Formula: W' = W + scale · B A with scale = alpha / r, or alpha / sqrt(r) with rsLoRA (Hu 2021; Kalajdzievski 2023).
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tunewright.pipeline import files
from tunewright.pipeline.errors import InvalidInput

PREFIX = "base_model.model."
PART = re.compile(r"^(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B)$")
# What changes the formula or the base itself; each is a key of adapter_config.json.
NOT_MERGED = (
    "use_dora",
    "use_qalora",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
)
# These begin from base weights that were changed first, and the changed weights are not in the adapter.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True)
class LowRank:
    """A product to be added to one tensor: `a` (r, in) and `b` (out, r); `transposed` where the tensor is (in, out)."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.b.shape[0], self.a.shape[1]
        return (columns, rows) if self.transposed else (rows, columns)

    def added_to(self, weight: torch.Tensor, device: str) -> torch.Tensor:
        """`weight` + scale · B A, computed in float32 on `device`; returned on the CPU in the weight's own dtype."""
        b, a = self.b.to(device, torch.float32), self.a.to(device, torch.float32)
        change = (b @ a).mul_(self.scale)
        merged = weight.to(device, torch.float32) + (change.T if self.transposed else change)
        return merged.to(weight.dtype).cpu()


@dataclass(frozen=True)
class Adapter:
    """`replaced`: tensors stored as a whole, by name. `added`: products by the name of the tensor they are added to."""

    added: dict[str, LowRank]
    replaced: dict[str, torch.Tensor]


def read(folder: Path, base_tensors: Iterable[str], *, adapter_scale: float, tied: bool) -> Adapter:
    """The adapter in `folder` as changes to `base_tensors` (names). Raises InvalidInput for what cannot be merged.

    `tied` says that the base's output layer is its embedding: changing one would silently change the other.
    """
    config = files.read_json(folder / "adapter_config.json")
    _require_plain_lora(config)
    known = set(base_tensors)
    parts: dict[str, dict[str, torch.Tensor]] = {}
    replaced: dict[str, torch.Tensor] = {}
    unknown: list[str] = []
    for key, tensor in load_file(folder / "adapter_model.safetensors").items():
        # peft stores an embedding's own weights beside its LoRA.
        name = key.removeprefix(PREFIX).replace(".base_layer.", ".")
        if not bool(torch.isfinite(tensor).all()):
            raise _refused(f"its tensor {key!r} holds NaN or infinity: the training diverged")
        if (match := PART.match(name)) and f"{match['module']}.weight" in known:
            parts.setdefault(match["module"], {})[match["part"]] = tensor
        elif name in known:
            replaced[name] = tensor
        else:
            unknown.append(key)
    if unknown:
        raise _refused(f"{len(unknown)} of its tensors belong to nothing in the base, such as {unknown[0]!r}")
    added = {f"{module}.weight": _product(config, module, found, adapter_scale) for module, found in parts.items()}
    shared = [name for name in (*added, *replaced) if "embed_tokens" in name or name.startswith("lm_head")]
    if tied and shared:
        raise _refused(f"it changes {shared[0]!r}, which the base uses as embedding and as output layer at once")
    if not added and not replaced:
        raise _refused("it holds no tensors")
    return Adapter(added, replaced)


def _require_plain_lora(config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise _refused(f"its type is {config.get('peft_type')!r}")
    used = [key for key in NOT_MERGED if config.get(key)]
    if used:
        raise _refused(f"it was trained with {used[0]}={config[used[0]]!r}")
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(CHANGES_BASE):
        raise _refused(f"it was trained with init_lora_weights={start!r}, from base weights changed beforehand")


def _product(config: dict[str, Any], module: str, found: dict[str, torch.Tensor], adapter_scale: float) -> LowRank:
    embedding = "lora_embedding_A" in found
    a = found.get("lora_embedding_A" if embedding else "lora_A.weight")
    b = found.get("lora_embedding_B" if embedding else "lora_B.weight")
    if a is None or b is None:
        raise _refused(f"{module!r} has only {', '.join(found)}")
    # The rank is the matrix's own, so rank_pattern needs no reading. peft keeps an embedding's B A transposed.
    rank = a.shape[0]
    alpha = _by_pattern(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
    scale = adapter_scale * alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LowRank(a, b, scale, transposed=embedding or bool(config.get("fan_in_fan_out")))


def _by_pattern(patterns: dict[str, float], module: str, default: float) -> float:
    """peft's own rule (`get_pattern_key`): the first pattern that the module's name ends with."""
    matching = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    return next(matching, default)


def _refused(why: str) -> InvalidInput:
    return InvalidInput(
        "adapter_not_mergeable",
        f"The adapter cannot be merged: {why}.",
        allowed="LoRA and rsLoRA on layers of the base are merged, and layers trained as a whole (modules_to_save).",
        next='merge_and_export(adapter_id="…", outputs=["lora"]) exports it as it is',
        done="Nothing was exported.",
    )

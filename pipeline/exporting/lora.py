"""A PEFT adapter read as changes to named tensors of its base. Runs in a worker; needs torch, not peft.

Guarantees: every tensor of the adapter is understood or the adapter is refused; nothing is left out silently. Its
values stay on the disk until their turn comes, and a product is made block by block (`shards`).
Formula: W' = W + scale · B A with scale = alpha / r, or alpha / sqrt(r) with rsLoRA (Hu 2021; Kalajdzievski 2023). With
DoRA each output's row of that is brought to its trained length m: W' = m · V / ‖V‖, V = W + scale · B A (Liu 2024).
With LoftQ, W is what 4 bits leave of it, as the adapter was trained on that (training/loftq.py).
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunewright.pipeline import files
from tunewright.pipeline.errors import InvalidInput
from tunewright.pipeline.exporting import shards, weights
from tunewright.pipeline.exporting.weights import Stored

PREFIX = "base_model.model."
PART = re.compile(
    r"^(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)$"
)
# Last parts of the names of input and output embeddings, which some bases keep as one matrix.
EMBEDDINGS = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|embeddings|tok_embeddings|lm_head)\.weight$")
# What changes the formula or the base itself; each is a key of adapter_config.json.
NOT_MERGED = (
    "use_qalora",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
)
# On a GPU every block costs a round trip.
GPU_BLOCK_ELEMENTS = 8 * 2**20
# These begin from base weights that were changed first, and the changed weights are not in the adapter.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True)
class LowRank:
    """A product to be added to one tensor: `a` (r, in) and `b` (out, r); `transposed` where the tensor is (in, out).

    It is that in an `embedding`, whose rows are its inputs, and in GPT-2's Conv1D. `magnitude` (out,) is DoRA's;
    `on_4_bits` says that the product belongs to the tensor as a 4-bit base has it.
    """

    a: Stored
    b: Stored
    scale: float
    transposed: bool
    embedding: bool = False
    magnitude: Stored | None = None
    on_4_bits: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.b.shape[0], self.a.shape[1]
        return (columns, rows) if self.transposed else (rows, columns)

    def added_to(self, weight: Stored, dtype: torch.dtype, buffers: shards.Buffers) -> Iterator[torch.Tensor]:
        """Blocks of rows of `weight` as the adapter has it, in `dtype`, to be written.

        Computed in float32, on the GPU where it has the memory for that now, else on the CPU.
        """
        device, ranges = self._placed(weight)
        a, b = (shards.rows(part).to(device, torch.float32) for part in (self.a, self.b))
        magnitude = None if self.magnitude is None else shards.rows(self.magnitude).to(device, torch.float32)
        for first, last in ranges:
            base = shards.rows(weight, first, last, buffers=buffers).to(device)
            base = in_4_bits(base) if self.on_4_bits else base
            left, right = (b, a[:, first:last]) if self.transposed else (b[first:last], a)
            if device == "cpu":
                base = buffers.get("base", base.shape, torch.float32).copy_(base)
                product = buffers.get("product", (len(left), right.shape[1]), torch.float32)
                torch.mm(left, right, out=product)
            else:
                product = left @ right
            merged = product.T if self.transposed else product
            # One multiplication, one addition, in peft's order: the result is peft's to the last bit.
            merged.mul_(self.scale).add_(base)
            if magnitude is not None:
                by_output = merged.T if self.transposed else merged
                scaled = magnitude if self.transposed else magnitude[first:last]
                by_output.mul_((scaled / by_output.norm(dim=1))[:, None])
            yield buffers.to_write(merged.shape, dtype).copy_(merged)

    def _placed(self, weight: Stored) -> tuple[str, list[tuple[int, int]]]:
        """The device, and the blocks of rows that suit it."""
        if torch.cuda.is_available():
            ranges = list(self._ranges(weight, GPU_BLOCK_ELEMENTS))
            block = max(last - first for first, last in ranges) * weight.shape[1]
            # In float32: the product, the base, what comes of the two, and the two factors.
            if torch.cuda.mem_get_info()[0] > 4 * (3 * block + self.a.elements + self.b.elements):
                return "cuda", ranges
        return "cpu", list(self._ranges(weight, shards.BLOCK_ELEMENTS))

    @property
    def _by_rows(self) -> bool:
        """Whether each row can be computed by itself: quantization and transposed lengths go over all of them."""
        return not self.on_4_bits and not (self.transposed and self.magnitude)

    def _ranges(self, weight: Stored, elements: int) -> Iterator[tuple[int, int]]:
        return shards.ranges(weight, elements) if self._by_rows else iter([(0, weight.shape[0])])


@dataclass(frozen=True)
class Adapter:
    """`replaced`: tensors stored as a whole, by name. `added`: products by the name of the tensor they are added to."""

    added: dict[str, LowRank]
    replaced: dict[str, Stored]


def read(folder: Path, base_tensors: Iterable[str], *, adapter_scale: float, tied: bool) -> Adapter:
    """The adapter in `folder` as changes to `base_tensors` (names). Raises InvalidInput for what cannot be merged.

    `tied` says that the base's output layer is its embedding: changing one would silently change the other.
    """
    config = files.read_json(folder / "adapter_config.json")
    require_plain(config)
    known = set(base_tensors)
    parts: dict[str, dict[str, Stored]] = {}
    replaced: dict[str, Stored] = {}
    unknown: dict[str, Stored] = {}
    for key, tensor in weights.of_file(folder / "adapter_model.safetensors").items():
        # peft stores an embedding's own weights beside its LoRA.
        name = key.removeprefix(PREFIX).replace(".base_layer.", ".")
        if not all(bool(torch.isfinite(extreme)) for block in shards.blocks(tensor) for extreme in block.aminmax()):
            raise _refused(f"its tensor {key!r} holds NaN or infinity: the training diverged")
        if (match := PART.match(name)) and f"{match['module']}.weight" in known:
            parts.setdefault(match["module"], {})[match["part"]] = tensor
        elif name in known:
            replaced[name] = tensor
        else:
            unknown[key] = tensor
    embeddings = [name for name in replaced if EMBEDDINGS.search(name)]
    # Trained as one matrix in both places; the base has it in one.
    heads = [key for key in unknown if tied and EMBEDDINGS.search(key)]
    one_matrix = _all_equal([*(replaced[name] for name in embeddings), *(unknown.pop(key) for key in heads)])
    if unknown:
        raise _refused(f"{len(unknown)} of its tensors belong to nothing in the base, such as {next(iter(unknown))!r}")
    added = {f"{module}.weight": _product(config, module, found, adapter_scale) for module, found in parts.items()}
    shared = [*(name for name in added if EMBEDDINGS.search(name)), *([] if one_matrix else embeddings)]
    if tied and shared:
        raise _refused(f"it changes {shared[0]!r}, which the base uses as embedding and as output layer at once")
    if not added and not replaced:
        raise _refused("it holds no tensors")
    return Adapter(added, replaced)


def _all_equal(tensors: list[Stored]) -> bool:
    """Whether there are two or more, and all the same."""
    return len(tensors) > 1 and all(shards.equal(tensors[0], other) for other in tensors[1:])


def in_4_bits(weight: torch.Tensor) -> torch.Tensor:
    """`weight` as a 4-bit base has it: NF4 in blocks of 64 with quantized scales, from 16 bits."""
    # bitsandbytes: what quantized the base in training.
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    half = weight if weight.dtype == torch.float16 else weight.to(torch.bfloat16)
    packed, state = quantize_4bit(half.contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4")
    return dequantize_4bit(packed, state)


def require_plain(config: dict[str, Any]) -> None:
    """Raises InvalidInput unless an adapter_config.json means what this module's formula says."""
    if config.get("peft_type") != "LORA":
        raise _refused(f"its type is {config.get('peft_type')!r}")
    used = [key for key in NOT_MERGED if config.get(key)]
    if used:
        raise _refused(f"it was trained with {used[0]}={config[used[0]]!r}")
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(CHANGES_BASE):
        raise _refused(f"it was trained with init_lora_weights={start!r}, from base weights changed beforehand")


def _product(config: dict[str, Any], module: str, found: dict[str, Stored], adapter_scale: float) -> LowRank:
    embedding = "lora_embedding_A" in found
    a = found.get("lora_embedding_A" if embedding else "lora_A.weight")
    b = found.get("lora_embedding_B" if embedding else "lora_B.weight")
    magnitude = found.get("lora_magnitude_vector")
    if a is None or b is None:
        raise _refused(f"{module!r} has only {', '.join(found)}")
    if (magnitude is not None) != bool(config.get("use_dora")) or (embedding and magnitude is not None):
        raise _refused(f"{module!r} has {', '.join(found)} with use_dora={config.get('use_dora')}")
    # The rank is the matrix's own, so rank_pattern needs no reading. peft keeps an embedding's B A transposed.
    rank = a.shape[0]
    alpha = _by_pattern(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
    scale = adapter_scale * alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    transposed = embedding or bool(config.get("fan_in_fan_out"))
    return LowRank(a, b, scale, transposed, embedding, magnitude, on_4_bits=bool(config.get("loftq_config")))


def _by_pattern(patterns: dict[str, float], module: str, default: float) -> float:
    """peft's own rule (`get_pattern_key`): the first pattern that the module's name ends with."""
    matching = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    return next(matching, default)


def _refused(why: str) -> InvalidInput:
    return InvalidInput(
        "adapter_not_mergeable",
        f"The adapter cannot be merged: {why}.",
        allowed="LoRA, rsLoRA, DoRA and LoftQ on layers of the base are merged, and layers trained as a whole.",
        next='merge_and_export(adapter_id="…", outputs=["lora"]) exports it as it is',
        done="Nothing was exported.",
    )

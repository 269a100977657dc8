"""How long a step takes, from its arithmetic and the card's peak.

Does not guarantee more than the order between plans on cards other than the H100 and H200: every constant below is
fitted to nine runs there (8B, 4B and 0.6B, packed and not). Twelve later runs on two other H200s were within 18 %: the
same run took up to a quarter less time on another machine.
"""

import re
from dataclasses import dataclass
from typing import Any

from tunewright.pipeline.planning import memory
from tunewright.pipeline.planning.architecture import BYTES_PER_PARAMETER, Architecture
from tunewright.pipeline.planning.machine import Machine

Arguments = dict[str, Any]

# Dense 16-bit tensor TFLOP/s (fp32 accumulation) and GB/s of memory, from NVIDIA's datasheets and architecture
# whitepapers. The first name that stands in the driver's name wins, whole: an A4000 is no A40.
CARDS: tuple[tuple[str, float, float], ...] = (
    ("B300", 2250, 8000), ("B200", 2250, 8000), ("H200 NVL", 835, 4800), ("H200", 989, 4800), ("H100 PCIe", 756, 2000),
    ("H100 NVL", 835, 3900), ("H100", 989, 3350), ("H800", 989, 3350), ("H20", 148, 4000), ("A100", 312, 1555),
    ("A800", 312, 1555), ("A40", 150, 696), ("A30", 165, 933), ("A10G", 70, 600), ("A10", 125, 600), ("L40S", 362, 864),
    ("L40", 181, 864), ("L4", 121, 300), ("V100", 112, 900), ("T4", 65, 320), ("RTX PRO 6000", 500, 1792),
    ("RTX 6000 Ada", 182, 960), ("RTX A6000", 155, 768), ("RTX A5000", 111, 768), ("RTX A4000", 77, 448),
    ("RTX 5090", 209, 1792), ("RTX 5080", 113, 960), ("RTX 5070 Ti", 88, 896), ("RTX 5070", 62, 672),
    ("RTX 5060", 47, 448), ("RTX 4090", 165, 1008), ("RTX 4080", 97, 717), ("RTX 4070 Ti", 80, 504),
    ("RTX 4070", 58, 504), ("RTX 4060", 44, 288), ("RTX 3090", 71, 936), ("RTX 3080", 60, 760), ("RTX 3070", 41, 448),
    ("RTX 3060", 26, 360), ("RTX 2080", 45, 448), ("RTX 2070", 30, 448), ("RTX 2060", 26, 336), ("GTX 1660", 10, 192),
    ("GTX 1650", 6, 128),
)  # fmt: skip
UNKNOWN_CARD = {9: (500.0, 2000.0), 8: (80.0, 500.0)}
OLDER_CARD = (40.0, 300.0)

# Matrix products reach this share of the peak. All between them (norms, rotations, activations, adapters) moves so many
# bytes for each of a layer's activations, forward and backward, at the memory's bandwidth: fitted to packed runs
# of 8B, 4B and 0.6B through the trainer on one H200 (benchmarks/RESULTS.md).
PRODUCTS_SHARE, BYTES_PER_ACTIVATION = 0.74, 37
# An adapter's thin products reach a quarter of that.
THIN_PRODUCTS = 4
# What a layer costs the host that launches its kernels; below some 4,000 tokens the GPU waits for it.
HOST_S_PER_LAYER = {"none": 0.0036, "plain": 0.0052, "unsloth": 0.0053}
# Each new length of a padded batch seems to cost the host again: steps of one run took 0.16 to 0.36 s.
UNPACKED_HOST = 1.4
# The trainer's own work for a micro-batch and for a step, and the optimizer's for each tensor that it updates.
MICRO_BATCH_S, STEP_S, S_PER_TENSOR = 0.01, 0.02, 0.00015
# transformers' own forward and backward instead of Unsloth's; DoRA and dropout go that way too.
UNFUSED_SHARE = 0.75
# Of the memory's bandwidth, when answers are generated: 44 tokens/s of 290 (8B, 16-bit, one H200).
GENERATION_SHARE = 0.15
# FLOP/s of a core in fp32: 4,700 tokens/s of the toy on two cores.
CPU_FLOPS_PER_CORE = 33e9
# What a layer's many small steps cost beside that: the toy's micro-batches of 230 tokens take 0.12 s.
CPU_S_PER_LAYER = 0.012
# Bytes per second of two channels of DDR4, less than their nominal 40 GB/s.
CPU_BANDWIDTH = 20e9
# Passes forward at each step beside the policy's own: KTO's over mismatched prompts. A reference reads the rows once,
# before the first step (training/preference.py).
EXTRA_FORWARDS = {"kto": 1}


@dataclass(frozen=True)
class Work:
    """A micro-batch: `tokens` that are computed (padding too), each attending to `pairs` keys."""

    tokens: float
    pairs: float


def card(machine: Machine) -> tuple[float, float, bool]:
    """FLOP/s at 16 bits, bytes/s of memory, and whether the card is in the table."""
    for name, tflops, gbs in CARDS:
        if re.search(rf"{name}(?![0-9a-z])", machine.name, re.IGNORECASE):
            return tflops * 1e12, gbs * 1e9, True
    tflops, gbs = UNKNOWN_CARD.get(min(9, machine.compute_capability[0]), OLDER_CARD)
    return tflops * 1e12, gbs * 1e9, False


def flops_per_token(model: Architecture, arguments: Arguments, method: str, pairs: float) -> float:
    """2 FLOPs a weight forward, 2 for the gradients of the inputs, and 2 for those of weights that are trained.

    LoRA needs no weight gradients of the base: 4; full fine-tuning 6. Checkpointing computes the layers' forward again.
    Attention adds QKᵀ and AV for each pair, twice as much backward.
    """
    weights = model.active_linear + model.embeddings  # a tied head computes too
    attention = pairs * model.attention_flops_per_pair()
    trained = {"full": 1.0, "lora": 0.0}.get(arguments["finetuning_type"])
    if trained is None:
        trained = min(1.0, arguments["trainable_layers"] / model.layers)
    forward = 2 * weights + attention
    # Below the frozen layers of a freeze run nothing flows back.
    back = trained if arguments["finetuning_type"] == "freeze" else 1.0
    total = forward + back * (2 * weights + 2 * attention) + trained * 2 * weights
    if arguments["gradient_checkpointing"] != "none":
        total += back * (2 * model.active_linear + attention)
    return total + EXTRA_FORWARDS.get(method, 0) * forward


def micro_batch_s(model: Architecture, arguments: Arguments, method: str, machine: Machine, work: Work) -> float:
    """Seconds of a forward and backward pass."""
    flops = work.tokens * flops_per_token(model, arguments, method, work.pairs)
    if not machine.is_gpu:
        # Few tokens wait for the weights, which each of three passes reads.
        read_s = 3 * 4 * model.active_linear / CPU_BANDWIDTH
        return flops / (CPU_FLOPS_PER_CORE * machine.cores) + read_s + model.layers * CPU_S_PER_LAYER + MICRO_BATCH_S
    peak, bandwidth, _ = card(machine)
    passes = 2 if arguments["gradient_checkpointing"] == "none" else 3
    moved = work.tokens * model.layers * activations(model) * BYTES_PER_ACTIVATION * (1 if passes == 2 else 4 / 3)
    flops += work.tokens * 6 * THIN_PRODUCTS * _adapter(model, arguments)
    gpu_s = flops / (peak * PRODUCTS_SHARE) + moved / bandwidth
    if not model.is_fused or arguments["lora_dropout"] or arguments["use_dora"]:
        gpu_s /= UNFUSED_SHARE
    gpu_s += passes * _dequantization_bytes(model, arguments) / bandwidth
    host_s = model.layers * HOST_S_PER_LAYER[arguments["gradient_checkpointing"]]
    if not arguments["packing"]:
        host_s *= UNPACKED_HOST
    return max(gpu_s, host_s) + MICRO_BATCH_S


def activations(model: Architecture) -> int:
    """Numbers that a token leaves in a layer: norms, queries, keys, values, and the three of the MLP."""
    return 2 * model.hidden + (model.heads + 2 * model.kv_heads) * model.head_dim + 3 * model.layer_width


def step_s(model: Architecture, arguments: Arguments, method: str, machine: Machine, work: Work) -> float:
    """Seconds of an optimizer step with all its micro-batches; GRPO's with the answers that are generated for it."""
    seconds = arguments["gradient_accumulation"] * micro_batch_s(model, arguments, method, machine, work)
    bandwidth = card(machine)[1] if machine.is_gpu else CPU_BANDWIDTH
    # Weights, gradients and two moments are read and written once.
    seconds += STEP_S + (S_PER_TENSOR * _tensors(model, arguments) if machine.is_gpu else 0)
    seconds += sum(memory.trainable(model, arguments)) * 24 / bandwidth
    if method == "grpo":
        read = model.weight_bytes(memory.weight_bits(model, arguments, on_gpu=machine.is_gpu))
        seconds += arguments["max_completion_length"] * read / (bandwidth * GENERATION_SHARE)
    return seconds


def _adapter(model: Architecture, arguments: Arguments) -> int:
    if arguments["finetuning_type"] != "lora":
        return 0
    return model.adapter_parameters(arguments["lora_rank"], arguments["target_modules"])


def _tensors(model: Architecture, arguments: Arguments) -> int:
    """How many the optimizer updates: A and B of each adapted matrix, or each weight."""
    matrices = sum(count for _, _, count in model.modules.values())
    return 2 * matrices if arguments["finetuning_type"] == "lora" else matrices


def _dequantization_bytes(model: Architecture, arguments: Arguments) -> float:
    """Of a pass over quantized weights: each is read small, written at 16 bits and read again."""
    bits = memory.weight_bits(model, arguments)
    return 0.0 if bits >= 16 else model.active_linear * (BYTES_PER_PARAMETER[bits] + 2 + 2)

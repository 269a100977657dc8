"""The forms in which a trained model can leave: their names, and how large each is. Light."""

from typing import Literal

LORA, LORA_GGUF = "lora", "lora_gguf"
MERGED, MERGED_4BIT = "merged_16bit", "merged_4bit"
GGUF = "gguf:"
# From the most exact to the smallest. The number is bits per weight: what llama.cpp's `llama-quantize --help` states
# for an 8B model; f16, bf16 and the fixed-block types follow from their blocks.
BITS_PER_WEIGHT = {
    "f16": 16.0,
    "bf16": 16.0,
    "q8_0": 8.5,
    "q6_k": 6.57,
    "q5_k_m": 5.70,
    "q4_k_m": 4.89,
    "q4_k_s": 4.67,
    "q4_0": 4.64,
    "q3_k_m": 4.00,
}
GGUF_TYPES = tuple(BITS_PER_WEIGHT)
# What llama.cpp's converter writes by itself; everything else needs its quantizer.
DIRECT = ("f16", "bf16", "q8_0")
# The ways to combine adapters, by PEFT's names (add_weighted_adapter); the second group adds matrices of one rank.
Combination = Literal[
    "cat", "svd",
    "linear", "ties", "dare_linear", "dare_ties", "magnitude_prune",
    "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd",
]  # fmt: skip
ONE_RANK = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
OUTPUTS = (LORA, LORA_GGUF, MERGED, MERGED_4BIT, *(GGUF + name for name in GGUF_TYPES))


def is_adapter(output: str) -> bool:
    """Whether it is the adapter by itself, which needs no merge."""
    return output in (LORA, LORA_GGUF)


def is_gguf(output: str) -> bool:
    """Whether it is a whole model as GGUF (an adapter as GGUF is none)."""
    return output.startswith(GGUF)


def gguf_type(output: str) -> str:
    """`q4_k_m` of `gguf:q4_k_m`."""
    return output.removeprefix(GGUF)

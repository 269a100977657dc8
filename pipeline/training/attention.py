"""Attention over packed rows in one kernel call on torch 2.11, as Unsloth does it by itself from torch 2.12 on.

Without it Unsloth runs attention once per example, and autograd adds up full-size gradients of every slice: 23 % of the
kernels' time in an 8B QLoRA step on an H200 (profiled, torch 2.11; benchmarks/RESULTS.md). torch 2.11 has the kernel,
grouped heads included; only the `enable_gqa` argument, which Unsloth looks for, is younger.
`packing.keeps_examples_apart` proves the outcome on the very model before a run trains packed.
"""

import inspect
from typing import Any

from tunewright.pipeline.backend import on_gpu

import torch


def use_one_kernel_for_packed_rows() -> None:
    """Gives Unsloth torch's variable-length attention where it would not take it. Changes Unsloth's module."""
    if not on_gpu():
        return
    # Not at the top: the two modules import each other, and only this order works.
    from unsloth.utils import attention_dispatch as loaded

    # Private names of Unsloth 2026.10; where they change, packed rows are slower and nothing else.
    dispatch: Any = loaded

    if dispatch._TORCH_VARLEN_ATTN is not None:
        return
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch 2.10 and older
        return
    parameters = inspect.signature(varlen_attn).parameters
    if "window_size" not in parameters or "enable_gqa" in parameters:
        return

    def with_repeated_heads(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *lengths: Any, enable_gqa: bool = False,
        **options: Any,
    ) -> Any:  # fmt: skip
        # tokens × heads × head_dim; taken while compiling, else Unsloth calls the kernel below varlen_attn.
        groups = query.shape[1] // key.shape[1] if enable_gqa else 1
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
        return varlen_attn(query, key, value, *lengths, **options)

    dispatch._TORCH_VARLEN_ATTN = with_repeated_heads
    dispatch._varlen_can_use_cudnn = lambda *_: False  # pyright: ignore[reportUnknownLambdaType]
    dispatch._LEAN_VARLEN = True

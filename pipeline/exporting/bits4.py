"""A merged model in 4 bits: the bitsandbytes NF4 checkpoint that transformers itself would write. Heavy.

Guarantees: the same tensors, bit for bit, as loading the model with transformers' `load_in_4bit` (NF4, double
quantization) and saving it: the products in 4 bits; norms, embeddings and the output layer in 16. Memory holds one
shard of the result and one matrix, never the model. Measures nothing: 4 bits cost quality, and the parity gate says how
much of GGUF only.
"""

import shutil
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tunewright.pipeline import files
from tunewright.pipeline.errors import InvalidInput, call
from tunewright.pipeline.exporting import shards, weights
from tunewright.pipeline.exporting.weights import Stored

# How often progress is told, in tensors.
TOLD_EVERY = 16
NF4: dict[str, Any] = {"blocksize": 64, "quant_type": "nf4", "compress_statistics": True}


def quantize(
    merged: Path, folder: Path, check_cancelled: Callable[[], None], progress: Callable[[str, float, float], None]
) -> None:
    """Fills the empty `folder` with the model in `merged` (16 bits) in 4 bits; uses the GPU where one is free.

    Raises InvalidInput for a model whose products transformers does not name as its files do, and what
    `check_cancelled` raises, between tensors.
    """
    stored = weights.of_model(merged)
    quantization, products = _products(merged, stored)
    total, number = len(stored), 0
    weight_map: dict[str, str] = {}
    for file, group in groupby(stored.values(), key=lambda one: one.file):
        tensors: dict[str, torch.Tensor] = {}
        for one in group:
            check_cancelled()
            if number % TOLD_EVERY == 0:
                progress("quantizing to 4 bits", number, total)
            number += 1
            kept = one.name not in products
            tensors |= {one.name: shards.rows(one)} if kept else _in_4_bits(one, transposed=products[one.name])
        save_file(tensors, folder / file.name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file.name)
    if len(set(weight_map.values())) > 1:
        written = sum(
            one.nbytes for file in set(weight_map.values()) for one in weights.of_file(folder / file).values()
        )
        files.write_json(folder / weights.INDEX, {"metadata": {"total_size": written}, "weight_map": weight_map})
    for file in merged.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and file.name != weights.INDEX:
            shutil.copyfile(file, folder / file.name)
    config = files.read_json(merged / "config.json")
    files.write_json(folder / "config.json", config | {"quantization_config": quantization})
    progress("quantizing to 4 bits", total, total)


def _products(merged: Path, stored: dict[str, Stored]) -> tuple[dict[str, Any], dict[str, bool]]:
    """The `quantization_config` and the tensors to quantize by name, each with whether it is stored transposed.

    transformers chooses them itself, on the model's skeleton without weights: what it will look for when it loads.
    """
    # Here, not above: transformers takes seconds to import, and Unsloth wants to be imported before it.
    import transformers
    from bitsandbytes.nn.modules import Linear4bit
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.auto import AutoHfQuantizer

    config = transformers.AutoConfig.from_pretrained(merged)
    named = (config.architectures or [""])[0]
    if not hasattr(transformers, named):
        raise _refused(f"transformers has no class {named!r}")
    quantization = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=config.dtype,
    )
    with torch.device("meta"):
        model: Any = getattr(transformers, named)(config)
    AutoHfQuantizer.from_config(quantization).preprocess_model(model, device_map=None)
    layers: list[tuple[str, Any]] = [(n, layer) for n, layer in model.named_modules() if isinstance(layer, Linear4bit)]
    products = {f"{name}.weight": issubclass(layer.source_cls, Conv1D) for name, layer in layers}
    missing = sorted(products.keys() - stored.keys())
    if missing or not products:
        raise _refused(f"transformers knows {missing[0]!r} by another name" if missing else "it has no linear layer")
    return quantization.to_dict(), products


def _in_4_bits(stored: Stored, *, transposed: bool) -> dict[str, torch.Tensor]:
    """The packed weight and what is needed to unpack it, by the names that bitsandbytes gives them."""
    from bitsandbytes.functional import quantize_4bit

    # The weight, a copy where it is transposed, its result and bitsandbytes' own scratch.
    on_gpu = torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > 4 * stored.nbytes
    weight = shards.rows(stored).to("cuda" if on_gpu else "cpu")
    packed, state = quantize_4bit((weight.T if transposed else weight).contiguous(), **NF4)
    parts = {f"{stored.name}.{key}": value.cpu() for key, value in state.as_dict(packed=True).items()}
    return {stored.name: packed.cpu(), **parts}


def _refused(why: str) -> InvalidInput:
    return InvalidInput(
        "not_quantizable",
        f"The merged model cannot be written in 4 bits by bitsandbytes: {why}.",
        allowed="merged_16bit keeps it whole; a GGUF of 4 bits is gguf:q4_k_m.",
        next=call("merge_and_export", adapter_id="…", outputs=["merged_16bit", "gguf:q4_k_m"]),
        done="No export was kept; the adapter is unchanged.",
    )

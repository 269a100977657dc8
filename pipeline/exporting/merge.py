"""Merging an adapter into its base's weights, one shard at a time. Runs in a worker; needs torch, not transformers.

Guarantees: the adapter is used up to its last tensor or refused; products are computed in float32; memory holds one
shard and one matrix more. The result is 16 bits wide: the base's own type, or bfloat16 where the base has 32.
"""

import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tunewright.pipeline import files, models
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import InvalidInput
from tunewright.pipeline.exporting import lora

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HALF_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def merge(context: JobContext, base: Path, adapter: Path, folder: Path, adapter_scale: float = 1.0) -> None:
    """Fills the empty `folder` with a transformers model: `base` with `adapter` merged in, times `adapter_scale`.

    A model that was trained as a whole is its own base: both are its folder, and only its width changes.
    Tokenizer, chat template and generation settings come from the adapter, which was trained with them. Raises
    InvalidInput for an adapter or base that cannot be merged, and Cancelled between shards.
    """
    config = files.read_json(base / "config.json")
    shards = _shards(base)
    known = [name for names in shards.values() for name in names]
    # Some configs leave the word out, but a base without an output layer of its own is tied in any case.
    tied = bool(config.get("tie_word_embeddings")) or "lm_head.weight" not in known
    whole = adapter == base
    changes = lora.Adapter({}, {}) if whole else lora.read(adapter, known, adapter_scale=adapter_scale, tied=tied)
    narrow_to = _narrowed(config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number, (shard, names) in enumerate(shards.items()):
        context.check_cancelled()
        context.progress("merging", number, len(shards))
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in _tensors(base / shard, names):
            tensors[name] = _changed(name, tensor, changes, narrow_to, device)
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
        total_bytes += sum(tensor.nbytes for tensor in tensors.values())
    if list(shards) != [SINGLE]:
        files.write_json(folder / INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})
    files.write_json(folder / "config.json", _merged_config(config))
    _copy_small_files(base, adapter, folder)
    context.progress("merging", len(shards), len(shards))


def merged_bytes(base: Path) -> int:
    """Bytes that the merged weights will take; counts a 32-bit base as half."""
    stored = sum((base / shard).stat().st_size for shard in _shards(base))
    return stored // 2 if _stated_dtype(files.read_json(base / "config.json")) == "float32" else stored


def _shards(base: Path) -> dict[str, list[str]]:
    """The names of the tensors in each safetensors file. Raises InvalidInput where a file is missing."""
    if (base / INDEX).is_file():
        shards: dict[str, list[str]] = {}
        for name, shard in files.read_json(base / INDEX)["weight_map"].items():
            shards.setdefault(Path(shard).name, []).append(name)
    elif (base / SINGLE).is_file():
        with safe_open(base / SINGLE, framework="pt") as file:
            shards = {SINGLE: list(file.keys())}
    else:
        shards = {SINGLE: []}
    missing = [shard for shard in shards if not (base / shard).is_file()]
    if missing:
        raise InvalidInput(
            "base_incomplete",
            f"The base at {base} lacks {', '.join(missing[:3])}.",
            allowed="Its weights must be whole, as safetensors (*.bin are not read: pickles can run code).",
            next="list_models()",
            done="Nothing was exported.",
        )
    return shards


def _tensors(file: Path, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(file, framework="pt") as opened:
        for name in names:
            yield name, opened.get_tensor(name)


def _changed(
    name: str, tensor: torch.Tensor, changes: lora.Adapter, narrow_to: torch.dtype | None, device: str
) -> torch.Tensor:
    """The base's tensor with its change, in the type in which it is stored."""
    product = changes.added.get(name)
    replacement = changes.replaced.get(name, tensor)
    shapes = [tuple(replacement.shape), *([product.shape] if product else [])]
    wrong = next((shape for shape in shapes if shape != tuple(tensor.shape)), None)
    if wrong:
        raise InvalidInput(
            "adapter_of_another_base",
            f"The adapter changes {name!r} as {wrong}, the base has it as {tuple(tensor.shape)}.",
            allowed="An adapter fits only the base that it was trained on, with the vocabulary it had then.",
            next="list_models()",
            done="Nothing was exported.",
        )
    dtype = narrow_to if narrow_to and tensor.dtype == torch.float32 else tensor.dtype
    return (product.added_to(replacement, device) if product else replacement).to(dtype).contiguous()


def _stated_dtype(config: dict[str, Any]) -> str | None:
    """The base's type as its config names it: `dtype` since transformers 5, `torch_dtype` before."""
    return config.get("dtype") or config.get("torch_dtype") or config.get("text_config", {}).get("dtype")


def _narrowed(config: dict[str, Any]) -> torch.dtype | None:
    """What float32 tensors become, or None where the base is 16 bits wide and keeps some in float32 on purpose."""
    return None if _stated_dtype(config) in HALF_TYPES else torch.bfloat16


def _merged_config(config: dict[str, Any]) -> dict[str, Any]:
    stated = _stated_dtype(config)
    kept = {key: value for key, value in config.items() if key not in ("torch_dtype", "quantization_config")}
    return kept | {"dtype": stated if stated in HALF_TYPES else "bfloat16"}


def _copy_small_files(base: Path, adapter: Path, folder: Path) -> None:
    """The adapter's tokenizer, template and generation settings; from the base what the adapter has none of."""
    wanted = [pattern for pattern in models.SMALL_FILES if pattern != "config.json"]
    tokenizer_in_adapter = (adapter / "tokenizer.json").is_file()
    for source in (base, adapter):
        for file in source.iterdir():
            generation = file.name == "generation_config.json"
            # What was trained as a whole is both.
            if source != adapter and tokenizer_in_adapter and not generation:
                continue
            if file.is_file() and any(fnmatch(file.name, pattern) for pattern in wanted):
                shutil.copyfile(file, folder / file.name)

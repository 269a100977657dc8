"""Merging an adapter into its base's weights, block by block. Runs in a worker; needs torch, not transformers.

Guarantees: the adapter is used up to its last tensor or refused, before anything is written; products are computed in
float32; memory holds a few blocks of one tensor (`shards`), and one matrix with LoftQ. The result is 16 bits wide: the
base's own type, or bfloat16 where the base has 32. Its shards have at most 5 GB.
"""

import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tunewright.pipeline import files, models
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import InvalidInput
from tunewright.pipeline.exporting import base_weights, lora, shards, weights
from tunewright.pipeline.exporting.shards import Planned
from tunewright.pipeline.exporting.weights import Stored

HALF_TYPES = ("float16", "bfloat16")
# How often progress is told, in tensors.
TOLD_EVERY = 16


def merge(context: JobContext, base: Path, adapter: Path, folder: Path, adapter_scale: float = 1.0) -> None:
    """Fills the empty `folder` with a transformers model: `base` with `adapter` merged in, times `adapter_scale`.

    A model that was trained as a whole is its own base: both are its folder, and only its width changes.
    Tokenizer, chat template and generation settings come from the adapter, which was trained with them. Raises
    InvalidInput for an adapter or base that cannot be merged, and Cancelled between tensors.
    """
    config = files.read_json(base / "config.json")
    with _one_thread():
        if adapter == base:
            stored, changes = weights.of_model(base), lora.Adapter({}, {})
        else:
            stored, changes = read_changes(base, adapter, adapter_scale)
        _write(context, [_planned(one, config) for one in stored.values()], stored, changes, folder)
    files.write_json(folder / "config.json", _merged_config(config))
    copy_small_files(base, adapter, folder)


def read_changes(base: Path, adapter: Path, adapter_scale: float) -> tuple[dict[str, Stored], lora.Adapter]:
    """The base's tensors and what the adapter changes of them.

    Raises InvalidInput for an adapter that cannot be merged, or that was trained on another base.
    """
    stored = weights.of_model(base)
    # Some configs leave the word out, but a base without an output layer of its own is tied in any case.
    tied = bool(files.read_json(base / "config.json").get("tie_word_embeddings")) or "lm_head.weight" not in stored
    changes = lora.read(adapter, stored, adapter_scale=adapter_scale, tied=tied)
    _require_fitting(changes, stored)
    base_weights.require_trained_on(adapter, base)
    return stored, changes


def merged_bytes(base: Path) -> int:
    """Bytes that the merged weights will take; counts a 32-bit base as half."""
    config = files.read_json(base / "config.json")
    return sum(_planned(stored, config).nbytes for stored in weights.of_model(base).values())


def _write(
    context: JobContext, planned: list[Planned], stored: dict[str, Stored], changes: lora.Adapter, folder: Path
) -> None:
    numbers = {tensor.name: number for number, tensor in enumerate(planned)}

    def values(tensor: Planned) -> Iterator[torch.Tensor]:
        context.check_cancelled()
        if numbers[tensor.name] % TOLD_EVERY == 0:
            context.progress("merging", numbers[tensor.name], len(planned))
        return _blocks(stored[tensor.name], tensor, changes, buffers)

    buffers = shards.Buffers()
    shards.write_model(folder, planned, values)
    context.progress("merging", len(planned), len(planned))


@contextmanager
def _one_thread() -> Generator[None]:
    """One thread keeps up with a disk. Several wait for each other after each small block, and where another process
    has the core that one of them needs, that takes longer than the block: 20 times as long was measured."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _planned(stored: Stored, config: dict[str, Any]) -> Planned:
    """The tensor as it will be written: a 16-bit base may keep some in float32 on purpose, a wider one is narrowed."""
    if stored.dtype == "F32" and _stated_dtype(config) not in HALF_TYPES:
        return Planned(stored.name, "BF16", stored.shape, stored.nbytes // 2)
    return Planned(stored.name, stored.dtype, stored.shape, stored.nbytes)


def _blocks(stored: Stored, planned: Planned, changes: lora.Adapter, buffers: shards.Buffers) -> Iterator[torch.Tensor]:
    """The base's tensor with its change, in the type in which it is written."""
    product = changes.added.get(stored.name)
    source = changes.replaced.get(stored.name, stored)
    if product:
        return product.added_to(source, shards.TYPES[planned.dtype], buffers)
    if source.dtype == planned.dtype:
        return shards.raw(source, buffers)
    return shards.converted(source, shards.TYPES[planned.dtype], buffers)


def _require_fitting(changes: lora.Adapter, stored: dict[str, Stored]) -> None:
    """Raises InvalidInput unless every change has the shape of the base's tensor."""
    for name, change in [*changes.added.items(), *changes.replaced.items()]:
        if change.shape != stored[name].shape:
            raise InvalidInput(
                "adapter_of_another_base",
                f"The adapter changes {name!r} as {change.shape}, the base has it as {stored[name].shape}.",
                allowed="An adapter fits only the base that it was trained on, with the vocabulary it had then.",
                next="list_models()",
                done="Nothing was exported.",
            )


def _stated_dtype(config: dict[str, Any]) -> str | None:
    """The base's type as its config names it: `dtype` since transformers 5, `torch_dtype` before."""
    return config.get("dtype") or config.get("torch_dtype") or config.get("text_config", {}).get("dtype")


def _merged_config(config: dict[str, Any]) -> dict[str, Any]:
    stated = _stated_dtype(config)
    kept = {key: value for key, value in config.items() if key not in ("torch_dtype", "quantization_config")}
    return kept | {"dtype": stated if stated in HALF_TYPES else "bfloat16"}


def copy_small_files(base: Path, adapter: Path, folder: Path) -> None:
    """Copies the adapter's tokenizer, template and settings, and the base's where the adapter has none (a licence).

    The files of a tokenizer belong together: they come from the adapter or from the base, never from both.
    """
    of_adapter = any(_found(adapter, models.TOKENIZER_FILES))
    of_base = [pattern for pattern in models.SMALL_FILES if not (of_adapter and pattern in models.TOKENIZER_FILES)]
    for source, patterns in ((base, of_base), (adapter, models.SMALL_FILES)):
        for file in _found(source, patterns):
            target = folder / file.relative_to(source)
            if target.name != "config.json":
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)


def _found(folder: Path, patterns: list[str]) -> Iterator[Path]:
    return (file for pattern in patterns for file in folder.glob(pattern) if file.is_file())

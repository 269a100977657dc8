"""Safetensors read and written block by block: memory holds one block of one tensor, however large the file is.

Guarantees: what is written has exactly the header's length, or an exception was raised. Not atomic: the caller writes
into a folder that is renamed when it is whole. Runs in a worker; needs torch. safetensors' own `save_file` wants all
tensors of a file at once, and its reader maps whole files, which count as resident once they were touched.
"""

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from tunewright.pipeline import files
from tunewright.pipeline.exporting.weights import INDEX, SINGLE, Stored

# As the Hub's own tools cut them.
MAX_SHARD_BYTES = 5_000_000_000
# Small enough that a block in float32 (4 MiB) stays in the processor's caches.
BLOCK_ELEMENTS = 2**20
BLOCK_BYTES = 2 * 2**20
# What may be computed ahead of the writing.
WAITING_BLOCKS = 3
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
HEADER_ALIGNMENT = 8


@dataclass(frozen=True)
class Planned:
    """A tensor that will be written; `dtype` is the format's word for its type."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class Buffers:
    """Memory that block after block uses again: fresh pages took four times as long as the arithmetic on them.

    It is pinned where there is a GPU, which then reads and writes it directly.
    """

    def __init__(self) -> None:
        self._held: dict[str, torch.Tensor] = {}
        self._turn = 0

    def get(self, use: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """The one tensor for this `use`, on the CPU; its values are whatever they were."""
        nbytes = math.prod(shape) * dtype.itemsize
        held = self._held.get(use)
        if held is None or held.numel() < nbytes:
            held = self._held[use] = torch.empty(nbytes, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        return held[:nbytes].view(dtype).reshape(tuple(shape))

    def to_write(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor to give to `write_model`: not used again before it is written."""
        self._turn = (self._turn + 1) % (WAITING_BLOCKS + 1)
        return self.get(f"to write {self._turn}", shape, dtype)


def rows(stored: Stored, first: int = 0, last: int | None = None, *, buffers: Buffers | None = None) -> torch.Tensor:
    """Rows `first` to `last` of a stored tensor (all of it unless told), in memory of their own or in `buffers`."""
    last = (stored.shape[0] if stored.shape else 1) if last is None else last
    shape = (last - first, *stored.shape[1:]) if stored.shape else ()
    dtype = TYPES[stored.dtype]
    content = buffers.get("read", shape, dtype) if buffers else torch.empty(shape, dtype=dtype)
    _read(stored, first * (math.prod(stored.shape[1:]) * dtype.itemsize), content)
    return content


def ranges(stored: Stored, elements: int | None = None) -> Iterator[tuple[int, int]]:
    """The (first, last) of blocks of whole rows, each of about so many `elements` (`BLOCK_ELEMENTS` unless told)."""
    elements = elements or BLOCK_ELEMENTS
    if not stored.shape or not stored.elements:
        yield 0, (stored.shape[0] if stored.shape else 0)
        return
    step = max(1, elements * stored.shape[0] // stored.elements)
    for first in range(0, stored.shape[0], step):
        yield first, min(first + step, stored.shape[0])


def blocks(stored: Stored) -> Iterator[torch.Tensor]:
    """The tensor's blocks of rows, one after the other."""
    return (rows(stored, first, last) for first, last in ranges(stored))


def raw(stored: Stored, buffers: Buffers) -> Iterator[torch.Tensor]:
    """The tensor's bytes as they lie in the file, whatever its type, in blocks to be written."""
    for first in range(0, stored.nbytes, BLOCK_BYTES):
        content = buffers.to_write((min(BLOCK_BYTES, stored.nbytes - first),), torch.uint8)
        _read(stored, first, content)
        yield content


def converted(stored: Stored, dtype: torch.dtype, buffers: Buffers) -> Iterator[torch.Tensor]:
    """The tensor in another type, in blocks to be written."""
    for first, last in ranges(stored):
        block = rows(stored, first, last, buffers=buffers)
        yield buffers.to_write(block.shape, dtype).copy_(block)


def equal(one: Stored, other: Stored) -> bool:
    """Whether two stored tensors have the same shape and values, in whatever types."""
    pairs = zip(blocks(one), blocks(other), strict=False)
    return one.shape == other.shape and all(torch.equal(a.float(), b.float()) for a, b in pairs)


def write_model(folder: Path, tensors: Sequence[Planned], values: Callable[[Planned], Iterable[torch.Tensor]]) -> None:
    """Writes `tensors` into `folder` as transformers names a model's files, in shards of at most `MAX_SHARD_BYTES`.

    `values` gives a tensor's blocks in order, on the CPU and in its type (see `Buffers.to_write`). A tensor above the
    limit gets a shard of its own. Raises ValueError where the blocks are not as long as was planned.
    """
    groups = _grouped(tensors)
    names = [f"model-{i + 1:05}-of-{len(groups):05}.safetensors" for i in range(len(groups))]
    names = names if len(groups) > 1 else [SINGLE]
    for name, group in zip(names, groups, strict=True):
        _write_file(folder / name, group, values)
    if len(groups) > 1:
        weight_map = {one.name: name for name, group in zip(names, groups, strict=True) for one in group}
        total_bytes = sum(one.nbytes for one in tensors)
        files.write_json(folder / INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})


def _grouped(tensors: Sequence[Planned]) -> list[list[Planned]]:
    groups: list[list[Planned]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.nbytes > MAX_SHARD_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    return groups


def _write_file(file: Path, tensors: Sequence[Planned], values: Callable[[Planned], Iterable[torch.Tensor]]) -> None:
    header = _header(tensors)
    # Unbuffered: the blocks are large. One thread writes while the next are computed; both leave Python's lock.
    with file.open("wb", buffering=0) as opened, ThreadPoolExecutor(1) as writer:
        _write_all(opened, memoryview(header))
        waiting: deque[Future[None]] = deque()
        for tensor in tensors:
            written = 0
            for block in values(tensor):
                content = block.contiguous().view(-1).view(torch.uint8)
                if len(waiting) == WAITING_BLOCKS:
                    waiting.popleft().result()
                waiting.append(writer.submit(_write_all, opened, content.numpy().data))
                written += content.numel()
            if written != tensor.nbytes:
                raise ValueError(f"{tensor.name} has {written} bytes instead of {tensor.nbytes}")
        for future in waiting:
            future.result()


def _header(tensors: Sequence[Planned]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.nbytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text = text.ljust(math.ceil(len(text) / HEADER_ALIGNMENT) * HEADER_ALIGNMENT)
    return len(text).to_bytes(HEADER_ALIGNMENT, "little") + text


def _write_all(file: BinaryIO, content: memoryview) -> None:
    # A single call writes at most 2 GiB.
    while content:
        content = content[file.write(content) :]


def _read(stored: Stored, begin: int, content: torch.Tensor) -> None:
    """Fills `content` with the bytes of `stored` from `begin` on."""
    left = content.view(-1).view(torch.uint8).numpy().data
    with stored.file.open("rb", buffering=0) as file:
        file.seek(stored.offset + begin)
        while left:
            read = file.readinto(left)
            if not read:
                raise EOFError(f"{stored.file} ends within {stored.name}")
            left = left[read:]

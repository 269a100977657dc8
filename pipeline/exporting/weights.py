"""The tensors of a model's safetensors files by name: where each lies, its type and shape; not their values. Light.

Guarantees: every file that the index names is there and as long as its own header says, so that a download or copy
that was cut off is refused before anything is made of it. Does not check the values.
"""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from tunewright.pipeline import files
from tunewright.pipeline.errors import InvalidInput

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# The format: the length of the header in 8 bytes (little-endian), the header as JSON, the tensors one after the other.
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
# Of every tensor; a merge changes every row of what it changes.
SAMPLE_BYTES = 1024


@dataclass(frozen=True)
class Stored:
    """One tensor in a file. `dtype` is the format's word for it (BF16, F32, …), `offset` is that in the file."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def of_file(file: Path) -> dict[str, Stored]:
    """The tensors of one file in the order in which they lie there. Raises InvalidInput where it is damaged."""
    found, begin = declared(file)
    end = max((stored.offset + stored.nbytes for stored in found), default=begin)
    if file.stat().st_size != end:
        raise _damaged(file, f"it has {file.stat().st_size:,} bytes and must have {end:,}")
    return {stored.name: stored for stored in sorted(found, key=lambda stored: stored.offset)}


def declared(file: Path) -> tuple[list[Stored], int]:
    """The tensors that a file's header names, and where the first begins; whether they are there is not looked at.

    Raises InvalidInput where the header is none: it may come from anybody.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(LENGTH_BYTES), "little")
        try:
            header = json.loads(opened.read(length)) if length <= MAX_HEADER_BYTES else None
        except (ValueError, RecursionError):
            header = None
    if not isinstance(header, dict):
        raise _damaged(file, "it does not begin as a safetensors file")
    header.pop("__metadata__", None)
    begin = LENGTH_BYTES + length
    try:
        return [_stored(file, begin, name, entry) for name, entry in header.items()], begin
    except (TypeError, ValueError, LookupError) as error:
        raise _damaged(file, "its header is not as the format says") from error


def _stored(file: Path, begin: int, name: str, entry: dict[str, Any]) -> Stored:
    shape, (first, last) = tuple(map(int, entry["shape"])), map(int, entry["data_offsets"])
    return Stored(name, file, str(entry["dtype"]), shape, begin + first, last - first)


def of_model(folder: Path) -> dict[str, Stored]:
    """The tensors of the model in `folder`, file after file. Raises InvalidInput where one is missing or damaged."""
    names = sorted(set(files.read_json(folder / INDEX)["weight_map"].values())) if _is_sharded(folder) else [SINGLE]
    missing = [name for name in names if not (folder / Path(name).name).is_file()]
    if missing:
        raise InvalidInput(
            "base_incomplete",
            f"The base at {folder} lacks {', '.join(missing[:3])}.",
            allowed="Its weights must be whole, as safetensors (*.bin are not read: pickles can run code).",
            next="list_models()",
            done="Nothing was exported.",
        )
    return {name: stored for file in names for name, stored in of_file(folder / Path(file).name).items()}


def fingerprint(folder: Path) -> str:
    """What tells the model in `folder` from others of its shape: `TYPES:sha256`, whatever its shards.

    Over each tensor's name, type, shape and first KiB, so it costs no reading of the weights. Two copies of a model in
    different types have different ones; TYPES says that they cannot be compared.
    """
    digest = hashlib.sha256()
    samples: dict[str, bytes] = {}
    stored = of_model(folder)
    for file, group in groupby(stored.values(), key=lambda one: one.file):
        with file.open("rb") as opened:
            for one in group:
                opened.seek(one.offset)
                samples[one.name] = opened.read(min(SAMPLE_BYTES, one.nbytes))
    for name, sample in sorted(samples.items()):
        digest.update(f"{name} {stored[name].dtype} {stored[name].shape}\n".encode() + sample)
    return f"{types(stored.values())}:{digest.hexdigest()}"


def types(tensors: Iterable[Stored]) -> str:
    return "+".join(sorted({stored.dtype for stored in tensors}))


def _is_sharded(folder: Path) -> bool:
    return (folder / INDEX).is_file()


def _damaged(file: Path, why: str) -> InvalidInput:
    return InvalidInput(
        "weights_damaged",
        f"{file} is no whole safetensors file: {why}.",
        allowed="A copy or download that was cut off must be made again.",
        next="list_models()",
        done="Nothing was exported.",
    )

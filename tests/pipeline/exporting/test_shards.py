"""Safetensors block by block: what is written is what safetensors reads, and what it wrote is what is read."""

import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tunewright.pipeline.errors import InvalidInput
from tunewright.pipeline.exporting import shards, weights
from tunewright.pipeline.exporting.shards import Planned

TENSORS = {
    "matrix": torch.arange(35, dtype=torch.float32).reshape(7, 5),
    "half": torch.arange(6, dtype=torch.bfloat16),
    "experts": torch.arange(24, dtype=torch.float16).reshape(2, 3, 4),
    "flags": torch.tensor([True, False]),
    "one": torch.tensor(3, dtype=torch.int64),
    "none": torch.zeros(0, 4),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_every_tensor_is_read_whole_and_by_rows(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BLOCK_ELEMENTS", 10)
    stored = weights.of_file(file)
    assert stored.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert stored[name].shape == tensor.shape
        assert torch.equal(shards.rows(stored[name]), tensor), name
    assert torch.equal(shards.rows(stored["matrix"], 2, 4), TENSORS["matrix"][2:4])
    assert [len(block) for block in shards.blocks(stored["matrix"])] == [2, 2, 2, 1]


def test_a_copy_is_equal_and_safetensors_reads_it(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BLOCK_BYTES", 7)
    stored = weights.of_file(file)
    planned = [Planned(one.name, one.dtype, one.shape, one.nbytes) for one in stored.values()]
    target = tmp_path / "copy"
    target.mkdir()
    buffers = shards.Buffers()
    shards.write_model(target, planned, lambda tensor: shards.raw(stored[tensor.name], buffers))
    got = load_file(target / "model.safetensors")
    assert got.keys() == TENSORS.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in TENSORS.items())
    with safe_open(target / "model.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_blocks_that_wait_to_be_written_keep_their_values(tmp_path: Path) -> None:
    buffers = shards.Buffers()
    blocks = (buffers.to_write((1000,), torch.int32).fill_(number) for number in range(50))
    shards.write_model(tmp_path, [Planned("counted", "I32", (50, 1000), 200_000)], lambda tensor: blocks)
    got = load_file(tmp_path / "model.safetensors")["counted"]
    assert torch.equal(got, torch.arange(50, dtype=torch.int32)[:, None].expand(50, 1000))


def test_blocks_of_another_length_than_planned_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a has 8 bytes instead of 12"):
        shards.write_model(tmp_path, [Planned("a", "F32", (3,), 12)], lambda tensor: [torch.zeros(2)])


def test_tensors_are_equal_by_value_whatever_their_types(tmp_path: Path) -> None:
    values = torch.tensor([[1.5, 2.0]])
    given = {"a": values, "b": values.bfloat16(), "c": values + 1, "d": values.reshape(2).clone()}
    save_file(given, tmp_path / "x.safetensors")
    stored = weights.of_file(tmp_path / "x.safetensors")
    assert [shards.equal(stored["a"], stored[name]) for name in "abcd"] == [True, True, False, False]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no safetensors at all", struct.pack("<Q", 2**60) + b"{}"])
def test_what_is_no_safetensors_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InvalidInput, match="weights_damaged"):
        weights.of_file(tmp_path / "model.safetensors")


def test_a_fingerprint_tells_models_apart_but_not_their_shards(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one = {"a.weight": torch.randn(64, 64), "b.weight": torch.randn(64, 64)}
    changed = {**one, "b.weight": one["b.weight"] + 0.001}
    folders = [tmp_path / name for name in ("one", "two shards", "changed", "halved")]
    for folder in folders:
        folder.mkdir()
    save_file(one, folders[0] / "model.safetensors")
    planned = [Planned(name, "F32", (64, 64), 16384) for name in one]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "MAX_SHARD_BYTES", 16384)
        shards.write_model(folders[1], planned, lambda tensor: [one[tensor.name]])
    save_file(changed, folders[2] / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in one.items()}, folders[3] / "model.safetensors")
    first, sharded, other, half = map(weights.fingerprint, folders)
    assert len(list(folders[1].glob("*.safetensors"))) == 2
    assert first == sharded != other
    assert half.startswith("F16:") and first.startswith("F32:")

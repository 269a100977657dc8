import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from standins.checkpoints import ADAPTER, write_checkpoint

from tunewright.pipeline.training import checkpoints

Write = Callable[..., Path]
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a whole checkpoint after so many steps."""
    return partial(write_checkpoint, tmp_path)


def test_the_newest_is_the_one_with_the_most_steps_not_the_last_by_name(tmp_path: Path, write: Write) -> None:
    write(9)
    newest = write(100)
    write(20)
    assert checkpoints.newest(tmp_path) == newest
    assert checkpoints.steps(newest) == 100


def test_a_job_without_checkpoints_starts_anew(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path) is None
    assert checkpoints.last(tmp_path) is None


@pytest.mark.parametrize("cut", [0, 5, -1])
@pytest.mark.parametrize("name", [ADAPTER, *checkpoints.TORCH_FILES, checkpoints.STATE])
def test_a_checkpoint_with_a_file_cut_short_or_missing_is_removed_for_the_whole_one_before(
    tmp_path: Path, write: Write, name: str, cut: int
) -> None:
    whole, torn = write(10), write(20)
    if cut:
        (torn / name).write_bytes((torn / name).read_bytes()[:cut])
    else:
        (torn / name).unlink()
    assert checkpoints.last(tmp_path) == whole and torn.exists(), "who only looks deletes nothing"
    assert checkpoints.newest(tmp_path) == whole
    assert not torn.exists() and whole.exists()


@pytest.mark.parametrize("state", ["", '{"global_st', "{}", '{"global_step": 10}'])
def test_a_checkpoint_whose_state_is_torn_or_of_another_step_is_removed(
    tmp_path: Path, write: Write, state: str
) -> None:
    torn = write(20)
    (torn / checkpoints.STATE).write_text(state, encoding="utf-8")
    assert checkpoints.newest(tmp_path) is None
    assert not torn.exists()


def test_a_checkpoint_of_the_whole_model_is_whole_with_its_weights_or_all_their_shards(
    tmp_path: Path, write: Write
) -> None:
    single, sharded, torn = write(10, ("model.safetensors",)), write(20, SHARDS), write(30, SHARDS[:1])
    index = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[0]}})
    for folder in (sharded, torn):
        (folder / checkpoints.SHARDS).write_text(index, encoding="utf-8")
    assert checkpoints.newest(tmp_path) == sharded
    assert not torn.exists()
    (sharded / SHARDS[1]).unlink()
    assert checkpoints.newest(tmp_path) == single


def test_a_checkpoint_dates_from_when_it_was_complete(write: Write) -> None:
    folder = write(10)
    os.utime(folder / checkpoints.STATE, (1000, 1000))
    assert checkpoints.written_at(folder) == 1000

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tunewright.pipeline.training import checkpoints

Write = Callable[[int], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a whole checkpoint after so many steps."""

    def whole(steps: int) -> Path:
        folder = checkpoints.folder(tmp_path) / f"checkpoint-{steps}"
        folder.mkdir(parents=True)
        for name in checkpoints.NEEDED:
            (folder / name).write_bytes(b"x")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": steps}), encoding="utf-8")
        return folder

    return whole


def test_the_newest_is_the_one_with_the_most_steps_not_the_last_by_name(tmp_path: Path, write: Write) -> None:
    write(9)
    newest = write(100)
    write(20)
    assert checkpoints.newest(tmp_path) == newest


def test_a_job_without_checkpoints_starts_anew(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path) is None


@pytest.mark.parametrize("missing", checkpoints.NEEDED)
def test_a_checkpoint_that_lacks_a_file_is_removed_for_the_whole_one_before(
    tmp_path: Path, write: Write, missing: str
) -> None:
    whole, torn = write(10), write(20)
    (torn / missing).unlink()
    assert checkpoints.newest(tmp_path) == whole
    assert not torn.exists() and whole.exists()


@pytest.mark.parametrize("state", ["", '{"global_st', "{}", '{"global_step": 10}'])
def test_a_checkpoint_whose_state_is_torn_or_of_another_step_is_removed(
    tmp_path: Path, write: Write, state: str
) -> None:
    torn = write(20)
    (torn / "trainer_state.json").write_text(state, encoding="utf-8")
    assert checkpoints.newest(tmp_path) is None
    assert not torn.exists()


def test_older_whole_checkpoints_stay(tmp_path: Path, write: Write) -> None:
    older, newest = write(10), write(20)
    assert checkpoints.newest(tmp_path) == newest
    assert older.exists()

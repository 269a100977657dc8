import json
import os
import time
from collections import namedtuple
from pathlib import Path

import pytest

from tunewright.pipeline import files
from tunewright.pipeline.errors import InvalidInput, NoSpace
from tunewright.pipeline.settings import Home
from tunewright.pipeline.workspace import Workspace

Usage = namedtuple("Usage", "total used free")


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_a_new_folder_appears_only_when_its_block_ends(tmp_path: Path) -> None:
    final = tmp_path / "ds-1"
    with files.new_folder(final) as new:
        (new / "train.parquet").write_bytes(b"rows")
        assert not final.exists()
        assert new.parent == tmp_path  # the same disk, so that the rename is one step
    assert names(tmp_path) == {"ds-1"}
    assert (final / "train.parquet").read_bytes() == b"rows"


def test_a_block_that_raises_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), files.new_folder(tmp_path / "ds-1") as new:
        (new / "nested").mkdir()
        (new / "nested" / "train.parquet").write_bytes(b"half")
        raise KeyboardInterrupt
    assert names(tmp_path) == set()


def test_an_existing_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "ds-1").mkdir()
    (tmp_path / "ds-1" / "old").touch()
    with pytest.raises(FileExistsError), files.new_folder(tmp_path / "ds-1"):
        pytest.fail("the block must not run")
    assert names(tmp_path / "ds-1") == {"old"}


def test_what_an_earlier_process_of_the_same_pid_left_does_not_get_in(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), files.new_folder(tmp_path / "ds-1") as new:
        left = new.name
        raise RuntimeError
    (tmp_path / left).mkdir()
    (tmp_path / left / "torn").touch()
    with files.new_folder(tmp_path / "ds-1") as new:
        (new / "whole").touch()
    assert names(tmp_path / "ds-1") == {"whole"}


def test_what_an_owner_left_is_replaced_by_its_next_attempt_from_any_process(tmp_path: Path) -> None:
    (tmp_path / ".partial-job-x-ab12-ex-1").mkdir()
    (tmp_path / ".partial-job-x-ab12-ex-1" / "torn").touch()
    with files.new_folder(tmp_path / "ex-1", owner="job-x-ab12") as new:
        (new / "whole").touch()
    assert names(tmp_path) == {"ex-1"} and names(tmp_path / "ex-1") == {"whole"}


def test_a_reader_sees_the_old_text_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    files.write_json(path, {"step": 1})

    def fails(descriptor: int) -> None:
        raise OSError("the disk went away")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="went away"):
        files.write_json(path, {"step": 2})
    assert files.read_json(path) == {"step": 1}
    assert names(tmp_path) == {"state.json"}


def test_json_keeps_other_scripts_readable(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"名": "Zoë"})
    assert "名" in path.read_text(encoding="utf-8")
    assert json.loads(path.read_bytes()) == {"名": "Zoë"}


def test_opening_a_home_removes_stale_partials_of_every_kind_and_no_young_ones(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home")
    folders = [home.datasets, home.jobs, home.adapters, home.exports, home.models, home.cache]
    for folder in folders:
        for name in ("old", "young"):
            (folder / f"{files.PARTIAL}1-{name}").mkdir()
            (folder / f"{files.PARTIAL}1-{name}" / "file").touch()
        (folder / f"{files.PARTIAL}1-old.json").touch()
        (folder / "kept").mkdir()
        for name in ("1-old", "1-old.json"):
            long_ago = time.time() - files.STALE_PARTIAL_S - 60
            os.utime(folder / f"{files.PARTIAL}{name}", (long_ago, long_ago))
    Workspace.open(home.root).store.close()
    for folder in folders:
        assert names(folder) == {f"{files.PARTIAL}1-young", "kept"}, folder


def test_a_folder_with_other_things_is_no_home_and_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir(mode=0o755)
    (tmp_path / "shared" / "report.txt").touch()
    with pytest.raises(InvalidInput, match="not_a_data_home"):
        Home.open(tmp_path / "shared")
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o755
    assert [entry.name for entry in (tmp_path / "shared").iterdir()] == ["report.txt"]


def test_a_home_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o755)
    assert Home.open(tmp_path / "home").root.stat().st_mode & 0o777 == 0o700


def test_sizes_count_all_files_below(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(b"x" * 10)
    (tmp_path / "a" / "b" / "two").write_bytes(b"x" * 32)
    assert files.size_bytes(tmp_path / "a") == 42
    assert files.size_bytes(tmp_path / "a" / "one") == 10


def test_a_full_disk_is_refused_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: Usage(10**12, 0, 1_500_000_000))
    files.require_space(tmp_path, 1_400_000_000, "The export")
    with pytest.raises(NoSpace) as caught:
        files.require_space(tmp_path / "not" / "yet", 1_400_000_001, "The export")
    text = str(caught.value)
    assert text.startswith("no_disk_space: The export needs 1.50 GB")
    assert "1.50 GB are free" in text and "delete_artifact" in text and "Nothing was written." in text

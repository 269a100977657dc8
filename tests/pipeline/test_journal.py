"""Lines that were added stand in the file, to the last bit, whatever happened to the writer."""

from pathlib import Path

import pytest

from tunewright.pipeline import journal


def test_what_was_added_is_read_again_in_its_order(tmp_path: Path) -> None:
    file = tmp_path / "new" / "lines.jsonl"
    assert journal.read(file) == []
    values = [{"text": "zwei\nZeilen \u2028 \ud83d", "number": 0.1 + 0.2}, [1, None], "三"]
    journal.append(file, values[:2])
    journal.append(file, values[2:])
    assert journal.read(file) == values


@pytest.mark.parametrize("lost", [1, 7, 20])
def test_a_torn_line_is_taken_off_and_the_next_one_is_whole(tmp_path: Path, lost: int) -> None:
    file = tmp_path / "lines.jsonl"
    journal.append(file, ["first"])
    whole = file.read_bytes()
    journal.append(file, ["second, which is longer"])
    file.write_bytes(file.read_bytes()[:-lost])
    assert journal.read(file) == ["first"]
    assert file.read_bytes() == whole
    journal.append(file, ["third"])
    assert journal.read(file) == ["first", "third"]

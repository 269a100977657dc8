"""The journal keeps what was written whole, and only that."""

from pathlib import Path

import pytest

from tunewright.pipeline.validation.journal import Journal


def test_what_was_appended_is_there_for_the_next_process(tmp_path: Path) -> None:
    file = tmp_path / "checkpoints" / "journal.jsonl"
    value = [{"ids": [1, 2], "loss": [0.1 + 0.2, 3]}, {"ids": None, "loss": [float("inf"), 1]}]
    Journal(file).append("tuned/0", value)
    again = Journal(file)
    assert len(again) == 1 and "tuned/0" in again and "base/0" not in again
    assert again["tuned/0"] == value, "to the last bit"
    with pytest.raises(KeyError):
        again["base/0"]


@pytest.mark.parametrize("kept_bytes", [1, 20, 60])
def test_a_torn_line_is_taken_off_and_written_again(tmp_path: Path, kept_bytes: int) -> None:
    file = tmp_path / "journal.jsonl"
    journal = Journal(file)
    journal.append("tuned/0", ["first"])
    whole = file.read_bytes()
    journal.append("tuned/1", ["x" * 80])
    file.write_bytes(file.read_bytes()[: len(whole) + kept_bytes])
    again = Journal(file)
    assert file.read_bytes() == whole
    assert "tuned/0" in again and "tuned/1" not in again
    again.append("tuned/1", ["second"])
    assert Journal(file)["tuned/1"] == ["second"]

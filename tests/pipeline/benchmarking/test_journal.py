"""What is answered stays answered; what a kill has torn is asked again, and only that."""

from dataclasses import replace
from pathlib import Path

from tunewright.pipeline.benchmarking.journal import Answered, Journal

EXPECTED = {"law": 2, "logic": 2}


def entries(model: str, subject: str) -> list[Answered]:
    one = Answered(model, subject, 0, "A", "B", False, 5, [-1.0, -0.5, -2.0, -3.0])
    return [one, replace(one, number=1, gold="B", correct=True)]


def test_a_new_journal_over_the_same_file_knows_what_was_answered(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "samples.jsonl"
    Journal(file, EXPECTED).append(entries("base", "law"))
    again = Journal(file, EXPECTED)
    assert again.entries == entries("base", "law")
    assert again.done == {("base", "law")}


def test_of_a_torn_subject_nothing_counts_and_it_can_be_written_again(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    journal = Journal(file, EXPECTED)
    journal.append(entries("base", "law"))
    whole = file.read_bytes()
    journal.append(entries("base", "logic"))
    both = file.read_bytes()
    for length in (*range(len(whole), len(both), 29), len(both) - 1):
        file.write_bytes(both[:length])
        again = Journal(file, EXPECTED)
        assert again.done == {("base", "law")}
        assert file.read_bytes() == whole
        again.append(entries("base", "logic"))
        assert file.read_bytes() == both

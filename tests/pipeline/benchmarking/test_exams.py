"""Exams are found and read in the layouts that people have, and refused with what is wrong."""

from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline.benchmarking import exams, subjects
from tunewright.pipeline.benchmarking.exams import BENCHMARKS, Question, Solved
from tunewright.pipeline.errors import InvalidInput, NotFound

CEVAL, CMMLU, MMLU = BENCHMARKS["ceval"], BENCHMARKS["cmmlu"], BENCHMARKS["mmlu"]


def test_the_subjects_are_those_of_their_authors() -> None:
    assert [len(table) for table in (subjects.CEVAL, subjects.CMMLU, subjects.MMLU)] == [52, 67, 57]
    sizes = {group: sum(group in groups for _, groups in subjects.CEVAL.values()) for group in
             ("STEM", "Social Science", "Humanities", "Other", "Hard")}  # fmt: skip
    # The paper's table 1, and its Hard benchmark.
    assert sizes == {"STEM": 20, "Social Science": 10, "Humanities": 11, "Other": 11, "Hard": 8}
    assert subjects.CEVAL["high_school_physics"] == ("高中物理", ("STEM", "Hard"))
    assert subjects.CMMLU["ethnology"] == ("民族学", ("Social Science", "China specific"))
    assert subjects.MMLU["us_foreign_policy"] == ("us foreign policy", ("Social Science",))


def test_the_four_real_subjects_are_read_whole(ceval: Path) -> None:
    assert exams.subjects_in(CEVAL, ceval) == ["computer_network", "high_school_physics", "law", "basic_medicine"]
    law = exams.read(CEVAL, ceval, "law", with_examples=True, limit=None)
    assert (len(law.examples), len(law.questions), len(law.key)) == (5, 24, 24)
    assert law.examples[0].letter == "B"
    assert law.questions[0].text == "下列关于法律推理的表述，能够成立的是____。"
    assert law.questions[0].options[0] == "演绎推理是一种或然性推理"
    assert law.key[:3] == ["C", "D", "D"]


@pytest.mark.parametrize("below", ["", "ceval", "ceval-exam", "data/ceval"])
def test_the_folder_is_found_by_itself_or_below(tmp_path: Path, bench: Any, below: str) -> None:
    bench.write_exam(tmp_path / below, {"law": 4})
    assert exams.find_root(CEVAL, tmp_path) == tmp_path / below


def test_a_folder_that_holds_nothing_or_several_or_no_answers_is_refused(tmp_path: Path, bench: Any) -> None:
    with pytest.raises(NotFound, match="no folder"):
        exams.find_root(CEVAL, tmp_path / "gone")
    with pytest.raises(NotFound, match=r"no_questions: .*val/SUBJECT_val\.csv"):
        exams.find_root(CEVAL, tmp_path)
    bench.write_csv(tmp_path / "test" / "law_test.csv", [["0", "q", "a", "b", "c", "d"]])
    with pytest.raises(InvalidInput, match=r"no_answers: .*does not publish"):
        exams.find_root(CEVAL, tmp_path)
    for name in ("one", "two"):
        bench.write_exam(tmp_path / name, {"law": 4})
    with pytest.raises(InvalidInput, match="several_benchmarks"):
        exams.find_root(CEVAL, tmp_path)


def test_the_layouts_of_cmmlu_and_mmlu_are_read(tmp_path: Path, bench: Any) -> None:
    bench.write_csv(tmp_path / "c/test/agronomy.csv", [["0", "问", "1", "2", "3", "4", "C"]],
                    ["", "Question", "A", "B", "C", "D", "Answer"])  # fmt: skip
    read = exams.read(CMMLU, exams.find_root(CMMLU, tmp_path / "c"), "agronomy", with_examples=False, limit=None)
    assert (read.questions, read.key) == ([Question("问", ("1", "2", "3", "4"))], ["C"])
    bench.write_csv(tmp_path / "m/test/anatomy_test.csv", [["Why, so?", "1", "2", "3", "4", "B"]] * 2)
    read = exams.read(MMLU, exams.find_root(MMLU, tmp_path / "m"), "anatomy", with_examples=False, limit=None)
    assert (len(read.questions), read.questions[0].text, read.key) == (2, "Why, so?", ["B", "B"])


def test_a_wish_names_subjects_or_groups(ceval: Path) -> None:
    there = exams.subjects_in(CEVAL, ceval)
    assert exams.chosen(CEVAL, there, None) == there
    assert exams.chosen(CEVAL, there, ["law", "Hard"]) == ["high_school_physics", "law"]
    with pytest.raises(InvalidInput, match=r"unknown_subject: .*'lew'.*law.*Groups: .*STEM"):
        exams.chosen(CEVAL, there, ["lew"])


def test_a_set_of_ones_own_in_the_same_layout_has_no_groups(tmp_path: Path, bench: Any) -> None:
    root = bench.write_exam(tmp_path, {"my_exam": 4, "law": 4})
    assert exams.subjects_in(CEVAL, root) == ["law", "my_exam"]
    assert CEVAL.described("my_exam") == ("my exam", ())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("id,question,A,B,C,D\n0,q,1,2,3,4\n", "missing_columns: .*no column answer"),
        ("id,question,A,B,C,D,answer\n0,q,1,2,3,4,A\n1,q,1,2,3,4,E\n", "unusable_question: Row 3 of .*'E'"),
        ("q,1,2,3,4\n", "unusable_question: Row 1 of"),
        (b"id,question\n0,\xff\xfe\n", "not_a_csv"),
    ],
)
def test_a_file_that_is_not_what_it_must_be_is_refused_by_row(tmp_path: Path, content: str | bytes, said: str) -> None:
    file = tmp_path / "law_val.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidInput, match=said):
        exams.read_csv(file)


def test_missing_examples_are_refused_only_where_they_are_wanted(tmp_path: Path, bench: Any) -> None:
    root = bench.write_exam(tmp_path, {"law": 4})
    (root / "dev" / "law_dev.csv").unlink()
    with pytest.raises(InvalidInput, match=r"no_examples.*n_shot=0"):
        exams.read(CEVAL, root, "law", with_examples=True, limit=None)
    assert not exams.read(CEVAL, root, "law", with_examples=False, limit=None).examples


def test_a_limit_takes_the_first_questions_and_an_example_that_is_asked_is_no_example() -> None:
    solved = [Solved(Question(f"q{n}", ("1", "2", "3", "4")), "ABCD"[n % 4]) for n in range(6)]
    found = exams.exam("law", [solved[0], solved[5]], solved, 2)
    assert (found.key, [one.question.text for one in found.examples]) == (["A", "B"], ["q5"])

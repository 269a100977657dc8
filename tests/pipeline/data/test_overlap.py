"""Which questions of a benchmark are found in texts, and which folders are benchmarks."""

import json
import pickle
from pathlib import Path

import pytest

from tunewright.pipeline.data.overlap import Benchmark, load
from tunewright.pipeline.errors import InvalidInput, NotFound

ENGLISH = "A 45-year-old man has a painless genital ulcer with a firm base. Which organism is the most likely cause?"
CHINESE = "使用位填充方法，以01111110为位首flag，数据为011011111111111111110010，求问传送时要添加几个0____"
LAW = "甲以非法占有为目的，虚构事实骗取乙的财物，数额巨大。下列关于甲的行为的说法，正确的是____。"
SHORT = "What is 12 × 11?"
BLANK = "____是法国的首都。"
CEVAL = f"id,question,A,B,C,D,answer\n0,{CHINESE},1,2,3,4,C\n1,{LAW},盗窃罪,诈骗罪,侵占罪,抢夺罪,B\n"


@pytest.fixture
def benchmark() -> Benchmark:
    made = Benchmark()
    for name, question in {"english": ENGLISH, "chinese": CHINESE, "law": LAW, "short": SHORT, "blank": BLANK}.items():
        made.add(name, question)
    return made


FOUND = {
    "verbatim": (ENGLISH, ["english"]),
    "inside a longer text": (f"Answer with one letter.\n\n{ENGLISH}\nA. Treponema\nB. Herpes\nAnswer:", ["english"]),
    "in other letters and marks": (ENGLISH.upper().replace(".", " …").replace("-", " "), ["english"]),
    "with its end changed": (ENGLISH.replace("the most likely cause?", "to blame?"), ["english"]),
    "in Chinese with its options": (f"请选择：{LAW}\nA. 盗窃罪 B. 诈骗罪 C. 侵占罪 D. 抢夺罪", ["law"]),
    "in Chinese with other marks": (CHINESE.replace("，", ", ").replace("____", "？"), ["chinese"]),
    "two at once": (f"{CHINESE}\n{ENGLISH}", ["chinese", "english"]),
    "a short one without its blank": ("题目\n……是法国的首都。", ["blank"]),
    "a short one on a line of its own": ("Question 3\nwhat is 12 x 11\n".replace(" x ", " × "), ["short"]),
}


@pytest.mark.parametrize(("text", "names"), FOUND.values(), ids=FOUND)
def test_a_question_that_stands_in_a_text_is_named(benchmark: Benchmark, text: str, names: list[str]) -> None:
    assert sorted(benchmark.overlaps(text)) == names


NOT_FOUND = {
    "the same subject": "A painless ulcer suggests primary syphilis; Treponema pallidum is what causes it.",
    "its first half alone": ENGLISH[: len(ENGLISH) // 2],
    "a phrase that questions share": "下列关于甲的行为的说法，正确的是哪一项？请说明理由。",
    "a short one inside a sentence": "You asked what is 12 × 11? It is 132.",
    "reworded": "Name the germ behind a firm and painless sore on the genitals of a man aged 45.",
    "nothing": "",
}


@pytest.mark.parametrize("text", NOT_FOUND.values(), ids=NOT_FOUND)
def test_what_only_resembles_a_question_is_not_named(benchmark: Benchmark, text: str) -> None:
    assert benchmark.overlaps(text) == []


@pytest.mark.parametrize("before", range(60))
def test_a_question_is_found_wherever_it_begins(benchmark: Benchmark, before: int) -> None:
    assert benchmark.overlaps("x" * before + ENGLISH) == ["english"]
    assert benchmark.overlaps("字" * before + CHINESE) == ["chinese"]


def test_questions_that_share_their_wording_are_told_apart() -> None:
    made = Benchmark()
    drugs = ["aspirin", "ibuprofen", "warfarin", "metformin", "digoxin", "lithium", "heparin", "insulin"]
    for drug in drugs:
        made.add(
            drug, f"Which of the following statements about the treatment of adults with {drug} is correct and why?"
        )
    text = "Which of the following statements about the treatment of adults with digoxin is correct and why? Think."
    assert "digoxin" in made.overlaps(text)


def test_a_benchmark_survives_the_way_to_another_process(benchmark: Benchmark) -> None:
    assert pickle.loads(pickle.dumps(benchmark)).overlaps(ENGLISH) == ["english"]


def test_cevals_folders_are_read_and_questions_named_by_file_and_row(tmp_path: Path) -> None:
    for split in ("dev", "val", "test"):
        (tmp_path / split).mkdir()
    (tmp_path / "val" / "law_val.csv").write_text(CEVAL, encoding="utf-8-sig")
    (tmp_path / "test" / "law_test.csv").write_text("id,question,A,B,C,D\n0,太短?,1,2,3,4\n", encoding="utf-8")
    made = load(tmp_path)
    assert made.overlaps(f"题目：{LAW}") == ["val/law_val.csv 2"]
    assert made.overlaps(CHINESE) == ["val/law_val.csv 1"]


@pytest.mark.parametrize("column", ["question", "Prompt", "problem", "input"])
@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_other_benchmarks_are_read_by_their_question_column(tmp_path: Path, suffix: str, column: str) -> None:
    rows = [{"id": 7, column: ENGLISH, "answer": "A"}]
    text = {
        "json": json.dumps({"version": 1, "data": rows}),
        "jsonl": json.dumps(rows[0]) + "\n\n",
        "csv": f'id,{column},answer\n7,"{ENGLISH}",A\n',
    }[suffix]
    (tmp_path / f"quiz.{suffix}").write_text(text, encoding="utf-8")
    assert load(tmp_path).overlaps(ENGLISH) == [f"quiz.{suffix} 1"]


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"^benchmark_not_found: .*nowhere"):
        load(tmp_path / "nowhere")


def test_a_folder_without_questions_is_refused_with_the_columns_that_would_do(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1,hello\n", encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"^no_benchmark_questions: .*files read: 1.*question, prompt, problem"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b'{"question": '),
        ("a.jsonl", b'{"question": "Why so?"}\nno json\n'),
        ("a.csv", b"question\n\xff\xfe\x00"),
    ],
)
def test_a_broken_file_is_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=rf"^broken_benchmark: .*{name} cannot be read: "):
        load(tmp_path)

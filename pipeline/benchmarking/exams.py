"""The multiple-choice exams: their form, what a question is, and reading them from a folder in their own layout. Light.

A question and its answer are two objects from the moment they are read: whatever makes prompts is given questions.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tunewright.pipeline.benchmarking import subjects
from tunewright.pipeline.benchmarking.subjects import Groups
from tunewright.pipeline.errors import InvalidInput, NotFound, call, nearest

LETTERS = ("A", "B", "C", "D")
CHANCE = 1 / len(LETTERS)
# All three hold five questions with answers for each subject in dev/.
MOST_SHOTS = 5


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as its authors publish it: where its questions lie, and the words of its prompt.

    The `split` that is scored is the one whose answers are public. `suffixed` files are called SUBJECT_SPLIT.csv,
    others SUBJECT.csv. `header` takes the subject's name; `space` stands before the letter of a plain prompt.
    """

    name: str
    title: str
    hub_id: str
    split: str
    suffixed: bool
    header: str
    lead: str
    cue: str
    space: str
    subjects: dict[str, tuple[str, Groups]]

    def file(self, root: Path, split: str, subject: str) -> Path:
        return root / split / (f"{subject}_{split}.csv" if self.suffixed else f"{subject}.csv")

    def described(self, subject: str) -> tuple[str, Groups]:
        """What a subject is called in prompts, and its groups; one that is not the benchmark's own has none."""
        return self.subjects.get(subject, (subject.replace("_", " "), ()))


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        # github.com/hkust-nlp/ceval, code/evaluator_series/evaluators/llama.py
        Benchmark(
            "ceval", "C-Eval", "ceval/ceval-exam", "val", True,
            "以下是中国关于{}考试的单项选择题，请选出其中的正确答案。\n\n", "", "答案：", "", subjects.CEVAL,
        ),
        # github.com/haonan-li/CMMLU, src/mp_utils.py
        Benchmark(
            "cmmlu", "CMMLU", "haonan-li/cmmlu", "test", False,
            "以下是关于{}的单项选择题，请直接给出正确答案的选项。\n\n", "题目：", "答案是：", "", subjects.CMMLU,
        ),
        # github.com/hendrycks/test, evaluate.py
        Benchmark(
            "mmlu", "MMLU", "cais/mmlu", "test", True,
            "The following are multiple choice questions (with answers) about {}.\n\n", "", "Answer:", " ",
            subjects.MMLU,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """What is asked: the text and its four options, in the order of `LETTERS`."""

    text: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Solved:
    """A question of dev with its letter: an example in prompts."""

    question: Question
    letter: str


@dataclass
class Exam:
    """One subject: `key` holds the letters of `questions`, in order."""

    subject: str
    examples: list[Solved] = field(default_factory=list[Solved])
    questions: list[Question] = field(default_factory=list[Question])
    key: list[str] = field(default_factory=list[str])


def exam(subject: str, examples: Sequence[Solved], scored: Sequence[Solved], limit: int | None) -> Exam:
    """The exam of a subject: its first `limit` questions. An example that is one of them is no example: it would give
    the answer away.
    """
    wanted = scored[:limit]
    asked = {one.question for one in wanted}
    fair = [example for example in examples if example.question not in asked]
    return Exam(subject, fair, [one.question for one in wanted], [one.letter for one in wanted])


def find_root(benchmark: Benchmark, folder: Path) -> Path:
    """The folder that holds dev/ and the scored split: `folder` itself, or the one such below it, two levels deep.

    Raises NotFound, and InvalidInput where there are several, or where only questions without answers are there.
    """
    folder = folder.expanduser().absolute()
    again = call("benchmark_adapter", adapter_id="…", task=benchmark.name, task_dir="…")
    if not folder.is_dir():
        what = f"{folder} is a file." if folder.exists() else f"There is no folder {folder}."
        allowed = f"A folder with dev/ and {benchmark.split}/ in it, as {benchmark.title} comes."
        raise NotFound("task_dir_not_found", what, allowed=allowed, next=again)
    candidates = [folder, *sorted(folder.glob("*/")), *sorted(folder.glob("*/*/"))]
    found = [path for path in candidates if _files(benchmark, path, benchmark.split)]
    if len(found) > 1 and found[0] != folder:
        raise InvalidInput(
            "several_benchmarks", f"{folder} holds {len(found)} folders that look like {benchmark.title}.",
            allowed=f"Name one: {', '.join(map(str, found[:5]))}.", next=again,
        )  # fmt: skip
    if found:
        return found[0]
    unanswered = next((path for path in candidates if _files(benchmark, path, "test")), None)
    if unanswered is not None:
        raise InvalidInput(
            "no_answers", f"{unanswered} holds only test/, whose answers {benchmark.title} does not publish.",
            allowed=f"What can be scored here is {benchmark.split}/, with the examples of dev/.", next=again,
        )  # fmt: skip
    pattern = benchmark.file(Path(), benchmark.split, "SUBJECT")
    raise NotFound(
        "no_questions", f"{folder} holds no {pattern} of {benchmark.title}, nor do the folders in it.",
        allowed=f"Its layout: {benchmark.file(Path(), 'dev', 'SUBJECT')} for examples, {pattern} for questions. "
        f"Without task_dir it is fetched from the Hub ({benchmark.hub_id}).", next=again,
    )  # fmt: skip


def _files(benchmark: Benchmark, root: Path, split: str) -> list[Path]:
    return sorted((root / split).glob(f"*_{split}.csv" if benchmark.suffixed else "*.csv"))


def subjects_in(benchmark: Benchmark, root: Path) -> list[str]:
    """The subjects of a folder, the benchmark's own first and in its order, then others by name."""
    suffix = f"_{benchmark.split}" if benchmark.suffixed else ""
    there = [path.stem.removesuffix(suffix) for path in _files(benchmark, root, benchmark.split)]
    own = [subject for subject in benchmark.subjects if subject in there]
    return own + [subject for subject in there if subject not in benchmark.subjects]


def chosen(benchmark: Benchmark, there: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    """Those of `there` that are `wanted`, each by its name or a group's; all without a wish. Raises InvalidInput."""
    if wanted is None:
        return list(there)
    groups = {group for subject in there for group in benchmark.described(subject)[1]}
    for name in wanted:
        if name not in there and name not in groups:
            raise InvalidInput(
                "unknown_subject", f"{benchmark.title} has no subject {name!r} here.",
                allowed=f"{nearest(name, list(there))} Groups: {', '.join(sorted(groups)) or 'none'}.",
                next=call("benchmark_adapter", adapter_id="…", task=benchmark.name, subjects=list(there[:3])),
            )  # fmt: skip
    return [subject for subject in there if {subject, *benchmark.described(subject)[1]} & set(wanted)]


def read(benchmark: Benchmark, root: Path, subject: str, *, with_examples: bool, limit: int | None) -> Exam:
    """The exam of a subject from its files. Raises InvalidInput where one is missing or not what it must be."""
    examples: list[Solved] = []
    if with_examples:
        file = benchmark.file(root, "dev", subject)
        if not file.is_file():
            raise InvalidInput(
                "no_examples", f"There is no {file}.",
                allowed="Examples come from dev/ alone, never from the questions; n_shot=0 needs none.",
                next=call("benchmark_adapter", adapter_id="…", task=benchmark.name, task_dir=str(root), n_shot=0),
            )  # fmt: skip
        examples = read_csv(file)
    return exam(subject, examples, read_csv(benchmark.file(root, benchmark.split, subject)), limit)


def read_csv(file: Path) -> list[Solved]:
    """The questions of a file: columns question, A to D and answer by name, or without a header in that order (MMLU).

    Raises InvalidInput naming the row.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = [row for row in csv.reader(opened) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput("not_a_csv", f"{file} is no CSV in UTF-8: {error}.") from error
    columns = [cell.strip().lower() for cell in rows[0]] if rows else []
    names = ["question", *(letter.lower() for letter in LETTERS), "answer"]
    if "question" in columns:
        missing = [name for name in names if name not in columns]
        if missing:
            raise InvalidInput("missing_columns", f"{file} has no column {', '.join(missing)}.", allowed=_NEEDED)
        places, first = [columns.index(name) for name in names], 2
    else:
        places, first = list(range(len(names))), 1
    return [_solved(file, number, row, places) for number, row in enumerate(rows[first - 1 :], first)]


_NEEDED = "Needed: question, A, B, C, D, answer (a letter); questions without answers cannot be scored."


def _solved(file: Path, number: int, row: Sequence[str], places: Sequence[int]) -> Solved:
    cells = [row[place].strip() if place < len(row) else "" for place in places]
    text, *options, letter = cells
    if letter not in LETTERS or not text:
        raise InvalidInput("unusable_question", f"Row {number} of {file} has the answer {letter!r}.", allowed=_NEEDED)
    return Solved(Question(text, tuple(options)), letter)

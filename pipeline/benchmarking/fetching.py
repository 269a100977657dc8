"""The exams from the Hugging Face Hub, through `datasets`. Heavy when called: for workers."""

from collections.abc import Callable, Sequence
from typing import Any

from tunewright.pipeline.benchmarking.exams import LETTERS, Benchmark, Exam, Question, Solved, exam
from tunewright.pipeline.data import hub
from tunewright.pipeline.data.hub import RemoteDataset
from tunewright.pipeline.errors import InvalidInput, TunewrightError, call
from tunewright.pipeline.workspace import Workspace


def fetch(
    workspace: Workspace, benchmark: Benchmark, subjects: Sequence[str], *, with_examples: bool, limit: int | None,
    on_subject: Callable[[int], None],
) -> list[Exam]:  # fmt: skip
    """The exams of `subjects`, each a configuration of the benchmark's dataset. `on_subject(number)` precedes each.

    Raises Unavailable, NotFound or InvalidInput as `data.hub` does, with what to do instead.
    """
    found: list[Exam] = []
    for number, subject in enumerate(subjects):
        on_subject(number)
        examples = _rows(workspace, benchmark, subject, "dev") if with_examples else []
        found.append(exam(subject, examples, _rows(workspace, benchmark, subject, benchmark.split), limit))
    return found


def _rows(workspace: Workspace, benchmark: Benchmark, subject: str, split: str) -> list[Solved]:
    remote = RemoteDataset("huggingface", benchmark.hub_id, subject, split)
    try:
        return [_solved(remote, row) for block in hub.blocks(remote, None, workspace) for _, row in block.parsed()]
    except TunewrightError as error:
        raise type(error)(
            error.code, error.what,
            allowed=f"Download {benchmark.hub_id} elsewhere and give its folder, or name a mirror in HF_ENDPOINT.",
            next=call("benchmark_adapter", adapter_id="…", task=benchmark.name, task_dir="…"),
        ) from error  # fmt: skip


def _solved(remote: RemoteDataset, row: Any) -> Solved:
    """A row of the three datasets: options as columns A to D or as a list, the answer as a letter or its number."""
    cells: dict[str, Any] = {name.lower(): value for name, value in row.items()}
    options = cells.get("choices") or [cells.get(letter.lower()) for letter in LETTERS]
    answer = cells.get("answer")
    letter = LETTERS[answer] if isinstance(answer, int) and 0 <= answer < len(LETTERS) else answer
    if letter not in LETTERS or len(options) != len(LETTERS):
        raise InvalidInput(
            "unusable_question", f"{remote.id} {remote.config}/{remote.split} has the answer {answer!r}."
        )
    question = Question(str(cells["question"]).strip(), tuple(str(option).strip() for option in options))
    return Solved(question, letter)

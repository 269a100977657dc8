"""Who answers an exam: the tuned model and its base in transformers, an export in llama.cpp. Light until loaded.

All of them are given the same token ids and say how probable each letter is as the next token; no text is generated.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.pipeline.benchmarking.exams import LETTERS, Exam
from tunewright.pipeline.benchmarking.journal import Answered
from tunewright.pipeline.benchmarking.prompts import Batch, Prompter
from tunewright.pipeline.benchmarking.results import BASE, TUNED
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import TunewrightError, call
from tunewright.pipeline.exporting.runtime import LlamaRuntime
from tunewright.pipeline.inference.subject import Subject

if TYPE_CHECKING:
    import numpy as np

LOG = "llama.log"
ROOM_TOKENS = 8
# (prefix, rows, candidates) -> log-probabilities, one line a row and one column a candidate.
Choices = Callable[[list[int], Sequence[list[int]], Sequence[int]], "np.ndarray[Any, Any]"]


@dataclass
class InTransformers:
    """The engine, made once: base and tuned model from one copy of the weights where an adapter stands beside them."""

    context: JobContext
    _engine: Any = None

    def choices(self, subject: Subject, which: str) -> Choices:
        """Loads what is not loaded yet. Raises as the engine does."""
        from tunewright.pipeline.inference.engine import Engine

        self._engine = self._engine or Engine()
        whole = subject.adapter_path is None
        # The adapter stays loaded beside the base, which answers with it off.
        self._engine.load(subject.untrained if whole and which == BASE else subject)
        adapter_id = subject.adapter_id if which == TUNED and not whole else None

        def ask(prefix: list[int], rows: Sequence[list[int]], candidates: Sequence[int]) -> "np.ndarray[Any, Any]":
            return self._engine.choices(
                prefix, rows, candidates, adapter_id=adapter_id, check=self.context.check_cancelled
            )

        return ask

    def unload(self) -> None:
        if self._engine is not None:
            self._engine.unload()


@contextmanager
def in_llama(context: JobContext, gguf: Path, longest_tokens: int) -> Generator[Choices]:
    """The file in llama.cpp, for prompts up to `longest_tokens`. Raises TunewrightError where it cannot be loaded."""
    import numpy as np

    with LlamaRuntime(
        gguf, log=context.folder / LOG, n_ctx=longest_tokens + ROOM_TOKENS, check_cancelled=context.check_cancelled
    ) as runtime:

        def ask(prefix: list[int], rows: Sequence[list[int]], candidates: Sequence[int]) -> "np.ndarray[Any, Any]":
            found: list[list[float]] = []
            for row in rows:
                context.check_cancelled()
                found.append(runtime.choices([*prefix, *row], candidates))
            return np.array(found)

        yield ask


@dataclass(frozen=True)
class Paper:
    """An exam made ready for one tokenizer: its prompts, and the numbers of questions that no prompt has room for."""

    exam: Exam
    batches: list[Batch]
    too_long: list[int]

    @classmethod
    def of(cls, prompter: Prompter, exam: Exam, n_shot: int) -> "Paper":
        return cls(exam, *prompter.batches(exam.subject, exam.examples, exam.questions, n_shot))

    @property
    def size(self) -> int:
        """How many of its questions can be asked."""
        return sum(len(batch.rows) for batch in self.batches)

    @property
    def longest_tokens(self) -> int:
        return max((len(batch.prefix) + len(row) for batch in self.batches for row in batch.rows), default=0)


def answer(paper: Paper, model: str, choices: Choices) -> list[Answered]:
    """A subject answered: of every question that can be asked, the most probable letter, the first of equals.

    Raises TunewrightError where a model gives no numbers.
    """
    import numpy as np

    entries: list[Answered] = []
    for batch in paper.batches:
        found = np.asarray(choices(batch.prefix, batch.rows, batch.letters), dtype=np.float64)
        if not np.isfinite(found).all():
            raise TunewrightError(
                "no_probabilities", f"The {model} model gives {found[~np.isfinite(found)][0]} for letters.",
                allowed="Its numbers overflow: the adapter or the file is broken.",
                next=call("list_artifacts", kind="adapter"), done="What was answered before is kept.",
            )  # fmt: skip
        found -= np.logaddexp.reduce(found, axis=1, keepdims=True)
        for number, row in zip(batch.numbers, found, strict=True):
            gold, chosen = paper.exam.key[number], LETTERS[int(row.argmax())]
            logprobs = [round(float(value), 4) for value in row]
            entries.append(
                Answered(model, paper.exam.subject, number, gold, chosen, gold == chosen, batch.shots, logprobs)
            )
    return sorted(entries, key=lambda entry: entry.number)

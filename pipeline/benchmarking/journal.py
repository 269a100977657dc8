"""What was answered, kept by model and subject as each is finished, so that a killed job scores no question twice.

One JSON line a question. A subject's lines are on the disk together before the next begins; of a subject torn by a kill
nothing counts, and it is answered anew.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tunewright.pipeline import files, journal


@dataclass(frozen=True)
class Answered:
    """One question (`number` in its subject's exam) and the letter with the highest probability.

    `logprobs` are the natural logarithms of the four letters' probabilities, taken as if there were no other token.
    """

    model: str
    subject: str
    number: int
    gold: str
    chosen: str
    correct: bool
    shots: int
    logprobs: list[float]


class Journal:
    """The journal at `path`, made where it is missing; whole subjects alone, of which `expected` tells the sizes."""

    def __init__(self, path: Path, expected: Mapping[str, int]) -> None:
        entries = [Answered(**entry) for entry in journal.read(path)]
        counts = Counter((entry.model, entry.subject) for entry in entries)
        self.entries = [entry for entry in entries if counts[entry.model, entry.subject] == expected[entry.subject]]
        self._path = path
        if len(self.entries) < len(entries):
            files.write_text(path, "".join(journal.line(asdict(entry)) for entry in self.entries))

    @property
    def done(self) -> set[tuple[str, str]]:
        """The (model, subject) pairs that are finished."""
        return {(entry.model, entry.subject) for entry in self.entries}

    def append(self, entries: Sequence[Answered]) -> None:
        """Adds a whole subject of one model; on the disk after return."""
        journal.append(self._path, map(asdict, entries))
        self.entries += entries

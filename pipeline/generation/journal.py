"""What the teacher answered, kept as it comes (`pipeline/journal.py`): one line an answer, before it is used."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tunewright.pipeline import journal


@dataclass(frozen=True)
class Entry:
    """One answer: the `number`th example asked for from a chunk, as the teacher wrote it or judged it.

    `requests` went out since the entry before, those of retries too.
    """

    step: Literal["write", "judge"]
    chunk: str
    number: int
    text: str
    requests: int
    prompt_tokens: int
    completion_tokens: int


class Journal:
    """The journal at `path`, made where it is missing. `entries` are those of earlier runs."""

    def __init__(self, path: Path) -> None:
        self.entries = [Entry(**entry) for entry in journal.read(path)]
        self._path = path

    def append(self, entry: Entry) -> None:
        """Adds an entry; on the disk after return."""
        journal.append(self._path, [asdict(entry)])

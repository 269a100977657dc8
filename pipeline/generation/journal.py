"""What the teacher answered, kept as it comes, so that a job that was killed asks nothing twice.

One JSON line an answer, on the disk before it is used. A line torn by a kill or a power cut is taken off at the next
start; only that answer is asked for again.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal


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
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
        self.entries = [Entry(**json.loads(line)) for line in content[:whole].splitlines()]
        self._path = path

    def append(self, entry: Entry) -> None:
        """Adds an entry; on the disk after return."""
        with self._path.open("ab") as file:
            # Escaped: a teacher may send half of a surrogate pair, which UTF-8 cannot hold.
            file.write(json.dumps(asdict(entry), ensure_ascii=True).encode("ascii") + b"\n")
            file.flush()
            os.fsync(file.fileno())

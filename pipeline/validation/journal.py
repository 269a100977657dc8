"""What was measured, kept as it comes, so that a job that was killed measures nothing twice.

One JSON line a part of the work, on the disk before it is used. A line torn by a kill or a power cut is taken off at
the next start; only that part is done again.
"""

import json
import os
from pathlib import Path
from typing import Any


class Journal:
    """The journal at `path`, made where it is missing; its lines by key."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
        self._path = path
        self._lines: dict[str, Any] = {}
        for line in content[:whole].splitlines():
            entry = json.loads(line)
            self._lines[entry["key"]] = entry["value"]

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, key: str) -> bool:
        return key in self._lines

    def __getitem__(self, key: str) -> Any:
        return self._lines[key]

    def append(self, key: str, value: Any) -> None:
        """Adds a line; on the disk after return."""
        with self._path.open("ab") as file:
            file.write(json.dumps({"key": key, "value": value}).encode("ascii") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._lines[key] = value

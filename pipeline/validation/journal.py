"""What was measured, kept as it comes (`pipeline/journal.py`): one line a part of the work, under its key."""

from pathlib import Path
from typing import Any

from tunewright.pipeline import journal


class Journal:
    """The journal at `path`, made where it is missing; its lines by key."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: dict[str, Any] = {entry["key"]: entry["value"] for entry in journal.read(path)}

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, key: str) -> bool:
        return key in self._lines

    def __getitem__(self, key: str) -> Any:
        return self._lines[key]

    def append(self, key: str, value: Any) -> None:
        """Adds a line; on the disk after return."""
        journal.append(self._path, [{"key": key, "value": value}])
        self._lines[key] = value

"""An empty workspace, and files written for a test."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "home")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], Path]:
    """Writes a file of the test's own: text and bytes as they are, a list as JSON or, by the name, one row a line."""

    def write_file(name: str, content: Any) -> Path:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        else:
            path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write_file


@pytest.fixture
def alpaca() -> Callable[[int], list[dict[str, str]]]:
    """So many different Alpaca rows."""
    return lambda count: [{"instruction": f"Say {i}.", "input": "", "output": f"{i}!"} for i in range(count)]

"""Lines of JSON that a job adds as its work is done, so that a job that was killed does nothing twice. Light.

What was added is on the disk before `append` returns; a line torn by a kill or a power cut is taken off when the
journal is read.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def read(path: Path) -> list[Any]:
    """The values of all whole lines; none where there is no file yet, whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    return [json.loads(line) for line in content[:whole].splitlines()]


def line(value: Any) -> str:
    """A value as its line. Escaped: a model may write half of a surrogate pair, which UTF-8 cannot hold."""
    return json.dumps(value, ensure_ascii=True) + "\n"


def append(path: Path, values: Iterable[Any]) -> None:
    """Adds a line for each value, together."""
    with path.open("ab") as file:
        file.write("".join(map(line, values)).encode("ascii"))
        file.flush()
        os.fsync(file.fileno())

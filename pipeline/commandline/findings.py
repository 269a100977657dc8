"""What the doctor's checks give back."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: `what` was found of `name`, and unless it is ok how to `mend` it.

    A failure keeps Tunewright, or a part of it that was set up, from working; a warning does not.
    """

    name: str
    level: Level
    what: str
    mend: str = ""


def ok(name: str, what: str) -> Finding:
    return Finding(name, "ok", what)


def warning(name: str, what: str, mend: str) -> Finding:
    return Finding(name, "warning", what, mend)


def failure(name: str, what: str, mend: str) -> Finding:
    return Finding(name, "failure", what, mend)

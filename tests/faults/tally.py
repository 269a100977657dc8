"""What the harness knows of work undisturbed, and what it counts."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Usual:
    """How a kind of work goes undisturbed: what comes of it, its phases, and how long it takes."""

    outcome: Any
    phases: list[str]
    seconds: float


@dataclass
class Tally:
    """`struck` counts by fault what hit something alive, `missed` what came too late, `equal` equal ends."""

    struck: Counter[str] = field(default_factory=Counter[str])
    kinds: Counter[str] = field(default_factory=Counter[str])
    missed: Counter[str] = field(default_factory=Counter[str])
    equal: Counter[str] = field(default_factory=Counter[str])
    violations: list[str] = field(default_factory=list[str])

    @property
    def rounds(self) -> int:
        return self.struck.total()

"""Domain packs: what a field's answers must name, must say and must never say, as YAML; and the check of an answer.

`load` a built-in pack by its name or anybody's by its path, `check` one answer, make a `summary` of many. Light.

A check of words by rules. It is fast, the same every time and names the passage; it understands nothing: see `check`
for what it does not find, and `pack` for the form of a pack.
"""

from tunewright.pipeline.domains.builtin import available, path_of
from tunewright.pipeline.domains.check import NOTE, Finding, check, summary
from tunewright.pipeline.domains.pack import Pack, load

__all__ = ["NOTE", "Finding", "Pack", "available", "check", "load", "path_of", "summary"]

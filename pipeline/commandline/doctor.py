"""`tunewright doctor`: everything that must be right for this machine to fine-tune, and how to mend what is not.

Changes nothing and downloads nothing. Says what is wrong now; a job may still find what only it can (a model that does
not fit, a licence that is not accepted).
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict

from tunewright.pipeline.commandline.console import console, printable
from tunewright.pipeline.commandline.findings import Finding

COLOURS = {"ok": "green", "warning": "yellow", "failure": "red"}


def doctor(home: str | None, *, deep: bool, as_json: bool) -> int:
    """Prints a line for each finding, or all as a list in JSON; returns 1 where one is a failure."""
    found: list[Finding] = []
    for finding in examine(home, deep=deep):
        found.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in found], indent=2, ensure_ascii=False) + "\n")
    return 1 if any(finding.level == "failure" for finding in found) else 0


def examine(home: str | None, *, deep: bool) -> Iterator[Finding]:
    """Every finding, each as soon as it is known."""
    from tunewright.pipeline.commandline import home_checks, machine_checks, reach_checks

    yield from machine_checks.software()
    yield from machine_checks.device()
    yield machine_checks.unsloth(deep=deep)
    yield from machine_checks.gguf()
    yield from home_checks.examine(home)
    yield reach_checks.ollama()
    yield reach_checks.hub()
    yield from reach_checks.connections()


def _show(finding: Finding) -> None:
    from rich.text import Text

    line = Text()
    line.append(f"{finding.level:<8} ", style=COLOURS[finding.level])
    line.append(f"{finding.name}: ", style="bold")
    line.append(printable(finding.what))
    if finding.mend:
        line.append(f"\n{'':9}→ {printable(finding.mend)}")
    console().print(line, soft_wrap=True)

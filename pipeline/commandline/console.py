"""How every command speaks to a person: tables and colours on a terminal, plain whole lines where it is piped.

Guarantees: what data, models and logs say cannot steer the terminal; a foreseen failure is told in words on standard
error, with the command to run next; Ctrl-C and a closed pipe end a command without a traceback.
"""

import os
import re
import sqlite3
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tunewright.pipeline.errors import TunewrightError, Unavailable
from tunewright.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED = 130
# Wide enough for every column: a reader of a pipe must not get half an id.
PIPED_COLUMNS = 400
# What agents are told to call, as the command that does the same.
COMMANDS = {"get_status": "status", "cancel_job": "cancel", "resume_job": "resume", "check_environment": "doctor"}
CALL = re.compile(r'(?P<tool>\w+)\((?:job_id="(?P<job>[^"]+)")?')
SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def console() -> "Console":
    """Standard output. Texts are printed as they are: no markup, no highlighting."""
    from rich.console import Console

    piped = not sys.stdout.isatty()
    return Console(markup=False, highlight=False, emoji=False, width=PIPED_COLUMNS if piped else None)


def printable(text: str) -> str:
    """`text` without escape sequences and control characters but newline and tab."""
    return CONTROL.sub("", SEQUENCE.sub("", text))


def run(command: Callable[[], int]) -> int:
    """The exit status of `command`; its foreseen ends told, not raised."""
    try:
        status = command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read has seen enough; what is buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except TunewrightError as error:
        sys.stderr.write(printable(told(error)) + "\n")
        return 1
    return status


def told(error: TunewrightError) -> str:
    """An error's text for a person: the next step is a command, on a line of its own, where there is one."""
    parts = [f"{error.code}: {error.what}", error.allowed, error.done]
    text = " ".join(part.strip() for part in parts if part.strip())
    return "\n".join(filter(None, (text, next_command(error.next))))


def next_command(call: str) -> str:
    """`Next: tunewright …` for a tool's call; empty for one that has no command. Other texts stay as they are."""
    found = CALL.match(call)
    if found is None:
        return f"Next: {call}" if call else ""
    command = COMMANDS.get(found["tool"])
    return f"Next: {' '.join(filter(None, ('tunewright', command, found['job'])))}" if command else ""


def open_workspace(home: str | None) -> Workspace:
    """The workspace of a command. Raises Unavailable where the home cannot be opened."""
    with opening():
        return Workspace.open(home)


@contextmanager
def opening() -> Generator[None]:
    """Turns what opening a home raises into Unavailable."""
    try:
        yield
    except TunewrightError:
        raise
    except (OSError, sqlite3.Error) as error:
        raise Unavailable(
            "home_unusable",
            f"the data home cannot be opened: {error}.",
            allowed="It must be a folder that can be written, on a disk with space: --home DIR or TUNEWRIGHT_HOME.",
            next="tunewright doctor",
        ) from error


def duration(seconds: float) -> str:
    """`48 s`, `5 min 03 s`, `2 h 05 min`, `3 d 04 h`."""
    whole = max(0, round(seconds))
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller_size:02} {smaller}"
    return f"{whole} s"


def size(number: int) -> str:
    """Bytes in the largest decimal unit that leaves one digit before the point."""
    amount, unit = float(number), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"

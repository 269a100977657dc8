"""The exceptions of Tunewright, each also a standard one.

TunewrightError
├── InvalidInput    (ValueError)    an argument or a file is not what it must be
├── NotFound        (LookupError)   an id, a file or a model does not exist
├── Conflict        (RuntimeError)  what was asked for does not go together with the present state
├── Unavailable     (RuntimeError)  a service, a device or the network is not there
└── NoSpace         (OSError)       the disk is full, or would be

Every message has one form, made for an agent to act on:
`code: what failed, with the value. What is allowed. Next: the exact call. What was and was not done.`
A failure of a job is stored as the same fields (`to_dict`), so that it reads the same in `get_status`.
"""

import json
from difflib import get_close_matches
from functools import partial
from typing import Any


class TunewrightError(Exception):
    """A failure that was foreseen; its text tells an agent what to do next. Never holds a secret or a traceback.

    `code` is a stable snake_case word, `what` a sentence with the offending value, `allowed` what would have been
    right, `next` the call to make (see `call`), `done` what was and was not done.
    """

    def __init__(
        self, code: str, what: str, *, allowed: str = "", next: str = "", done: str = "Nothing was changed."
    ) -> None:
        self.code, self.what, self.allowed, self.next, self.done = code, what, allowed, next, done
        super().__init__(str(self))

    def __reduce__(self) -> tuple[Any, ...]:
        # From worker processes errors come pickled; Exception's own way would pass the text as `code`.
        return partial(type(self), next=self.next, done=self.done, allowed=self.allowed), (self.code, self.what)

    def __str__(self) -> str:
        parts = [f"{self.code}: {self.what}", self.allowed, f"Next: {self.next}." if self.next else "", self.done]
        return " ".join(part.strip() for part in parts if part.strip())

    def to_dict(self) -> dict[str, str]:
        return {"code": self.code, "what": self.what, "allowed": self.allowed, "next": self.next, "done": self.done}


class InvalidInput(TunewrightError, ValueError):
    """Raised when an argument, a file or a row is not what it must be."""


class NotFound(TunewrightError, LookupError):
    """Raised when an id, a file or a model does not exist."""


class Conflict(TunewrightError, RuntimeError):
    """Raised when a request contradicts the present state: wrong order, name taken, still in use."""


class Unavailable(TunewrightError, RuntimeError):
    """Raised when a service, a device, a credential or the network is missing."""


class NoSpace(TunewrightError, OSError):
    """Raised before or when the disk cannot hold what the work writes."""

    def __init__(self, code: str, what: str, *, allowed: str = "", next: str = "", done: str = "") -> None:
        # OSError's own __str__ would print (code, what) as errno and strerror.
        TunewrightError.__init__(self, code, what, allowed=allowed, next=next, done=done or "Nothing was changed.")

    __str__ = TunewrightError.__str__


class Cancelled(Exception):
    """Raised inside a job at its next safe point after `cancel_job`; ends the job as `cancelled`, not as failed."""


def call(tool: str, **arguments: object) -> str:
    """The text of a tool call as an agent would write it: `get_status(job_id="job-…", wait_s=50)`."""
    return f"{tool}({', '.join(f'{k}={json.dumps(v, ensure_ascii=False)}' for k, v in arguments.items())})"


def nearest(value: str, known: list[str], count: int = 3) -> str:
    """A sentence that names the known values closest to `value`, or all of them when there are few."""
    close = get_close_matches(value, known, n=count, cutoff=0.4) or known[:count]
    return f"Nearest: {', '.join(close)}." if close else "There are none yet."

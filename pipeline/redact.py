"""Text is made fit to be read by others: without credentials in logs, events and errors; without local paths too where
it leaves this machine.

Works on texts and JSON values, by what they look like and by what this process's environment holds. Does not look for
personal data, nor into weights or vocabularies; what a program writes to a descriptor itself passes no `Redacting`.
"""

import io
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from tunewright.pipeline.data import privacy

if TYPE_CHECKING:
    from tunewright.pipeline.workspace import Workspace

# The Hub's and the common providers' tokens, by their fixed beginnings.
# A Hub login by browser gives a JSON web token behind the prefix, in three parts with dots between.
TOKEN = re.compile(r"\b(?:hf_|api_org_|sk-|ghp_|github_pat_)[A-Za-z0-9_-]{16,}(?:\.[A-Za-z0-9_-]{8,})*")
# An absolute path of two or more parts inside a text; not a URL's, whose slashes follow a colon, a slash or a name.
PATH = re.compile(
    r"(?<![\w:/.~])(?:~|/)(?:[\w.+@-]+/)+(?P<last>[\w.+@-]*)|\b[A-Za-z]:\\(?:[^\\\s]+\\)*(?P<windows>[^\\\s]*)"
)
# A user and a password in front of a host; the last @ ends them, whatever characters the password has.
LOGIN = re.compile(r"//[^/]*@")
# The same inside a longer text: up to the last @ of what can be one URL.
LOGIN_IN_TEXT = re.compile(r"(?<=://)[^\s/\"'<>`]+@")
# Variables whose values are secrets, by their names: HF_TOKEN, OPENAI_API_KEY, AWS_SECRET_ACCESS_KEY, DB_PASSWORD.
SECRET_VARIABLE = re.compile(r"(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD)$", re.IGNORECASE)
# A shorter value would be found in harmless words; a path leads to a key and is none.
MIN_SECRET_CHARACTERS = 8
REMOVED = "[removed]"
# So much without a line's end is written as it comes.
MAX_HELD_CHARACTERS = 100_000


def without_secrets(text: str) -> str:
    """`text` without tokens, keys and passwords: those of this process's environment, and what has their form."""
    for secret in _own_secrets():
        text = text.replace(secret, REMOVED)
    return privacy.without_secrets(TOKEN.sub(REMOVED, LOGIN_IN_TEXT.sub(f"{REMOVED}@", text)))


def _own_secrets() -> list[str]:
    """The secrets in the environment, the longest first: one may be the beginning of another."""
    values = {value.strip() for name, value in os.environ.items() if SECRET_VARIABLE.search(name)}
    return sorted((v for v in values if len(v) >= MIN_SECRET_CHARACTERS and v[0] not in "/~"), key=len, reverse=True)


class Redacting(io.TextIOBase):
    """A text stream that passes on whole lines, or what it holds at a flush, without secrets."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._held = stream, ""

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride] - a property in typeshed's TextIO
        return self._stream.encoding

    def write(self, text: str, /) -> int:
        # A progress bar ends its lines with a carriage return.
        lines, end, rest = _at_last_break(self._held + text)
        self._held = rest
        if end:
            self._stream.write(without_secrets(lines) + end)
        if len(self._held) > MAX_HELD_CHARACTERS:
            self.flush()
        return len(text)

    def flush(self) -> None:
        held, self._held = self._held, ""
        if held:
            self._stream.write(without_secrets(held))
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def writable(self) -> bool:
        return True


def _at_last_break(text: str) -> tuple[str, str, str]:
    at = max(text.rfind("\n"), text.rfind("\r"))
    return (text[:at], text[at], text[at + 1 :]) if at >= 0 else ("", "", text)


def redact_output() -> None:
    """Whatever this process's Python writes to its standard streams from now on, logging too, is without secrets.

    To be called before logging is set up, by a process whose output goes to a log file.
    """
    sys.stdout, sys.stderr = Redacting(sys.stdout), Redacting(sys.stderr)


def without_login(url: str) -> str:
    """A URL as it may be shown: without a user and a password."""
    return LOGIN.sub("//", url)


def public_text(workspace: "Workspace", text: str) -> str:
    """`text` with secrets blanked and every absolute path cut down to its last part."""
    text = without_secrets(text)
    if text.startswith(("/", "~/")) and "\n" not in text:
        return Path(text).name
    for root in (workspace.home.root, Path.home()):
        text = re.sub(rf"{re.escape(str(root))}(?![\w-])/?", "", text) if len(root.parts) > 1 else text
    return PATH.sub(lambda match: match["last"] or match["windows"] or "", text)


def public(workspace: "Workspace", value: Any) -> Any:
    """A JSON value with `public_text` applied to every text in it; keys stay as they are."""
    if isinstance(value, str):
        return public_text(workspace, value)
    if isinstance(value, dict):
        return {key: public(workspace, item) for key, item in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return [public(workspace, item) for item in cast(list[Any], value)]
    return value

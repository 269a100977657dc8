"""The columns of a file, judged by its first rows: what they are called and what stands in them."""

import re
from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher
from typing import Any, cast

from tunewright.pipeline.data import cells, privacy, rendered, turns
from tunewright.pipeline.data.rows import Unusable
from tunewright.pipeline.errors import nearest

SAMPLE_CHARACTERS = 60
MAX_COLUMNS_SHOWN = 20
# Words in the names of columns, from which a mapping is guessed for the agent to confirm.
PROMPT_WORDS = (
    "prompt", "question", "instruction", "query", "input", "user", "customer", "ask", "title", "text", "问",
)  # fmt: skip
RESPONSE_WORDS = (
    "response", "answer", "output", "completion", "reply", "assistant", "agent", "solution", "target", "summary",
    "translation", "label", "category", "答",
)  # fmt: skip
# Columns that are about a row, not what it says.
META = frozenset(
    ("id", "idx", "index", "uid", "uuid", "url", "link", "source", "src", "timestamp", "date", "time", "created_at",
     "meta", "metadata", "lang", "language", "file", "filename", "file_path", "path", "split", "dump", "subset",
     "token_count", "tokens", "length", "score", "license", "added")
)  # fmt: skip


class Sample:
    """The first rows of a file that are objects."""

    def __init__(self, rows: Sequence[object]) -> None:
        self.shown: dict[str, str] = {}  # each column with its first value that is not blank, shortened
        self._values: dict[str, list[Any]] = {}  # each column's values but for blank ones
        for row in rows:
            for name, value in cast("dict[str, Any]", row).items() if isinstance(row, dict) else ():
                if name.encode("utf-8", "replace").decode("utf-8") != name:
                    continue  # half a surrogate pair: no error, mapping or manifest could name the column
                values = self._values.setdefault(name, [])
                self.shown.setdefault(name, "")
                if value is None or value == "":
                    continue
                self.shown[name] = self.shown[name] or cells.shortened(privacy.shown(value), SAMPLE_CHARACTERS)
                values.append(value)
        self._names = {key(name): name for name in reversed(self.shown)}

    def column(self, *names: str) -> str | None:
        """The first column that is called so; capitals, spaces and hyphens do not matter."""
        return next((self._names[key(name)] for name in names if key(name) in self._names), None)

    def values(self, column: str) -> list[Any]:
        """The column's values in the first rows, but for blank ones."""
        return self._values.get(column, [])

    def are_texts(self, column: str) -> bool:
        """Whether most values are texts or numbers; of a column without values too."""
        return _most(self.values(column), lambda value: isinstance(value, str | int | float))

    def are_turns(self, column: str) -> bool:
        """Whether most values are messages, as a list, an object, or JSON of these."""
        return bool(self.values(column)) and _most(self.values(column), lambda value: bool(turns_in(value)))

    def are_rendered(self, column: str) -> bool:
        """Whether most values are texts of conversations as chat templates write them."""
        return bool(self.values(column)) and _most(self.values(column), rendered.is_conversation)

    def listed(self) -> str:
        columns = list(self.shown.items())
        shown = [(privacy.shown(_short(name)), text) for name, text in columns[:MAX_COLUMNS_SHOWN]]
        more = f"; and {len(columns) - MAX_COLUMNS_SHOWN} more" if len(columns) > MAX_COLUMNS_SHOWN else ""
        return f"Columns: {'; '.join(f'{name} ({text!r})' for name, text in shown)}{more}."

    def nearest(self, name: str) -> str:
        return nearest(_short(name), [_short(column) for column in self.shown])

    def closest(self, name: str) -> str:
        """The column whose name is most like `name`."""
        return max(self.shown, key=lambda column: SequenceMatcher(None, key(name), key(column)).ratio())

    def guess(self) -> dict[str, str]:
        """A mapping for the agent to confirm: by words in the names, else by what the columns hold."""
        turned = [name for name in self.shown if self.are_turns(name)]
        if turned:
            return {"messages": turned[0]}
        texts = [name for name in self.shown if self.are_texts(name) and key(name) not in META]
        texts = texts or list(self.shown)
        if len(texts) == 1:
            return {"text": texts[0]}
        response = _named(texts, RESPONSE_WORDS)
        prompt = _named([name for name in texts if name != response], PROMPT_WORDS)
        if response is None:
            # Answers are longer than questions.
            response = max((name for name in texts if name != prompt), key=self._mean_length)
        others = [name for name in texts if name != response]
        prompt = prompt or max(others, key=lambda name: (self._questions(name), self._mean_length(name)))
        return {"prompt": prompt, "response": response}

    def _mean_length(self, column: str) -> float:
        values = self.values(column)
        return sum(len(str(value)) for value in values) / len(values) if values else 0

    def _questions(self, column: str) -> int:
        return sum(str(value).rstrip().endswith(("?", "？")) for value in self.values(column))


def key(name: str) -> str:
    """`name` as it is compared: `Chain of Thought` is `chain_of_thought`."""
    return re.sub(r"[\s-]+", "_", name.strip().casefold())


def turns_in(value: object) -> list[dict[str, Any]]:
    """The turns in a cell that look like messages: objects with a role and a text by any name, or pairs."""
    if isinstance(value, str):
        if not value.lstrip().startswith(("[", "{")):
            return []
        try:
            value = cells.parsed(value, "")
        except Unusable:
            return []
    if isinstance(value, dict):
        inner = cast("dict[str, Any]", value)
        value = inner.get("messages", [inner])
    if not isinstance(value, list):
        return []
    found = [cast("dict[str, Any]", turn) for turn in cast("list[Any]", value) if isinstance(turn, dict)]
    return found if all(map(is_turn, found)) else []


def is_turn(turn: dict[str, Any]) -> bool:
    if role_key(turn) and (content_key(turn) or "tool_calls" in turn or "function_call" in turn):
        return True
    return any(asked in turn and told in turn for asked, told in turns.PAIR_KEYS)


def role_key(turn: dict[str, Any]) -> str | None:
    return next((name for name in (*turns.ROLE_KEYS, "speaker", "author", "sender") if name in turn), None)


def content_key(turn: dict[str, Any]) -> str | None:
    return next((name for name in (*turns.CONTENT_KEYS, "text", "message", "utterance") if name in turn), None)


def _most(values: Sequence[Any], holds: Callable[[Any], bool]) -> bool:
    return 2 * sum(map(holds, values)) >= len(values)


def _named(names: Iterable[str], words: Sequence[str]) -> str | None:
    """The column whose name holds one of `words`, the earliest word first."""
    known = list(names)
    return next((name for word in words for name in known if word in name.casefold()), None)


def _short(name: str) -> str:
    return cells.shortened(name, SAMPLE_CHARACTERS)

"""The columns of a file, judged by its first rows: what they are called and what stands in them."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any, cast

from tunewright.pipeline.data import cells, privacy, rendered, trees, turns
from tunewright.pipeline.data.rows import Unusable
from tunewright.pipeline.errors import nearest

SAMPLE_CHARACTERS = 60
MAX_COLUMNS_SHOWN = 20
# Words in the names of columns, from which a mapping is guessed for the agent to confirm.
# In German, Spanish, Portuguese, Italian, French, Russian, Japanese and Korean; English and Chinese stand below.
QUESTIONS = ("frage", "pregunta", "pergunta", "domanda", "вопрос", "質問", "질문")
REPLIES = ("antwort", "respuesta", "resposta", "risposta", "réponse", "reponse", "ответ", "答え", "답변")
PROMPT_WORDS = (
    "prompt", "question", "instruction", "query", *QUESTIONS, "input", "user", "customer", "ask", "title", "text", "问",
)  # fmt: skip
RESPONSE_WORDS = (
    "response", "answer", "output", "completion", "reply", *REPLIES, "assistant", "agent", "solution", "target",
    "summary", "translation", "label", "category", "答",
)  # fmt: skip
# Lists of options beside a question, without which its answer says nothing.
OPTION_LISTS = ("choices", "options")
# The names of speakers are few and short.
MAX_SPEAKERS = 6
MAX_SPEAKER_CHARACTERS = 30
# Columns that are about a row, not what it says.
META = frozenset(
    ("id", "idx", "index", "uid", "uuid", "url", "link", "source", "src", "timestamp", "date", "time", "created_at",
     "meta", "metadata", "lang", "language", "file", "filename", "file_path", "path", "split", "dump", "subset",
     "token_count", "tokens", "length", "score", "license", "added")
)  # fmt: skip

ROLE_NAMES = (*turns.ROLE_KEYS, "speaker", "author", "sender")
CONTENT_NAMES = (*turns.CONTENT_KEYS, "text", "message", "utterance")
NO_TAGS: Mapping[str, str] = {}


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

    def talks(self, column: str) -> list[list[dict[str, Any]]]:
        """The lists of objects in the column, turns or not."""
        return [found for value in self.values(column) if (found := objects_in(value))]

    def nested(self) -> list[str]:
        """The columns that hold mostly objects, but for options beside a question."""
        filled = [name for name in self.shown if self.values(name) and key(name) not in OPTION_LISTS]
        return [name for name in filled if _most(self.values(name), lambda value: bool(objects_in(value)))]

    def listed(self, what: str = "Columns") -> str:
        columns = list(self.shown.items())
        shown = [(privacy.shown(_short(name)), text) for name, text in columns[:MAX_COLUMNS_SHOWN]]
        more = f"; and {len(columns) - MAX_COLUMNS_SHOWN} more" if len(columns) > MAX_COLUMNS_SHOWN else ""
        return f"{what}: {'; '.join(f'{name} ({text!r})' for name, text in shown)}{more}."

    def nearest(self, name: str) -> str:
        return nearest(_short(name), [_short(column) for column in self.shown])

    def closest(self, name: str) -> str:
        """The column whose name is most like `name`."""
        return max(self.shown, key=lambda column: SequenceMatcher(None, key(name), key(column)).ratio())

    def guess(self) -> dict[str, str]:
        """A mapping for the agent to confirm: by words in the names, else by what the columns hold.

        Empty where none would be honest.
        """
        turned = [name for name in self.shown if self.are_turns(name)]
        if turned:
            return {"messages": turned[0]}
        nested = self.nested()
        # Lists before single objects: a customer's name and address are no turn.
        for name in sorted(nested, key=lambda name: -max(map(len, self.talks(name)), default=0)):
            if parts := guessed_turns(self.talks(name)):
                return {"messages": name, **parts}
        known = [name for name in self.shown if self.are_texts(name)]
        texts = [name for name in known if key(name) not in META]
        if not known or (nested and len(texts) < 2):
            return {}
        told = [name for name in self.shown if name not in known]
        if _named(told, RESPONSE_WORDS) and not _named(texts, RESPONSE_WORDS):
            return {}  # the answers are there, but no texts
        texts = texts or known
        if len(texts) == 1:
            return {"text": texts[0]}
        response = _named(texts, RESPONSE_WORDS)
        prompt = _named([name for name in texts if name != response], PROMPT_WORDS)
        if prompt is None and response is None:
            prompt = max(texts, key=self._questions) if any(map(self._questions, texts)) else None
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


def turns_in(value: object, tags: Mapping[str, str] = NO_TAGS) -> list[dict[str, Any]]:
    """The turns in a cell that look like messages: objects with a role and a text, by any name, or pairs."""
    found = objects_in(value)
    return found if all(is_turn(turn, tags) for turn in found) else []


def objects_in(value: object) -> list[dict[str, Any]]:
    """The objects in a cell: of a list, of a list under `messages`, of a tree, or the one; also from JSON as text."""
    if isinstance(value, str):
        if not value.lstrip().startswith(("[", "{")):
            return []
        try:
            value = cells.parsed(value, "")
        except Unusable:
            return []
    if isinstance(value, dict):
        inner = cast("dict[str, Any]", value)
        line = trees.line(inner)
        value = inner.get("messages", line.turns if line else [inner])
    if not isinstance(value, list):
        return []
    return [cast("dict[str, Any]", turn) for turn in cast("list[Any]", value) if isinstance(turn, dict)]


def is_turn(turn: Mapping[str, Any], tags: Mapping[str, str] = NO_TAGS) -> bool:
    if role_key(turn, tags) and (content_key(turn, tags) or "tool_calls" in turn or "function_call" in turn):
        return True
    return is_pair(turn)


def is_pair(turn: Mapping[str, Any]) -> bool:
    return any(asked in turn and told in turn for asked, told in turns.PAIR_KEYS)


def role_key(turn: Mapping[str, Any], tags: Mapping[str, str] = NO_TAGS) -> str | None:
    return _first(turn, (tags.get("role_tag"), *ROLE_NAMES))


def content_key(turn: Mapping[str, Any], tags: Mapping[str, str] = NO_TAGS) -> str | None:
    return _first(turn, (tags.get("content_tag"), *CONTENT_NAMES))


def guessed_turns(talks: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """The parts of a mapping that say how these objects are turns; empty where that cannot be told.

    The role is the key with the fewest short values, the content the one with the longest texts, the user the speaker
    who opens most of the talks and the assistant the one who speaks most beside.
    """
    said = Sample([turn for talk in talks for turn in talk])
    count = sum(map(len, talks))
    texts = [
        name for name in said.shown
        if key(name) not in META and 2 * sum(isinstance(value, str) for value in said.values(name)) > count
    ]  # fmt: skip
    # What holds lists of objects is a conversation, not a turn.
    if any(2 * sum(map(_is_talk, said.values(name))) > count for name in said.shown):
        return {}
    content = max(texts, key=lambda name: (name in CONTENT_NAMES, _letters(said, name)), default="")
    roles = [name for name in texts if name != content and _are_speakers(said.values(name))]
    role = min(roles, key=lambda name: (name not in ROLE_NAMES, len(set(said.values(name)))), default="")
    if not role:
        return {}
    spoken = [[str(turn[role]).strip() for turn in talk if turn.get(role)] for talk in talks]
    user = _speaker("user", [next((name for name in names if _may_be("user", name)), "") for names in spoken])
    assistant = _speaker(
        "assistant", [name for names in spoken for name in names if name.casefold() != user.casefold()]
    )
    if not user or not assistant:
        return {}
    return {"role": role, "content": content, "user": user, "assistant": assistant}


def _speaker(role: str, names: Iterable[str]) -> str:
    """The name that is known for the role, else the most frequent that is not known for another."""
    counts = Counter(name for name in names if name and _may_be(role, name))
    return max(counts, key=lambda name: (turns.role_of(name, NO_TAGS) == role, counts[name]), default="")


def _may_be(role: str, name: str) -> bool:
    return turns.role_of(name, NO_TAGS) in (None, role)


def _are_speakers(values: Sequence[object]) -> bool:
    """Whether these are a few short names, no times or numbers, which a refusal may print as they stand."""
    names = {value if isinstance(value, str) else "" for value in values}
    return 2 <= len(names) <= MAX_SPEAKERS and all(map(_is_name, names))


def _is_name(text: str) -> bool:
    is_shown = cells.shortened(privacy.shown(text), SAMPLE_CHARACTERS) == text.strip()
    letters, digits = sum(map(str.isalpha, text)), sum(map(str.isdigit, text))
    return is_shown and len(text) <= MAX_SPEAKER_CHARACTERS and letters >= max(digits, 1)


def _letters(said: Sample, name: str) -> int:
    """The letters in the key's texts, in equal ones once: neither times nor a picture's address are what was said."""
    return sum(sum(map(str.isalpha, value)) for value in {str(value) for value in said.values(name)})


def _is_talk(value: object) -> bool:
    return isinstance(value, list) and bool(objects_in(cast("object", value)))


def _first(turn: Mapping[str, Any], names: Sequence[str | None]) -> str | None:
    return next((name for name in names if name is not None and name in turn), None)


def _most(values: Sequence[Any], holds: Callable[[Any], bool]) -> bool:
    return 2 * sum(map(holds, values)) >= len(values)


def _named(names: Iterable[str], words: Sequence[str]) -> str | None:
    """The column whose name holds one of `words`, the earliest word first."""
    known = list(names)
    return next((name for word in words for name in known if word in name.casefold()), None)


def _short(name: str) -> str:
    return cells.shortened(name, SAMPLE_CHARACTERS)

"""From the teacher's words to a row: the JSON in them, its shape, and the statements that the text must support.

Tolerant of what models put around JSON (thinking, code fences, a word before it) and of trailing commas; nothing else
is mended: what cannot be read is refused, and asked for anew.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, cast

from tunewright.pipeline.data import cells
from tunewright.pipeline.data.cells import shortened
from tunewright.pipeline.data.rows import Message, Record, Unusable
from tunewright.pipeline.data.turns import with_thinking
from tunewright.pipeline.generation.prompts import FIELDS, ExampleKind

THINKING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
TRAILING_COMMA = re.compile(r",(?=\s*[}\]])")
# The first word where it stands alone, as asked for, or else the last of the two: some think aloud first.
VERDICT = re.compile(
    r"\A\W*(yes|no)\b(?=\s*(?:[.,:;!*\n-]|\Z))|\b(yes|no)\b(?!.*\b(?:yes|no)\b)", re.IGNORECASE | re.DOTALL
)
MIN_TURNS = 2


@dataclass(frozen=True)
class Written:
    """An example as the teacher wrote it: the row it makes, and its questions with the answers to be supported.

    `reasoning` is the thinking before the last answer: it may go beyond the text's words, not beyond its sense.
    """

    record: Record
    exchanges: list[tuple[str, str]]
    reasoning: str = ""

    def statements(self) -> list[tuple[str, str]]:
        """The questions with all that is stated in answer to them."""
        *before, (question, answer) = self.exchanges
        return [*before, (question, f"{self.reasoning}\n{answer}".strip())]


def read(kind: ExampleKind, chunk_id: str, text: str) -> Written:
    """The example in the teacher's answer. Raises Unusable: `not_json`, `wrong_shape` or `same_answers`."""
    found = _object(text)
    if kind == "conversation":
        turns = found.get("turns")
        if not isinstance(turns, list) or len(cast("list[Any]", turns)) < MIN_TURNS:
            raise Unusable("wrong_shape", f"'turns' is {shortened(turns, 60)!r}, not {MIN_TURNS} exchanges or more")
        exchanges = [_exchange(turn) for turn in cast("list[object]", turns)]
        messages = [message for question, answer in exchanges for message in _said(question, answer)]
        return Written(Record("sft", messages=messages, source_chunk=chunk_id), exchanges)
    fields = [_text(found, name) for name in FIELDS[kind]]
    question, answer = fields[0], fields[-1]
    if kind == "preference":
        chosen, rejected = fields[1], fields[2]
        if chosen.split() == rejected.split():
            raise Unusable("same_answers", "the chosen and the rejected answer are the same")
        asked, good = _said(question, chosen)
        bad = _said(question, rejected)[1]
        record = Record("preference", messages=[asked], chosen=[good], rejected=[bad], source_chunk=chunk_id)
        return Written(record, [(question, chosen)])
    reasoning = fields[1] if kind == "reasoning" else ""
    messages = _said(question, with_thinking(reasoning, answer))
    return Written(Record("sft", messages=messages, source_chunk=chunk_id), [(question, answer)], reasoning)


def is_supported(verdict: str) -> bool | None:
    """What the judge said, yes or no; None where it said neither."""
    found = VERDICT.search(THINKING.sub("", verdict))
    return found[0].strip("\"'*.,: \n").lower().endswith("yes") if found else None


def _said(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _exchange(turn: object) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise Unusable("wrong_shape", f"a turn is {shortened(turn, 60)!r}, not a question and an answer")
    fields = cast("dict[str, Any]", turn)
    return _text(fields, "question"), _text(fields, "answer")


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise Unusable("wrong_shape", f"{name!r} is {shortened(value, 60)!r}, not a text")
    return cells.text(value.strip(), name)


def _object(text: str) -> dict[str, Any]:
    """The JSON object in `text`, from its first brace to its last. Raises Unusable."""
    bare = THINKING.sub("", text)
    inside = bare[bare.find("{") : bare.rfind("}") + 1]
    for candidate in (inside, TRAILING_COMMA.sub("", inside)):
        try:
            # Not strict: small models write line breaks into strings.
            found: object = json.loads(candidate, strict=False)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return cast("dict[str, Any]", found)
    raise Unusable("not_json", f"no JSON object: {shortened(text, 80)!r}")

"""What is done about each thing found in a row, what was done how often, and when two rows are the same."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from tunewright.pipeline.data import privacy
from tunewright.pipeline.data.cells import shortened
from tunewright.pipeline.data.rows import Message, Record, calls_as_text, to_json
from tunewright.pipeline.errors import InvalidInput, call

Action = Literal["keep", "mend", "drop", "mask", "truncate", "split", "ignore"]
Finding = Literal[
    "near_duplicate", "html", "mojibake", "control_tokens", "role_order", "too_long", "personal_data", "secrets"
]
# What may be done about a finding; the first is done unless told otherwise. What is kept is reported; what is ignored
# is not looked for.
ACTIONS: dict[Finding, tuple[Action, ...]] = {
    "near_duplicate": ("drop", "keep", "ignore"),
    "html": ("mend", "drop", "keep"),
    "mojibake": ("mend", "drop", "keep"),
    "control_tokens": ("mend", "drop", "keep"),
    "role_order": ("mend", "drop"),
    "too_long": ("keep", "drop", "truncate", "split"),
    "personal_data": ("keep", "mask", "drop"),
    "secrets": ("keep", "mask", "drop"),
}
MAX_EXAMPLES = 3
EXAMPLE_CHARACTERS = 160


def actions(chosen: Mapping[Finding, Action] | None) -> dict[Finding, Action]:
    """The action for every finding: the default where `chosen` names none. Raises InvalidInput."""
    taken: dict[Finding, Action] = {finding: allowed[0] for finding, allowed in ACTIONS.items()}
    taken |= dict(chosen or {})
    for finding, action in taken.items():
        if action not in ACTIONS.get(finding, ()):
            allowed = "; ".join(f"{known}: {', '.join(does)}" for known, does in ACTIONS.items())
            raise InvalidInput(
                "invalid_cleaning",
                f"cleaning={{{finding!r}: {action!r}}}.",
                allowed=f"What can be found and done, the default first: {allowed}.",
                next=call("prepare_dataset", source="…", cleaning={"html": "keep"}),
            )
    return taken


@dataclass
class Tally:
    """What happened to rows, counted by reason, the first few of each shown."""

    counts: Counter[str] = field(default_factory=Counter[str])
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict[str, list[dict[str, Any]]])

    def add(self, reason: str, file: str, row: int, why: str, value: object) -> None:
        """`row` is the row's number in `file`, `value` what stood there: shown without personal data and secrets."""
        self.counts[reason] += 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < MAX_EXAMPLES:
            text = shortened(privacy.shown(to_json(value) if isinstance(value, Record) else value), EXAMPLE_CHARACTERS)
            shown.append({"file": file, "row": row, "why": privacy.shown(why), "text": text})

    def merge(self, later: "Tally") -> None:
        """Adds what happened to later rows."""
        self.counts += later.counts
        for reason, examples in later.examples.items():
            shown = self.examples.setdefault(reason, [])
            shown += examples[: MAX_EXAMPLES - len(shown)]

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """`{reason: {"count": …, "examples": […]}}`, only of reasons that occurred, the commonest first."""
        return {
            reason: {"count": count, "examples": self.examples.get(reason, [])}
            for reason, count in sorted(self.counts.items(), key=lambda entry: (-entry[1], entry[0]))
            if count
        }

    def __str__(self) -> str:
        """`3 malformed (the last turn is the user's …), 1 empty (…)`, with the first reason of each."""
        return ", ".join(
            f"{count} {reason} (file {shown[0]['file']}, row {shown[0]['row']}: {shown[0]['why']})"
            for reason, count in self.counts.items()
            if (shown := self.examples.get(reason))
        )


def fingerprint(record: Record) -> bytes:
    """8 bytes, the same for rows that differ in white space at the ends of texts and lines alone: indentation counts.

    In a million rows a chance pair is 1 in 10⁸.
    """
    parts = [record.kind, str(record.label), _bare(record.text)]
    for messages in (record.messages, record.chosen, record.rejected):
        parts.append("\x02")
        parts += map(_said, messages)
    return hashlib.blake2b("\x00".join(parts).encode("utf-8"), digest_size=8).digest()


def _said(message: Message) -> str:
    return f"{message['role']}\x01{_bare(message['content'])}\x01{calls_as_text(message) or ''}"


def _bare(text: str) -> str:
    return "\n".join(map(str.rstrip, text.strip().split("\n")))


def prompt_fingerprint(record: Record) -> bytes:
    """8 bytes, the same for rows that ask the same: all that comes before the answer, but for a system message."""
    asked = [_said(m) for m in record.messages[: None if record.chosen else -1] if m["role"] != "system"]
    text = " ".join(("\x00".join(asked) if asked else record.text).split())
    return hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()


def listed(counts: Counter[str], noun: str = "row") -> str:
    """`a in 3 rows, b in 1 row and 4 others`, the commonest first."""
    shown = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    more = f" and {len(shown) - 10} others" if len(shown) > 10 else ""
    return ", ".join(f"{text} in {count:,} {noun}{'s' * (count != 1)}" for text, count in shown[:10]) + more


def texts_of(record: Record) -> Iterable[str]:
    """What is said in a row: every text of it but what stands in tools and their calls (see `hidden_texts`)."""
    return [record.text] if record.kind == "text" else [message["content"] for message in record.all_messages()]


def with_texts(record: Record, texts: Sequence[str]) -> None:
    """Puts other texts in the place of those that `texts_of` gave."""
    if record.kind == "text":
        record.text = texts[0]
        return
    for message, text in zip(record.all_messages(), texts, strict=True):
        message["content"] = text


def hidden_texts(record: Record) -> list[str]:
    """The texts inside the row's tools and their calls."""
    found: list[str] = []
    _map_strings([message.get("tool_calls") for message in record.all_messages()] + [record.tools], found.append)
    return found


def map_hidden_texts(record: Record, change: Callable[[str], str]) -> None:
    """Puts `change(text)` in the place of every text inside the row's tools and their calls."""
    for message in record.all_messages():
        if message.get("tool_calls"):
            message["tool_calls"] = _map_strings(message["tool_calls"], change)
    record.tools = _map_strings(record.tools, change)


def _map_strings(value: Any, change: Callable[[str], Any]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_strings(entry, change) for entry in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {key: _map_strings(entry, change) for key, entry in cast("dict[Any, Any]", value).items()}
    return value

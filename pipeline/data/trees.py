"""Conversations that are trees, as chat programs keep them: an answer asked for anew or a question put otherwise is a
branch. Of each tree one line is read, the one that a reader would follow.

Knows ChatGPT's export (`mapping`, an object of nodes) and OpenAssistant's trees (a message with its `replies`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

Turn = dict[str, Any]
SPOKEN = ("text", "multimodal_text")


@dataclass(frozen=True)
class Line:
    """Turns with `role` and `content`; `cut` says what came in where the line was broken off, if it was."""

    turns: list[Turn]
    cut: str = ""


def line(value: Mapping[str, Any]) -> Line | None:
    """A tree's line; None of what is no tree.

    In ChatGPT's export it goes by the last branch, which is the one that was gone on with, and is broken off where a
    tool or a picture comes in: an answer made with what is not there would teach to invent. In OpenAssistant's it goes
    by the best rank.
    """
    nodes = list(value.values())
    if nodes and all(isinstance(node, dict) and {"message", "children"} <= set(cast("Turn", node)) for node in nodes):
        return _last_branches(value)
    if isinstance(value.get("replies"), list) and {"role", "text"} <= set(value):
        return Line(_best_replies(value))
    return None


def _last_branches(nodes: Mapping[str, Turn]) -> Line:
    left = dict(nodes)
    at = next((name for name, node in nodes.items() if str(node.get("parent")) not in nodes), None)
    turns: list[Turn] = []
    while at in left:
        node = left.pop(at)
        message = cast("Turn", node["message"]) if isinstance(node["message"], dict) else {}
        parts = _spoken(message)
        if _role(message) == "tool" or message.get("recipient") not in (None, "all"):
            return Line(turns, cut="a tool")
        if not all(isinstance(part, str) for part in parts):
            return Line(turns, cut="a picture or another part that is no text")
        if parts:
            turns.append({"role": _role(message), "content": "".join(parts)})
        children = cast("list[Any]", node["children"]) if isinstance(node["children"], list) else []
        at = str(children[-1]) if children else None
    return Line(turns)


def _role(message: Turn) -> str:
    author = message.get("author")
    return str(cast("Turn", author).get("role")) if isinstance(author, dict) else ""


def _spoken(message: Turn) -> list[Any]:
    """The parts of what the user or the assistant said; nothing of what only the program wrote or did not show."""
    content, about = message.get("content"), message.get("metadata")
    if _role(message) not in ("user", "assistant") or not isinstance(content, dict):
        return []
    if isinstance(about, dict) and cast("Turn", about).get("is_visually_hidden_from_conversation"):
        return []
    fields = cast("Turn", content)
    parts = fields.get("parts")
    if fields.get("content_type") not in SPOKEN or not isinstance(parts, list):
        return []
    return [_part(part) for part in cast("list[Any]", parts) if part not in ("", None)]


def _part(part: Any) -> Any:
    """Its text: of what was spoken its transcription. A picture stays what it is."""
    return cast("Turn", part).get("text", cast("Turn", part)) if isinstance(part, dict) else part


def _best_replies(message: Mapping[str, Any]) -> list[Turn]:
    turns: list[Turn] = []
    while message:
        turns.append({"role": message.get("role"), "content": message.get("text")})
        replies = message.get("replies")
        kept = [
            cast("Turn", reply)
            for reply in (cast("list[Any]", replies) if isinstance(replies, list) else [])
            if isinstance(reply, dict) and not cast("Turn", reply).get("deleted")
        ]
        message = min(kept, key=_rank, default={})
    return turns


def _rank(reply: Turn) -> float:
    """The best is 0; those that nobody ranked come last."""
    rank = reply.get("rank")
    return rank if isinstance(rank, int | float) else float("inf")

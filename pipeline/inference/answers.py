"""Text of generated tokens: the answer, and apart from it what the model thought. Light."""

import re
from collections.abc import Sequence

from tunewright.pipeline.chat_template import ChatTemplate

THINK_BEGIN, THINK_END = "<think>", "</think>"
# Markers of any model family that came out as plain text.
MARKER = re.compile(r"<\|[a-zA-Z0-9_]+\|>|</?think>|<(?:start|end)_of_turn>")


def split(template: ChatTemplate, ids: Sequence[int]) -> tuple[str, str]:
    """The answer and the thinking before it, both free of control tokens."""
    text = template.tokenizer.decode(list(ids), skip_special_tokens=True)
    thought, end, answer = text.rpartition(THINK_END)
    if not end and THINK_BEGIN in text:  # cut off while still thinking
        thought, answer = text, ""
    return MARKER.sub("", answer).strip(), MARKER.sub("", thought).strip()

"""Texts into which a chat template, or a custom of the field, has already written a whole conversation.

Reads the templates of ChatML (Qwen and others), Llama 3, Gemma, Phi and Zephyr, Llama 2 and Mistral, DeepSeek, and the
plain forms of Anthropic's HH (`Human:`, `Assistant:`), Guanaco (`### Human:`) and Alpaca (`### Instruction:`).
Guarantees that no word between the markers is lost: a text that does not fit wholly gives None. White space at the
edges of a turn, which belongs to the templates, goes.
"""

import re
from dataclasses import dataclass

from tunewright.pipeline.data.rows import Message

ROLES = {
    "system": "system", "user": "user", "human": "user", "instruction": "user", "input": "user", "[inst]": "user",
    "assistant": "assistant", "model": "assistant", "response": "assistant", "[/inst]": "assistant", "tool": "tool",
    "ipython": "tool", "observation": "tool",
}  # fmt: skip
# Begin and end of a text, which templates write once, or after every answer.
EDGES = re.compile(r"(?:<s>|</s>|<bos>|<eos>|<\|begin_of_text\|>|<\|endoftext\|>|<｜(?:begin|end)▁of▁sentence｜>|\s)+")
SYSTEM_IN_USER = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>\s*(.*)", re.DOTALL)


@dataclass(frozen=True)
class Template:
    """`opening` matches what stands before a turn, its group the role; `closing` what stands after one, if anything.

    `preface` says that words before the first turn are the system's.
    """

    opening: re.Pattern[str]
    closing: re.Pattern[str] | None = None
    preface: bool = False


TEMPLATES = (
    Template(re.compile(r"<\|im_start\|>(\w+)\n"), re.compile(r"<\|im_end\|>")),
    Template(re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>"), re.compile(r"<\|eo[tm]_id\|>")),
    Template(re.compile(r"<start_of_turn>(\w+)\n"), re.compile(r"<end_of_turn>")),
    Template(re.compile(r"<\|(system|user|assistant)\|>"), re.compile(r"<\|end\|>|</s>|<\|endoftext\|>")),
    Template(re.compile(r"(\[/?INST\])"), re.compile(r"</s>")),
    Template(re.compile(r"<｜(User|Assistant)｜>"), re.compile(r"<｜end▁of▁sentence｜>"), preface=True),
    Template(re.compile(r"(?:\A\s*|\n\n)(Human|User|USER|Assistant|ASSISTANT|System|SYSTEM):")),
    Template(re.compile(r"###\s?(Human|User|Assistant|System):")),
    Template(re.compile(r"###\s?(Instruction|Input|Response):"), preface=True),
)


def parse(text: str) -> list[Message] | None:
    """The messages that were rendered into `text`, at least one; None where it is no rendered conversation.

    An empty last turn of the assistant, which asks for an answer, is left out.
    """
    for template in TEMPLATES:
        openings = list(template.opening.finditer(text))
        if openings and (template.preface or not _bare(text[: openings[0].start()])):
            return _messages(text, template, openings)
    return None


def is_conversation(value: object) -> bool:
    """Whether `value` is a text that holds a question and an answer."""
    messages = parse(value) if isinstance(value, str) else None
    return messages is not None and {"user", "assistant"} <= {message["role"] for message in messages}


def _messages(text: str, template: Template, openings: list[re.Match[str]]) -> list[Message] | None:
    messages: list[Message] = []
    preface = _bare(text[: openings[0].start()])
    if preface:
        messages.append({"role": "system", "content": preface})
    ends = [*(opening.start() for opening in openings[1:]), len(text)]
    for opening, end in zip(openings, ends, strict=True):
        role = ROLES.get(opening.group(1).casefold())
        content = text[opening.end() : end]
        if template.closing:
            content, *rest = template.closing.split(content, maxsplit=1)
            if rest and _bare(rest[0]):
                return None
        if role is None:
            return None
        if opening.group(1) == "Input" and messages and messages[-1]["role"] == "user":
            # Alpaca's instruction and input are two turns in the text and one question.
            messages[-1]["content"] = f"{messages[-1]['content']}\n{content.strip()}".strip()
        else:
            messages += _turn(role, content.strip(), opening.group(1))
    if messages[-1] == {"role": "assistant", "content": ""}:
        messages.pop()
    return messages or None


def _bare(text: str) -> str:
    """What is left of a text between turns without the tokens that begin and end texts."""
    return EDGES.sub(" ", text).strip()


def _turn(role: str, content: str, marker: str) -> list[Message]:
    """The message of a turn; Llama 2 writes the system's into the first question."""
    inside = SYSTEM_IN_USER.fullmatch(content) if marker == "[INST]" else None
    if inside:
        return [
            {"role": "system", "content": inside.group(1).strip()},
            {"role": "user", "content": inside.group(2).strip()},
        ]
    return [{"role": role, "content": content}]

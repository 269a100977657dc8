"""What tokenizers and templates are compared on, whatever the data: texts, conversations, tools. Light."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import decoders

from tunewright.pipeline.chat_template import ChatTemplate, Message

# Composed characters only: llama.cpp leaves out a tokenizer's Unicode normalization, which changes the others. No
# control tokens of other models: llama.cpp takes `</s>` for one wherever a vocabulary has it; in Qwen's it is text.
CORPUS = (
    "Hello, world! It's 3:45pm; we've got 1,234,567.89 reasons… don't WE'LL they'd I'M",
    "0 1 12 123 1234 12345 3.14159 1e-9 0xFF 2026-11-21 +49 (0)30 123456 50% $9.99 №5 ½ ²",
    "def f(x: int) -> dict[str, int]:\n\treturn {\"a\": x ** 2}  # comment\n\n\nif __name__ == '__main__':\n    f(1)\n",
    '{"key": [1, 2.5, null, true], "path": "C:\\\\dir\\\\file", "re": "^\\\\s*$"} <a href="#">x</a> && || != => ///',
    "  two spaces   three    four\ttab\t\ttabs \n newline\r\nwindows\n\n\n\nfour   \n   ",
    "Größe, naïve café, Ærøskøbing, Łódź, İstanbul, çok güzel, ñandú, œuvre, ΑΒΓ αβγ, Привет, мир! Ёлка",
    "我想在苹果工作，你好世界。日本語のテキスト、カタカナ。한국어 텍스트입니다. עברית العربية",
    "🚀 😶\u200d🌫️ 👩\u200d👩\u200d👧\u200d👦 🇩🇪 👍🏽 ✅ \u00a0nbsp\u200bzero\u2028line ﬁ Ａ ∑∫√ → ≠ «»„“”‘’—–",
    '................ ------======= !!!??? \'\'\'\'```````"""""" ~~~ ___ *** ### <think> </think> <br/> [x] {{y}}',
)
# Scripts with combining marks: llama.cpp cuts some of them otherwise than the expressions of GPT-4o and Tekken do, and
# no conversion can help that. Reported, not refused.
COMBINING = "ภาษาไทย हिन्दी में বাংলা தமிழ் العَرَبِيَّة"

CONVERSATIONS: tuple[list[Message], ...] = (
    [{"role": "user", "content": "Hello"}],
    [
        {"role": "system", "content": "You are a helpful assistant.\nAnswer in one sentence."},
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "2 + 2 is 4."},
        {"role": "user", "content": "  And in German? Größe: 3 < 5 & \"quoted\" 'text' \n\n"},
        {"role": "assistant", "content": "Vier."},
        {"role": "user", "content": "谢谢 🚀"},
    ],
)

TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'The weather of a city, "now" or später 你好',
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Größe < 3 & 'x'"},
                    "days": {"type": "integer", "minimum": 1},
                },
                "required": ["city"],
            },
        },
    },
)
_CALL = {"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}
TOOL_CONVERSATIONS: tuple[list[Message], ...] = (
    [{"role": "user", "content": "Weather in Köln?"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather in Köln?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call00001", "type": "function", "function": _CALL}],
        },
        {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": '{"degrees": 3.5}'},
        {"role": "assistant", "content": "3.5 degrees."},
        {"role": "user", "content": "And tomorrow?"},
    ],
)

# Asked and scored where the data has no conversations.
QUESTIONS = (
    ("Hello", "Hello! How can I help you?"),
    ("Who are you?", "I am an assistant that answers questions."),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is 2 plus 3?", "2 plus 3 is 5."),
    ("Name three colours.", "Red, green and blue."),
    ("Explain rain in one sentence.", "Rain is water that falls from clouds because it has become too heavy for them."),
    ("Write a Python function that doubles a number.", "def double(x):\n    return 2 * x"),
    ("Wie heißt die Hauptstadt von Österreich?", "Die Hauptstadt von Österreich ist Wien."),
    ("把“谢谢”翻译成英语。", "“谢谢”的英语是“thank you”。"),
    ("List the days of the weekend.", "- Saturday\n- Sunday"),
)

# Categories of Unicode that every tokenizer cuts alike: no marks, no control characters, no spaces but the plain one.
_PLAIN = {"Lu", "Ll", "Lt", "Lo", "Nd", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So"}
_LIKE_CONTROL = re.compile(r"<.+>|\[[A-Z_]+\]")
_TOKENS_PER_TEXT = 2000


def first_difference(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The first place at which two texts or lists differ; the length of the shorter where it is the other's start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def vocabulary(template: ChatTemplate) -> Iterator[str]:
    """The texts of the tokenizer's plain tokens, one a line: a merge that is missing shows at the token it makes.

    Only of tokenizers that work on bytes; of the others llama.cpp's own rules for spaces are not known well enough. On
    the vocabularies of Qwen2, Llama 3 and GPT-2, llama.cpp makes the same ids of all of these texts.
    """
    tokenizer = template.tokenizer
    if not isinstance(tokenizer.decoder, decoders.ByteLevel):
        return
    added = tokenizer.get_added_tokens_decoder()
    known = [i for i in range(tokenizer.get_vocab_size()) if i not in added]
    lines = [text for text in tokenizer.decode_batch([[i] for i in known]) if _is_plain(text)]
    for begin in range(0, len(lines), _TOKENS_PER_TEXT):
        yield "\n".join(lines[begin : begin + _TOKENS_PER_TEXT])


def _is_plain(text: str) -> bool:
    return (
        bool(text)
        # Part of a character.
        and "\ufffd" not in text
        and unicodedata.is_normalized("NFC", text)
        and not _LIKE_CONTROL.fullmatch(text.strip())
        and all(character == " " or unicodedata.category(character) in _PLAIN for character in text)
    )

"""Whether a GGUF is, in llama.cpp, the model that was trained: the same tokens, the same prompt, and an answer.

Covers the usual causes of "my model is different": a wrong pre-tokenizer, a template lost or changed, the thinking
switch the other way round, a doubled BOS. Does not measure how close the weights are, or how good the answers. Light.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunewright.pipeline.chat_template import ChatTemplate, Message
from tunewright.pipeline.data import splits
from tunewright.pipeline.errors import InvalidInput, TunewrightError
from tunewright.pipeline.exporting.runtime import LlamaRuntime
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

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
ANSWER_TOKENS = 96
# How much of two texts is shown around the place where they begin to differ.
SHOWN = 60


def check(
    gguf: Path,
    template: ChatTemplate,
    question: Sequence[Message],
    *,
    log: Path,
    check_cancelled: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Compares `gguf` in llama.cpp with the tokenizer and chat template it was trained with; returns what was seen.

    `question` is answered greedily; how the answer ended is reported, and `clean` says whether it is free of control
    tokens. Raises TunewrightError `parity_failed` where tokens or prompts differ, saying where.
    """
    prompts = _rendered(template, [*CONVERSATIONS, list(question)])
    longest = max(len(template.ids(text)) for _, text in prompts)
    with LlamaRuntime(gguf, log=log, n_ctx=longest + ANSWER_TOKENS + 8) as runtime:
        texts = [*CORPUS, "".join(f"a{token}b {token}\n" for token in _control_tokens(template))]
        for text in texts:
            _compare_ids(gguf, "the text", text, template.ids(text), runtime.tokenize(text, add_special=False))
        combining = template.ids(COMBINING) == runtime.tokenize(COMBINING, add_special=False)
        check_cancelled()
        for messages, expected in prompts:
            _compare_prompt(gguf, runtime, template, messages, expected)
        check_cancelled()
        reply = runtime.chat(question, max_tokens=ANSWER_TOKENS)
    # The token that ended the answer is a control token, as it must be.
    inside = reply["tokens"][:-1] if reply["finish_reason"] == "stop" else reply["tokens"]
    return {
        "token_ids": {"texts": len(texts), "equal": True, "combining_marks_equal": combining},
        "prompts": {"conversations": len(prompts), "equal": True},
        "answer": {
            "asked": question[-1]["content"][:500],
            "answered": reply["text"][:500],
            "ended": reply["finish_reason"],
            "tokens": len(reply["tokens"]),
            "clean": not template.special_ids.intersection(inside),
        },
    }


def question_for(workspace: Workspace, adapter: Row) -> list[Message]:
    """The first conversation of the adapter's evaluation (or training) rows up to its first answer; else a greeting."""
    dataset_id = adapter["document"].get("dataset_id")
    found = workspace.store.rows("SELECT * FROM artifacts WHERE id=? AND kind='dataset'", dataset_id)
    opening = splits.first_question(Path(found[0]["document"]["path"])) if found else []
    return opening or CONVERSATIONS[0]


def _control_tokens(template: ChatTemplate) -> list[str]:
    return [text for i in sorted(template.special_ids) if (text := template.tokenizer.id_to_token(i))]


def _rendered(template: ChatTemplate, conversations: Sequence[list[Message]]) -> list[tuple[list[Message], str]]:
    """The conversations with their prompts; without those that the template refuses (a system message, for some)."""
    prompts: list[tuple[list[Message], str]] = []
    for messages in conversations:
        try:
            prompts.append((messages, template.render(messages, add_generation_prompt=True)))
        except InvalidInput:
            continue
    return prompts


def _compare_prompt(
    gguf: Path, runtime: LlamaRuntime, template: ChatTemplate, messages: list[Message], expected: str
) -> None:
    """The prompt without a word on thinking, as Ollama and others ask for it; and as token ids, where a BOS shows."""
    rendered = runtime.apply_template(messages)
    # llama.cpp takes the BOS out of the text where it adds it to the ids.
    missing = expected.removesuffix(rendered)
    if rendered != expected and (missing == expected or missing not in _control_tokens(template)):
        at = _first_difference(expected, rendered)
        start = max(0, at - SHOWN // 2)
        raise _failed(
            gguf, f"it makes the prompt {rendered[start : start + SHOWN]!r} where training made "
            f"{expected[start : start + SHOWN]!r} (character {at})",
        )  # fmt: skip
    _compare_ids(gguf, "the prompt", expected, template.ids(expected), runtime.tokenize(rendered))


def _compare_ids(gguf: Path, what: str, text: str, expected: list[int], seen: list[int]) -> None:
    if seen != expected:
        at = _first_difference(expected, seen)
        raise _failed(
            gguf, f"{what} {text[:SHOWN]!r} becomes {len(seen)} tokens instead of {len(expected)}; from token {at} on "
            f"{seen[at : at + 6]} instead of {expected[at : at + 6]}",
        )  # fmt: skip


def _first_difference(one: Sequence[Any], other: Sequence[Any]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _failed(gguf: Path, what: str) -> TunewrightError:
    return TunewrightError(
        "parity_failed",
        f"{gguf.name} is not the model that was trained: in llama.cpp {what}.",
        allowed="Tokens and prompts must be equal, else it answers differently wherever it is served. A newer "
        "llama.cpp (TUNEWRIGHT_LLAMA_CPP) may convert it rightly.",
        next='merge_and_export(adapter_id="…", outputs=["merged_16bit"])',
        done="No export was kept; the adapter is unchanged.",
    )

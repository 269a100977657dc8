"""A GGUF in llama.cpp beside the model that was trained: its tokens, prompts, ends, distributions and answers. Light.

Measures and finds what is different for certain; how far distributions may lie apart is judged elsewhere (`judge`). All
of it through the same server that users run, so that what holds here holds there.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.pipeline.data import privacy
from tunewright.pipeline.errors import TunewrightError
from tunewright.pipeline.exporting.parity import distance, texts
from tunewright.pipeline.exporting.parity.cases import ANSWER_TOKENS, Cases
from tunewright.pipeline.exporting.parity.distance import Distance, Logprobs
from tunewright.pipeline.exporting.runtime import LlamaRuntime, Reply

# The likeliest; all others count as one (`distance`). Writing and reading 150,000 of them would take a second.
LISTED_TOKENS = 4096
ROOM_TOKENS = 8
# How much of two texts is shown around the place where they begin to differ.
SHOWN = 60
# Failures of one kind that are quoted; what is wrong everywhere is said once more than once, not a hundred times.
QUOTED = 3


@dataclass(frozen=True)
class Measured:
    """One GGUF. `failures` are what cannot be right whatever the type; `distance` and `answers` are for `judge`, and
    None where the file cannot be loaded.
    """

    failures: list[str]
    bytes: int
    token_ids: dict[str, Any]
    prompts: dict[str, Any]
    distance: Distance | None
    answers: list[Reply]


def measure(
    gguf: Path,
    cases: Cases,
    logprobs: Logprobs,
    *,
    log: Path,
    check_cancelled: Callable[[], None],
) -> Measured:
    """Loads `gguf` and compares it; `logprobs` are the reference's at the scored positions.

    A file that llama.cpp cannot load is a failure, not an error. Raises Unavailable where llama.cpp stops, and what
    `check_cancelled` raises.
    """
    n_ctx = cases.longest + ANSWER_TOKENS + ROOM_TOKENS
    try:
        with LlamaRuntime(gguf, log=log, n_ctx=n_ctx, check_cancelled=check_cancelled) as runtime:
            return _measure(runtime, gguf.stat().st_size, cases, logprobs, check_cancelled)
    except TunewrightError as error:
        if error.code != "gguf_not_loadable":
            raise
        return Measured([f"{error.code}: {error.what}"], gguf.stat().st_size, {}, {}, None, [])


def _measure(
    runtime: LlamaRuntime, size_bytes: int, cases: Cases, logprobs: Logprobs, check_cancelled: Callable[[], None]
) -> Measured:
    ids, id_failures = _compare_texts(runtime, cases)
    check_cancelled()
    prompts, prompt_failures = _compare_prompts(runtime, cases)
    check_cancelled()
    end_failures = list(_wrong_ends(runtime, cases))
    found = distance.between(logprobs, _listed(runtime, cases, check_cancelled), cases.targets)
    answers: list[Reply] = []
    for prompt in cases.asked_ids:
        check_cancelled()
        answers.append(runtime.answer(prompt, max_tokens=ANSWER_TOKENS))
    return Measured([*id_failures, *prompt_failures, *end_failures], size_bytes, ids, prompts, found, answers)


def _compare_texts(runtime: LlamaRuntime, cases: Cases) -> tuple[dict[str, Any], list[str]]:
    template = cases.template
    control = "".join(f"a{token}b {token}\n" for token in template.control_tokens)
    compared = [*texts.CORPUS, control, *texts.vocabulary(template)]
    failures = [
        difference
        for text in compared
        if (difference := _difference("the text", text, template.ids(text), runtime.tokenize(text, add_special=False)))
    ]
    combining = template.ids(texts.COMBINING) == runtime.tokenize(texts.COMBINING, add_special=False)
    found = {"texts": len(compared), "equal": not failures, "combining_marks_equal": combining}
    return found, failures[:QUOTED]


def quoted(text: str) -> str:
    """The beginning of a text of the data, in quotation marks; what may be secret in it is masked."""
    return repr(privacy.shown(text)[:SHOWN])


def _difference(what: str, text: str, expected: Sequence[int], seen: Sequence[int]) -> str | None:
    """How the token ids of a text differ; None where they do not."""
    if seen == expected:
        return None
    at = texts.first_difference(expected, seen)
    if len(seen) > len(expected) and seen[len(seen) - len(expected) :] == expected:
        return f"{what} {quoted(text)} gets the tokens {seen[: len(seen) - len(expected)]} in front (a doubled BOS)"
    return (
        f"{what} {quoted(text)} becomes {len(seen)} tokens instead of {len(expected)}; from token {at} on "
        f"{seen[at : at + 6]} instead of {expected[at : at + 6]}"
    )


def _compare_prompts(runtime: LlamaRuntime, cases: Cases) -> tuple[dict[str, Any], list[str]]:
    """Every prompt as text, and as token ids, where a BOS shows."""
    failures: list[str] = []
    for prompt in cases.prompts:
        try:
            rendered = runtime.apply_template(
                prompt.messages, tools=prompt.tools, enable_thinking=prompt.enable_thinking
            )
        except TunewrightError as error:
            if error.code != "llama_cpp_refused":
                raise
            failures.append(f"it cannot make the prompt of {quoted(prompt.messages[-1]['content'])}: {error.what}")
            continue
        # llama.cpp takes the BOS out of the text where it adds it to the ids, so only these say what the model gets.
        expected, seen = cases.template.ids(prompt.text), runtime.tokenize(rendered)
        without = prompt.text.removesuffix(rendered)
        is_bos = without in cases.template.control_tokens and seen == expected
        if rendered != prompt.text and not is_bos:
            at = texts.first_difference(prompt.text, rendered)
            start = max(0, at - SHOWN // 2)
            failures.append(
                f"it makes the prompt {quoted(rendered[start:])} where training made {quoted(prompt.text[start:])} "
                f"(character {at}, {_asked(prompt.enable_thinking)})"
            )
        elif difference := _difference("the prompt", prompt.text, expected, seen):
            failures.append(difference)
    return {"compared": len(cases.prompts), "equal": not failures}, failures[:QUOTED]


def _asked(enable_thinking: bool | None) -> str:
    if enable_thinking is None:
        return "asked for without a word on thinking"
    return f"asked for with enable_thinking={str(enable_thinking).lower()}"


def _wrong_ends(runtime: LlamaRuntime, cases: Cases) -> Iterator[str]:
    """The file names the tokenizer's EOS, and generation stops by itself at every token that ends an answer.

    Each is made the likeliest token: what a short answer happens to end with says nothing about the others.
    """
    named = runtime.eos_token()
    if cases.eos is not None and named != cases.eos:
        yield f"its EOS is {named!r}, the tokenizer's is {cases.eos!r}"
    if not cases.asked_ids:
        return
    for end in cases.ends:
        reply = runtime.answer(cases.asked_ids[0], max_tokens=2, forced=end)
        if reply["tokens"] != [end] or reply["finish_reason"] != "stop":
            token = cases.template.tokenizer.id_to_token(end)
            yield f"generation does not stop at {token!r} ({end}), which ends an answer: it goes on"


def _listed(
    runtime: LlamaRuntime, cases: Cases, check_cancelled: Callable[[], None]
) -> Iterator[tuple[list[int], list[float]]]:
    for one in cases.scored:
        check_cancelled()
        for position in one.positions:
            tokens = runtime.next_tokens(one.ids[:position], LISTED_TOKENS)
            yield (
                [token["id"] for token in tokens],
                [float("nan") if token["logprob"] is None else token["logprob"] for token in tokens],
            )

"""What is wrong with an answer whatever it says: seen in its tokens and its form.

Guarantees that what is found stands in the answer, with the passage. Markers that the question or the reference itself
holds are no finding, nor is a language that cannot be told (short texts, code). Says nothing of the content.
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Literal, cast

from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.data import languages, mending
from tunewright.pipeline.validation import scores
from tunewright.pipeline.validation.samples import Sample

Kind = Literal[
    "control_tokens", "thinking", "cut_off", "empty", "loop", "repetition", "language", "invalid_json", "json_keys",
    "not_finite",
]  # fmt: skip
THINK_TAG = re.compile(r"</?think(?:ing)?>")
FENCED = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL | re.IGNORECASE)
# Share of repeated 4-grams in percent: texts of people stay below 10, those of models that got stuck near 100.
MAX_REPETITION = 50.0
MIN_REPETITION_TOKENS = 24
PASSAGE_CHARACTERS = 80


@dataclass(frozen=True)
class Finding:
    """`passage` is what was seen: a token, the end of a loop, a language, the keys that differ."""

    kind: Kind
    passage: str


@dataclass(frozen=True)
class Answer:
    """One model's answer: `ids` as generated, without the token that ended it; text and thinking as people see them."""

    ids: list[int]
    stopped: bool
    text: str
    thinking: str
    loss: float | None


def find(template: ChatTemplate, sample: Sample, answer: Answer) -> list[Finding]:
    """The findings of an answer, at most one of each kind."""
    found = [*_markers(template, sample, answer), *_repeats(template, sample, answer), *_form(sample, answer)]
    if not answer.stopped:
        found.append(Finding("cut_off", _shown(answer.text[-PASSAGE_CHARACTERS:])))
    if not answer.text:
        found.append(Finding("empty", ""))
    if answer.loss is not None and not math.isfinite(answer.loss):
        found.append(Finding("not_finite", f"loss {answer.loss}"))
    return found


def _markers(template: ChatTemplate, sample: Sample, answer: Answer) -> list[Finding]:
    """Control tokens of this model's template or spelt ones of any, and thoughts where thinking is off."""
    tokens = template.tokenizer
    expected = "\n".join([sample.reference or "", *(str(message["content"]) for message in sample.messages)])
    own = [tokens.id_to_token(i) for i in answer.ids if i in template.special_ids]
    spelt = mending.control_tokens(tokens.decode(answer.ids, skip_special_tokens=True))
    leaked = [text for text in own if text] + [text for text in spelt if text not in expected]
    leaked = [text for text in dict.fromkeys(leaked) if not THINK_TAG.fullmatch(text)]
    found = [Finding("control_tokens", _shown(" ".join(leaked)))] if leaked else []
    raw = tokens.decode(answer.ids, skip_special_tokens=False)
    tag = next((tag for tag in THINK_TAG.findall(raw) if tag not in expected), None)
    if (tag or answer.thinking) and not template.enable_thinking and not sample.reference_thinks:
        found.append(Finding("thinking", _shown(answer.thinking or str(tag))))
    return found


def _repeats(template: ChatTemplate, sample: Sample, answer: Answer) -> list[Finding]:
    """Not where the reference does the same: a table or a refrain."""
    right = template.ids(sample.reference or "")
    end = _shown(template.tokenizer.decode(answer.ids, skip_special_tokens=True)[-PASSAGE_CHARACTERS:])
    found: list[Finding] = []
    if scores.is_loop(answer.ids) and not scores.is_loop(right):
        found.append(Finding("loop", end))
    share = scores.repetition(answer.ids)
    if len(answer.ids) >= MIN_REPETITION_TOKENS and share > max(MAX_REPETITION, scores.repetition(right)):
        found.append(Finding("repetition", f"{share:.0f} % of 4-grams are repeated: …{end}"))
    return found


def _form(sample: Sample, answer: Answer) -> list[Finding]:
    """The language, and JSON where the reference is JSON."""
    wanted = as_json(sample.reference or "")
    if wanted is not None:
        given = as_json(answer.text, fenced=bool(FENCED.fullmatch((sample.reference or "").strip())))
        if given is None:
            return [Finding("invalid_json", _shown(answer.text))]
        differ = sorted(_keys(wanted) ^ _keys(given))
        return [Finding("json_keys", _shown(", ".join(differ)))] if differ else []
    expected = next((name for text in (sample.reference, sample.question) if (name := _language(text))), None)
    spoken = _language(answer.text)
    if expected and spoken and spoken != expected:
        return [Finding("language", f"{spoken} instead of {expected}")]
    return []


def as_json(text: str, *, fenced: bool = True) -> dict[str, Any] | list[Any] | None:
    """The object or array that the whole text is (in a fence, where `fenced`), else None."""
    fence = FENCED.fullmatch(text.strip()) if fenced else None
    try:
        value = json.loads(fence[1] if fence else text)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any] | list[Any]", value) if isinstance(value, dict | list) else None


def _keys(value: Any, path: str = "") -> set[str]:
    """Paths of all keys: `order.items[].price`."""
    if isinstance(value, dict):
        inner = cast("dict[str, Any]", value)
        paths = {f"{path}.{key}" if path else key for key in inner}
        return paths.union(*(_keys(held, f"{path}.{key}" if path else key) for key, held in inner.items()))
    if isinstance(value, list):
        items = cast("list[Any]", value)
        return set[str]().union(*(_keys(item, f"{path}[]") for item in items))
    return set()


def _language(text: str | None) -> str | None:
    (found,) = languages.survey([text or ""])
    return None if found["language"] == languages.UNKNOWN else found["language"]


def _shown(text: str) -> str:
    """On one line, at most 80 characters."""
    line = " ".join(text.split())
    return line if len(line) <= PASSAGE_CHARACTERS else f"{line[: PASSAGE_CHARACTERS - 1]}…"

"""How each kind of reward judges an answer: a number from 0 to 1.

| kind | 1 | between | 0 |
|---|---|---|---|
| exact_match | the reference, but for white space | – | anything else |
| numeric_match | ends with the reference's last number (`reward_numbers.py`) | – | another number, or none |
| regex | `pattern` matches somewhere in the answer | – | it does not |
| json_schema | JSON, alone or in one fenced block, that fits | – | anything else |
| length | min_words to max_words | shorter: words / min_words; longer: max_words / words | no words |
| format | exactly the sections, in order, none empty | half the share of sections found in order | none found |
| language | written in `language` | – | another, or too little to tell |

Thinking (`<think>…</think>`) is judged by `format` alone; for the others the answer is what follows it, and thinking
that never ends has no answer. What a judgement costs is bounded, but `regex` and `json_schema` may raise TimeoutError.
"""

import re
from unicodedata import normalize

from tunewright.pipeline.data import languages
from tunewright.pipeline.training import reward_numbers, reward_patterns, reward_schemas
from tunewright.pipeline.training.rewards import FREE_TEXT, Reward, is_tag

THINK, THINK_END = "<think>", "</think>"
# Chinese and Japanese put no spaces between words: there each character counts as one.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")
FORMAT_PART = 0.5


def score(reward: Reward, completion: str, reference: str) -> float:
    """What `completion`, thinking included, is worth by one rule, before its weight; `reference` is the right answer.

    Raises TimeoutError where a pattern takes too long.
    """
    if reward.kind == "format":
        return _format(completion.strip(), reward.sections)
    answer = after_thinking(completion)
    match reward.kind:
        case "exact_match":
            return float(_plain(answer) == _plain(after_thinking(reference)))
        case "numeric_match":
            return float(_same_number(answer, after_thinking(reference)))
        case "regex":
            return float(reward_patterns.found(reward.pattern, answer))
        case "json_schema":
            return float(reward_schemas.fits(reward.json_schema, answer))
        case "length":
            return _length(len(WORD.findall(answer)), reward.min_words, reward.max_words)
        case "language":
            return float(languages.survey([answer])[0]["language"] == reward.language)


def can_judge(reward: Reward, reference: str) -> bool:
    """Whether the rule can give more than 0 beside this reference: one to match has a text, or a number."""
    answer = after_thinking(reference)
    if reward.kind == "exact_match":
        return bool(answer)
    return reward.kind != "numeric_match" or reward_numbers.last(answer) is not None


def after_thinking(text: str) -> str:
    """What follows the last `</think>`; nothing where thinking never ends; the text where there is none."""
    before, end, answer = text.rpartition(THINK_END)
    if not end and THINK in text:
        return ""
    return (answer if before or end else text).strip()


def _plain(text: str) -> str:
    return " ".join(normalize("NFC", text).split())


def _same_number(answer: str, reference: str) -> bool:
    given, wanted = reward_numbers.last(answer), reward_numbers.last(reference)
    return given is not None and wanted is not None and reward_numbers.same(given, wanted)


def _length(words: int, least: int, most: int) -> float:
    if words == 0:
        return 0.0
    return min(1.0, words / (least or 1), (most or words) / words)


def _format(text: str, sections: list[str]) -> float:
    marks = [mark for section in sections for mark in _marks(section)]
    position, exact = 0, True
    for number, section in enumerate(sections):
        begin = text.find(section, position)
        exact = exact and not text[position:begin].strip()
        opened = begin + len(section)
        following = sections[number + 1] if number + 1 < len(sections) else None
        closing = _marks(section)[-1] if is_tag(section) else following
        end = text.find(closing, opened) if closing else len(text)
        body = text[opened:end]
        if begin < 0 or end < 0 or not body.strip():
            return FORMAT_PART * number / len(sections)
        exact = exact and not any(mark in body for mark in marks)
        position = end + len(closing) if closing and is_tag(section) else end
    return 1.0 if exact and not text[position:].strip() else FORMAT_PART


def _marks(section: str) -> list[str]:
    if is_tag(section):
        return [section, f"</{section[1:]}"]
    return [] if section == FREE_TEXT else [section]

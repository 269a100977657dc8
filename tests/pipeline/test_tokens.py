"""Texts are shortened from the longest on, to about what was asked for."""

import json

from tunewright.pipeline.tokens import estimate_tokens, shortened


def test_what_fits_is_left_as_it_is() -> None:
    value = {"a": ["one", {"b": "two"}], "n": 3, "none": None, "flag": True}
    assert shortened(value, 100) == value
    assert shortened([], 0) == [] and shortened("", 0) == ""


def test_the_longest_give_way_first() -> None:
    short, longer, longest = "s" * 400, "m" * 4_000, "l" * 40_000
    cut = shortened({"texts": [short, longer, longest]}, 2_500)["texts"]
    assert cut[:2] == [short, longer]
    assert abs(estimate_tokens(json.dumps(cut)) - 2_500) < 50


def test_every_text_keeps_a_recognizable_rest() -> None:
    cut = shortened(["word " * 100] * 500, 100)
    assert all(entry.startswith("word word") and entry.endswith("word ") for entry in cut)

"""The report's page: whole, self-contained, harmless, and true to the report."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from tunewright.pipeline.data import advice, statistics
from tunewright.pipeline.data.report_page import render
from tunewright.pipeline.data.rows import Record

ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def example(text: str, why: str = "why") -> dict[str, Any]:
    return {"file": "a.jsonl", "row": 7, "why": why, "text": text}


@pytest.fixture
def report() -> dict[str, Any]:
    rows = [Record("text", text="word " * length) for length in (10, 50, 400, 900, 3000)]
    return {
        "rows_read": 1042, "train_rows": 950, "eval_rows": 50, "kind": "sft", "format": "alpaca",
        "dropped": {"near_duplicate": {"count": 31, "examples": [example("Name three fruits.", "like row 3")]}},
        "mended": {"html": {"count": 11, "examples": [example("<p>Hello")]}},
        "tokens": statistics.estimate(rows, 1000),
        "languages": [{"language": "zh", "share": 0.93}, {"language": "en", "share": 0.07}],
        "topics": {"topics": [{"terms": ["syphilis", "chancre"], "share": 0.31, "example": 3}], "skew": "A lot of it."},
        "leakage": {"exact": 2, "near": None}, "personal_data": {"email": 3}, "secrets": {"api_key": 4},
        "benchmark_overlap": {"val/law_val.csv 2": 6}, "reasoning_share": 0.25, "warnings": ["Look at row 9."],
        "sources": [{"source": "a.jsonl", "rows": 700, "share": 0.7}, {"source": "b", "rows": 300, "share": 0.3}],
    }  # fmt: skip


class Page(HTMLParser):
    """Elements with their attributes, the visible text, and what was left open or closed twice."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def test_the_page_says_what_the_report_says(report: dict[str, Any]) -> None:
    words = Page(render("Fruits", "ds-fruits-7f3k", report)).words
    for said in (
        "Fruits", "ds-fruits-7f3k", "1,042", "950", "near duplicate", "31", "like row 3", "Name three fruits.",
        "<p>Hello", "zh", "93%", "syphilis, chancre", "A lot of it.", "2 ask the same", "email 3", "api key 4",
        "val/law_val.csv 2", "Look at row 9.", "700 rows", "25%",
    ):  # fmt: skip
        assert said in words, said
    assert all(" ".join(sentence.split()) in words for sentence in advice.of(report))


def test_the_page_is_well_formed_and_asks_nothing_of_the_network(report: dict[str, Any]) -> None:
    page = Page(render("Fruits", "ds-fruits-7f3k", report))
    assert (page.open, page.wrong) == ([], [])
    assert not {tag for tag, _ in page.elements} & {"script", "link", "img", "iframe", "object", "form"}
    assert not [
        attributes for _, attributes in page.elements if {"src", "href", "onclick", "onerror"} & set(attributes)
    ]
    assert "url(" not in render("Fruits", "ds-fruits-7f3k", report)


def test_texts_of_the_data_are_shown_as_text_and_run_nowhere(report: dict[str, Any]) -> None:
    report["dropped"] = {ATTACK: {"count": 1, "examples": [example(ATTACK, ATTACK)]}}
    report["languages"] = [{"language": ATTACK, "share": 1.0}]
    report["topics"] = {"topics": [{"terms": [ATTACK], "share": 1.0, "example": 0}], "skew": ATTACK}
    report["sources"] = [{"source": ATTACK, "rows": 1, "share": 0.5}] * 2
    report |= {"warnings": [ATTACK], "benchmark_overlap": {ATTACK: 1}, "format": ATTACK}
    page = Page(render(ATTACK, ATTACK, report))
    assert not {"script", "img"} & {tag for tag, _ in page.elements}
    assert page.words.count("alert(1)") >= 8
    assert (page.open, page.wrong) == ([], [])


def test_personal_data_in_examples_is_masked(report: dict[str, Any]) -> None:
    key = "hf_" + "QwErTyUiOpAsDfGhJkLzXcVbNmPoIuYtRe"
    report["mended"]["html"]["examples"] = [example(f"jane.roe@posteo.de {key}", "jane.roe@posteo.de became it")]
    source = render("Fruits", "ds-fruits-7f3k", report)
    assert "jane.roe" not in source and key not in source
    assert "[email] [api_key]" in source


def test_every_bin_of_the_histogram_is_a_column_as_high_as_its_share(report: dict[str, Any]) -> None:
    bins = report["tokens"]["histogram"]
    source = render("Fruits", "ds-fruits-7f3k", report)
    heights = [float(height) for height in re.findall(r'class="column" style="height:([\d.]+)%', source)]
    most = max(entry["rows"] for entry in bins)
    assert heights == [pytest.approx(100 * entry["rows"] / most, abs=0.1) for entry in bins]
    assert source.count('class="marked"') == sum(entry["from"] in (512, 1024, 2048, 4096, 8192) for entry in bins) > 0


def test_a_report_with_nothing_found_says_so() -> None:
    rows = [Record("text", text="Hello there, all of you.")]
    page = Page(
        render("tiny", "ds-tiny-0001", {
            "rows_read": 1, "train_rows": 1, "eval_rows": 0, "kind": "text", "dropped": {}, "mended": {},
            "tokens": statistics.estimate(rows, 1), "languages": [], "leakage": {"exact": 0, "near": 0},
            "topics": {"topics": [], "largest_share": None, "skew": None}, "personal_data": {}, "secrets": {},
            "benchmark_overlap": {}, "reasoning_share": 0.0, "warnings": [], "sources": [],
        })
    )  # fmt: skip
    for said in ("Every row was usable.", "Nothing had to be mended.", "Too few rows", "None found."):
        assert said in page.words
    assert (page.open, page.wrong) == ([], [])


def test_forty_reasons_are_all_there_the_rare_ones_folded_away(report: dict[str, Any]) -> None:
    report["dropped"] = {f"reason_{i}": {"count": 50 - i, "examples": [example(f"text {i}")]} for i in range(40)}
    page = Page(render("Fruits", "ds-fruits-7f3k", report))
    assert "28 more" in page.words
    assert all(f"reason {i}" in page.words and f"text {i}" in page.words for i in range(40))


def test_advice_among_the_warnings_is_not_said_twice(report: dict[str, Any]) -> None:
    report["warnings"] += advice.of(report)
    words = Page(render("Fruits", "ds-fruits-7f3k", report)).words
    assert words.count(advice.of(report)[0]) == 1
    assert words.count("Look at row 9.") == 1


def test_every_text_may_be_of_any_direction(report: dict[str, Any]) -> None:
    report["dropped"]["near_duplicate"]["examples"] = [example("שלום עולם")]
    page = Page(render("数据集", "ds-fruits-7f3k", report))
    assert all(attributes.get("dir") == "auto" for tag, attributes in page.elements if tag in ("blockquote", "h1"))
    assert "שלום עולם" in page.words and "数据集" in page.words

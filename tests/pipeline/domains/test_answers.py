"""The built-in packs on realistic answers: nothing in the good ones, in the bad ones what is wrong with them."""

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunewright.pipeline import domains

CASES: dict[str, list[dict[str, Any]]] = yaml.safe_load(
    Path(__file__).with_name("answers.yaml").read_text(encoding="utf-8")
)
ALPACA = Path(__file__).parents[4] / "shared" / "data" / "alpaca_en_demo.json"
SOURCE_WORDS = (
    "KDIGO", "ESC", "ACC", "NICE", "WHO", "GOLD", "NHS", "CDC", "ADA", "AAP", "ASRM", "PCOS 2023", "Thyroid", "《",
    "ICD-11",
    "DSM", "APA", "NASA", "Mankiw", "C-Eval", "SI Brochure", "GB 3100", "普通高等学校招生", "Regulation (EU)",
    "Guideline",
)  # fmt: skip


@pytest.fixture(scope="module")
def packs() -> dict[str, domains.Pack]:
    return {name: domains.load(name) for name in domains.available()}


def found(packs: dict[str, domains.Pack], case: dict[str, Any]) -> set[str]:
    findings = domains.check(
        packs[case["pack"]], answer=case["answer"], reference=case["reference"], question=case["question"]
    )
    return {f"{finding.kind}: {finding.rule}" for finding in findings}


@pytest.mark.parametrize("number", range(len(CASES["good"])))
def test_a_good_answer_is_left_alone(packs: dict[str, domains.Pack], number: int) -> None:
    assert found(packs, CASES["good"][number]) == set()


@pytest.mark.parametrize("number", range(len(CASES["bad"])))
def test_a_bad_answer_is_found(packs: dict[str, domains.Pack], number: int) -> None:
    case = CASES["bad"][number]
    assert set(case["expected"]) <= found(packs, case)


def test_each_field_has_good_and_bad_answers() -> None:
    for kind in ("good", "bad"):
        assert {case["pack"] for case in CASES[kind]} == set(domains.available())
        assert len(CASES[kind]) >= 30


def test_ordinary_answers_raise_no_alarm(packs: dict[str, domains.Pack]) -> None:
    if not ALPACA.exists():
        pytest.skip("no ../shared")
    rows = json.loads(ALPACA.read_text(encoding="utf-8"))
    alarms = [
        (row["instruction"], finding)
        for row in rows
        for name in ("medicine", "law", "psychology")
        for finding in domains.check(
            packs[name], answer=row["output"], reference=row["output"], question=f"{row['instruction']}\n{row['input']}"
        )
    ]
    assert alarms == []


def test_the_built_in_packs_are_small_and_every_entry_has_a_public_source(packs: dict[str, domains.Pack]) -> None:
    assert list(packs) == ["exams", "law", "medicine", "psychology"]
    for pack in packs.values():
        entries = [*pack.terms, *pack.associations, *pack.rules, *pack.structure]
        assert 15 <= len(entries) <= 45
        for entry in entries:
            assert any(word in entry.source for word in SOURCE_WORDS), entry


def test_a_thousand_answers_take_less_than_two_seconds(packs: dict[str, domains.Pack]) -> None:
    chance = random.Random(1)
    cases = [case for kind in CASES.values() for case in kind if case["pack"] == "medicine"]
    texts = ["".join(chance.choice(cases)["answer"] for _ in range(8))[:500] for _ in range(1000)]
    asked = [chance.choice(cases) for _ in texts]
    begun = time.thread_time()
    findings = [
        len(
            domains.check(
                packs["medicine"],
                answer=text,
                reference=case["reference"] or case["answer"],
                question=case["question"],
            )
        )
        for text, case in zip(texts, asked, strict=True)
    ]
    assert time.thread_time() - begun < 2
    assert sum(findings) > 0

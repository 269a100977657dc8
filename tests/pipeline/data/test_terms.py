"""A pack's terms are applied where a reader would want them, every change is counted, and broken packs are refused."""

import pickle
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tunewright.pipeline.data import terms
from tunewright.pipeline.errors import InvalidInput, NotFound

PACK = """
language: {language}
terms:
  - term: 急性肾损伤
    en: acute kidney injury
    abbreviations: [AKI]
    synonyms: [急性肾衰竭, acute renal failure]
    source: KDIGO 2012
  - term: 冠状动脉粥样硬化性心脏病
    en: coronary heart disease
    abbreviations: [CHD]
    synonyms: [冠心病]
  - term: 肾
    en: kidney
  - term: 急性呼吸窘迫综合征
    en: acute respiratory distress syndrome
    abbreviations: [ARDS, "NO"]
"""


def pack(folder: Path, content: str) -> Path:
    path = folder / "pack.yaml"
    path.write_text(content, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> terms.Terms:
    return terms.load(pack(tmp_path_factory.mktemp("zh"), PACK.format(language="zh")))


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> terms.Terms:
    return terms.load(pack(tmp_path_factory.mktemp("en"), PACK.format(language="en")))


# A text, what becomes of it, and what was changed.
CHINESE = {
    "an abbreviation, at its first place only": (
        "患者有AKI，AKI为2期。", "患者有急性肾损伤（AKI），AKI为2期。", {"AKI → 急性肾损伤": 1},
    ),
    "a synonym, everywhere": (
        "急性肾衰竭与冠心病，急性肾衰竭。",
        "急性肾损伤与冠状动脉粥样硬化性心脏病，急性肾损伤。",
        {"急性肾衰竭 → 急性肾损伤": 2, "冠心病 → 冠状动脉粥样硬化性心脏病": 1},
    ),
    "the other language's name, in any capitals": (
        "诊断为 Acute  Kidney injury。", "诊断为 急性肾损伤。", {"Acute  Kidney injury → 急性肾损伤": 1},
    ),
    "an abbreviation that the text explains": ("急性肾损伤（AKI）患者的AKI", "急性肾损伤（AKI）患者的AKI", {}),
    "an explanation after the abbreviation": ("AKI (急性肾损伤)，AKI危险", "AKI (急性肾损伤)，AKI危险", {}),
    "both names in brackets": (
        "急性肾损伤（acute kidney injury，AKI）后的AKI", "急性肾损伤（acute kidney injury，AKI）后的AKI", {},
    ),
    "an explanation in the text's own words": ("急性肾功能损害（AKI）后的AKI", "急性肾功能损害（AKI）后的AKI", {}),
    "a synonym before its abbreviation": (
        "急性肾衰竭（AKI）后的AKI", "急性肾损伤（AKI）后的AKI", {"急性肾衰竭 → 急性肾损伤": 1},
    ),
    "another term in brackets": (
        "急性肾损伤（CHD）", "急性肾损伤（冠状动脉粥样硬化性心脏病（CHD））", {"CHD → 冠状动脉粥样硬化性心脏病": 1},
    ),
    "code and links": ("见 https://x.org/AKI?a=AKI 与`AKI`和\n```\nAKI\n```\n吧", None, {}),
    "an English text": ("The patient has AKI and acute renal failure.", None, {}),
    "a text about names": ("请把AKI翻译成中文。", None, {}),
    "a longer word": ("他患有AKIN、xAKI、AKI-1、aki。", None, {}),
    "nothing of the pack": ("今天天气很好。", None, {}),
}  # fmt: skip
ENGLISH = {
    "an abbreviation, at its first place only": (
        "An AKI is bad. AKI kills.",
        "An acute kidney injury (AKI) is bad. AKI kills.",
        {"AKI → acute kidney injury": 1},
    ),
    "a synonym that opens a sentence": (
        "Acute renal failure is bad.", "Acute kidney injury is bad.", {"Acute renal failure → acute kidney injury": 1},
    ),
    "the term in capitals": ("Acute Kidney Injury (AKI) is AKI.", None, {}),
    "the longest name": ("Her acute kidney injury, not her kidney.", None, {}),
    "an abbreviation that YAML reads as false": (
        "It is NO, no?", "It is acute respiratory distress syndrome (NO), no?",
        {"NO → acute respiratory distress syndrome": 1},
    ),
    "a Chinese name in an English text": (
        "What does 急性肾损伤 do?", "What does acute kidney injury do?", {"急性肾损伤 → acute kidney injury": 1},
    ),
    "hyphens": ("non-AKI and AKI-related", None, {}),
    "a Chinese text": ("患者有AKI，急性肾衰竭。", None, {}),
    "a text about names": ("What does AKI stand for?", None, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CHINESE)
def test_chinese_terms_stand_in_chinese_texts(chinese: terms.Terms, case: str) -> None:
    text, expected, changed = CHINESE[case]
    assert pickle.loads(pickle.dumps(chinese)).apply(text) == (expected or text, Counter(changed))


@pytest.mark.parametrize("case", ENGLISH)
def test_english_terms_stand_in_english_texts(english: terms.Terms, case: str) -> None:
    text, expected, changed = ENGLISH[case]
    assert english.apply(text) == (expected or text, Counter(changed))


@pytest.mark.parametrize("case", CHINESE)
def test_applied_twice_nothing_more_changes(chinese: terms.Terms, case: str) -> None:
    once, _ = chinese.apply(CHINESE[case][0])
    assert chinese.apply(once) == (once, Counter())


BROKEN = {
    "broken YAML": ("language: zh\nterms:\n  - term: [a\n", "broken_pack", "line 4"),
    "not UTF-8": ("\udcff", "broken_pack", "UTF-8"),
    "a list": ("- term: a\n", "invalid_pack", "language None"),
    "another language": ("language: fr\nterms: [{term: a}]\n", "invalid_pack", "'fr'"),
    "no terms": ("language: zh\n", "invalid_pack", "no list of terms"),
    "an unknown key": ("language: zh\nterms: [{term: a, zhs: b}]\n", "invalid_pack", "'zhs' in its term 1"),
    "no term": ("language: zh\nterms: [{term: a}, {zh: b}]\n", "invalid_pack", "no `term` in its term 2"),
    "a text for an entry": ("language: zh\nterms: [a]\n", "invalid_pack", "no keys in its term 1"),
    "a text for a list": ("language: zh\nterms: [{term: a, synonyms: b}]\n", "invalid_pack", "synonyms in its term 1"),
    "an unquoted NO": ("language: zh\nterms: [{term: a, abbreviations: [NO]}]\n", "invalid_pack", "False as abbrev"),
    "one key twice": (
        "language: zh\nterms:\n  - {term: a, en: b, en: c}\n",
        "broken_pack",
        "'en' a second time in line 3",
    ),
    "one name twice": ("language: zh\nterms: [{term: a, synonyms: [c]}, {term: C}]\n", "ambiguous_term", "'c'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_pack_is_refused_with_its_place(tmp_path: Path, case: str) -> None:
    content, code, words = BROKEN[case]
    path = tmp_path / "pack.yaml"
    path.write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(InvalidInput) as raised:
        terms.load(path)
    assert raised.value.code == code
    assert words in str(raised.value) and "pack.yaml" in str(raised.value)


def test_what_is_also_said_for_a_term_is_left_as_it_is(tmp_path: Path) -> None:
    content = "language: zh\nterms: [{term: 妊娠, synonyms: [受孕], also: [怀孕], source: 《妇产科学》}]\n"
    applied = terms.load(pack(tmp_path, content))
    assert applied.apply("怀孕即受孕。") == ("怀孕即妊娠。", Counter({"受孕 → 妊娠": 1}))


def test_an_absent_pack_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"medicine\.yaml"):
        terms.load(tmp_path / "medicine.yaml")


def test_a_pack_of_a_thousand_terms_takes_a_fraction_of_a_millisecond_a_text() -> None:
    chance = random.Random(1)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(4000)]
    entries = [
        terms.Term(f"{words[i]} {words[i + 1]}", (words[i + 2],), (words[i + 3].upper(),)) for i in range(0, 4000, 4)
    ]
    large = terms.Terms(entries, "en")
    text = " ".join(chance.choices(words, k=20) + ["other"] * 120)
    begun = time.thread_time()
    changes = [sum(large.apply(text)[1].values()) for _ in range(20)]
    # 0.3 ms a text where it was measured; tried one by one, 3,000 names take 20 ms.
    assert time.thread_time() - begun < 20 * 0.01
    assert changes[0] > 0


def test_brackets_without_end_are_read_in_no_time(chinese: terms.Terms) -> None:
    text = "急性肾损伤（AKI" + " " * 20_000 + "、AKI" * 1000
    assert chinese.apply(text)[0].endswith("、AKI")

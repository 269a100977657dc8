"""Which languages texts are said to be in."""

import subprocess
import sys

import pytest

from tunewright.pipeline.data.languages import survey

SAMPLES = {
    "en": "The kidneys filter the blood and keep the balance of water and salts in the body.",
    "zh": "急性肾损伤是指肾功能在数小时至数天内迅速下降的临床综合征。",
    "ja": "腎臓は血液をろ過し、体内の水分と塩分のバランスを保っています。",
    "ko": "신장은 혈액을 여과하고 몸 안의 수분과 염분의 균형을 유지합니다.",
    "de": "Die Nieren filtern das Blut und halten den Wasser- und Salzhaushalt des Körpers im Gleichgewicht.",
    "fr": "Les reins filtrent le sang et maintiennent l'équilibre de l'eau et des sels dans l'organisme.",
    "es": "Los riñones filtran la sangre y mantienen el equilibrio de agua y sales en el cuerpo.",
    "ru": "Почки фильтруют кровь и поддерживают баланс воды и солей в организме.",
    "ar": "تقوم الكليتان بترشيح الدم والحفاظ على توازن الماء والأملاح في الجسم.",
    "he": "הכליות מסננות את הדם ושומרות על מאזן המים והמלחים בגוף.",
    "hi": "गुर्दे रक्त को छानते हैं और शरीर में पानी और नमक का संतुलन बनाए रखते हैं।",
    "vi": "Thận lọc máu và giữ cân bằng nước và muối trong cơ thể con người.",
    "tr": "Böbrekler kanı süzer ve vücuttaki su ve tuz dengesini korur.",
}


@pytest.mark.parametrize("language", SAMPLES)
def test_a_sentence_is_recognised(language: str) -> None:
    assert survey([SAMPLES[language]]) == [{"language": language, "share": 1.0}]


UNKNOWN = {
    "an empty text": "",
    "a number": "3.14159",
    "one word": "Yes.",
    "code": "for (i = 0; i < n; i++) { a[i] += b[i] * (c - 1); } // {}[]()<>=+",
    "code in a fence": "```python\nimport os\nprint(os.getcwd())\n```",
    "a table": "| 1 | 2.5 | 3 |\n|---|---|---|\n| 7 | 8.1 | 9 |",
    "a table with words": "| name | age | city | | --- | --- | --- | | Anna | 31 | Rome | | John | 27 | Paris |",
    "figures": "2021: 45.1, 2022: 47.9, 2023: 51.3, total sales in million dollars 144.3, 88.1, 23.9, 17.7, 2.2",
    "a query": "SELECT name, age FROM users WHERE (age > 18 AND city = 'Rome') OR (id IN (1, 2, 3, 4)) ORDER BY name;",
    "an address": "https://example.com/a/very/long/path/with/english/words.html",
}


@pytest.mark.parametrize("text", UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_no_prose_is_unknown(text: str) -> None:
    assert survey([text]) == [{"language": "unknown", "share": 1.0}]


def test_code_in_an_answer_does_not_hide_its_language() -> None:
    answer = f"{SAMPLES['de']}\n```python\nfor row in rows:\n    print(row)\n```\n{SAMPLES['de']}"
    assert survey([answer])[0]["language"] == "de"


def test_short_chinese_is_not_taken_for_japanese() -> None:
    texts = ["中国首都是北京。", "心肌梗死", "请给出诊断建议。", "犯罪构成要件"]
    assert survey(texts) == [{"language": "zh", "share": 1.0}]


def test_shares_are_of_texts_and_the_commonest_comes_first() -> None:
    texts = [SAMPLES["zh"]] * 6 + [SAMPLES["en"]] * 3 + ["42"]
    assert survey(texts) == [
        {"language": "zh", "share": 0.6}, {"language": "en", "share": 0.3}, {"language": "unknown", "share": 0.1},
    ]  # fmt: skip


def test_no_texts_have_no_languages() -> None:
    assert survey([]) == []


def test_nothing_is_downloaded() -> None:
    code = """
import socket, sys
def refuse(*_): raise SystemExit("a connection was opened")
socket.socket.connect = refuse
from tunewright.pipeline.data.languages import survey
print(survey([sys.argv[1]])[0]["language"])
"""
    run = subprocess.run(
        [sys.executable, "-c", code, SAMPLES["fr"]], capture_output=True, encoding="utf-8", timeout=60, check=True
    )
    assert run.stdout.strip() == "fr"

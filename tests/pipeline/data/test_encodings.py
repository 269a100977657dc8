"""In which encoding a file is written is recognised, said, and never guessed where it is UTF-8."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline.data import opening
from tunewright.pipeline.data.reading import Broken, Reader

Write = Callable[[str, Any], Path]

ROWS = [{"instruction": "Sag „Hallo“.", "output": "Hallo, Welt"}, {"instruction": "说你好", "output": "你好"}]


def values(path: Path) -> list[Any]:
    return [value for _, value in numbered(Reader(path, "train"))]


def numbered(reader: Reader) -> list[tuple[int, Any]]:
    return [pair for block in reader.blocks() for pair in block.parsed()]


def as_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


CONTENTS = {
    "a.jsonl": as_lines(ROWS).decode(),
    "a.json": json.dumps(ROWS, ensure_ascii=False),
    "a.csv": "instruction,output\n" + "".join(f'"{row["instruction"]}","{row["output"]}"\n' for row in ROWS),
}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files come in pieces of seven bytes, so that every boundary falls somewhere."""
    monkeypatch.setattr(opening, "BLOCK_BYTES", 7)


SENTENCES = {
    "gb18030": [
        "你好，世界", "请介绍一下机器学习的基本概念。", "急性肾损伤的诊断标准是什么？", "解释量子计算", "什么是梅毒？",
        "今天天气很好，我们去公园散步吧。", "发票", "床前明月光，疑是地上霜。", "患者主诉头痛三天，伴恶心呕吐。",
    ],
    "big5": ["請介紹一下機器學習的基本概念。", "今天天氣很好，我們去公園散步吧。", "臺灣的首都是哪裡？"],
    "cp932": ["機械学習の基本概念を説明してください。", "今日は天気がいいですね。", "日本の首都はどこですか？"],
    "euc_jp": ["機械学習の基本概念を説明してください。", "今日は天気がいいですね。"],
    "cp949": ["기계 학습의 기본 개념을 설명해 주세요.", "오늘은 날씨가 좋네요.", "대한민국의 수도는 어디인가요?"],
    "cp1252": [
        "Erkläre die Grundbegriffe des maschinellen Lernens.", "Où est la bibliothèque ? C’est près d’ici.", "Größe",
        "Voilà le café où Zoë a fêté Noël, déjà très âgée.", "Más información aquí: ¿qué pasó mañana?",
        "El niño comió una manzana en la montaña.", "Não há razão para preocupação.",
    ],
    "cp1250": ["Příliš žluťoučký kůň úpěl ďábelské ódy.", "Zażółć gęślą jaźń.", "Árvíztűrő tükörfúrógép"],
    "cp1251": ["Объясните основные понятия машинного обучения."],
    "koi8_r": ["Объясните основные понятия машинного обучения."],
    "cp1253": ["Εξηγήστε τις βασικές έννοιες της μηχανικής μάθησης."],
    "cp1254": ["Makine öğreniminin temel kavramlarını açıklayınız, ışığı şöyle görün."],
    "cp1255": ["הסבר את המושגים הבסיסיים של למידת מכונה."],
    "cp1256": ["اشرح المفاهيم الأساسية للتعلم الآلي."],
    "cp1257": ["Paaiškinkite pagrindines mašininio mokymosi sąvokas."],
    "cp874": ["อธิบายแนวคิดพื้นฐานของการเรียนรู้ของเครื่อง"],
}  # fmt: skip
SPOKEN = [(encoding, sentence) for encoding, sentences in SENTENCES.items() for sentence in sentences]


@pytest.mark.parametrize(("encoding", "sentence"), SPOKEN)
def test_one_sentence_is_enough_to_recognise_an_encoding(write: Write, encoding: str, sentence: str) -> None:
    lines = f'{{"instruction": "Hi", "output": "Hello"}}\n{{"instruction": "{sentence}", "output": "ok"}}\n'
    reader = Reader(write("a.jsonl", lines.encode(encoding)), "train")
    assert numbered(reader)[1][1] == {"instruction": sentence, "output": "ok"}
    table = Reader(write("a.csv", f'instruction,output\n"{sentence}",ok\n'.encode(encoding)), "train")
    assert numbered(table) == [(1, {"instruction": sentence, "output": "ok"})]
    for said in (*reader.notes, *table.notes):
        assert f"read as {reader.encoding}" in said
    assert len(reader.notes) == len(table.notes) == 1


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_unicode_is_read_in_every_width_with_a_mark_or_without(write: Write, name: str, encoding: str) -> None:
    content = CONTENTS[name].encode(encoding)
    reader = Reader(write(name, content), "train")
    assert [value for _, value in numbered(reader)] == ROWS
    assert reader.encoding.startswith(encoding[:5])
    assert len(reader.notes) == (encoding != "utf-8-sig")


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_a_character_may_be_cut_between_pieces(write: Write, encoding: str) -> None:
    content = as_lines([{"a": "你好" * 20}, {"a": "𝄞" * 20}]).decode().encode(encoding)
    assert values(write("a.jsonl", content)) == [{"a": "你好" * 20}, {"a": "𝄞" * 20}]
    content = json.dumps([{"a": "你好𝄞" * 20}], ensure_ascii=False).encode(encoding)
    assert values(write("a.json", content)) == [{"a": "你好𝄞" * 20}]


MISFITS = {
    "a.jsonl": as_lines([{"a": "你好"}]) * 9 + b'{"a": "\xff"}\n' + as_lines([{"a": "再见"}]),
    "a.json": b"["
    + b",".join([as_lines([{"a": "你好"}])] * 9 + [b'{"a": "\xff"}'] + [as_lines([{"a": "再见"}])])
    + b"]",
    "a.csv": b"a\n" + "你好\n".encode() * 9 + b"\xff\n" + "再见\n".encode(),
}


@pytest.mark.parametrize("name", MISFITS)
def test_utf8_with_a_broken_byte_stays_utf8_and_loses_one_row(write: Write, name: str) -> None:
    reader = Reader(write(name, MISFITS[name]), "train")
    assert numbered(reader) == [
        *((n, {"a": "你好"}) for n in range(1, 10)), (10, Broken("not UTF-8: byte 0xff")), (11, {"a": "再见"}),
    ]  # fmt: skip
    assert reader.encoding == "utf-8"
    assert reader.notes == []


def test_a_line_that_does_not_fit_a_recognised_encoding_is_broken(write: Write) -> None:
    content = (
        as_lines([{"a": "请介绍一下机器学习的基本概念。"}] * 30).decode().encode("gb18030") + b'{"a": "\xff\xff"}\n'
    )
    assert values(write("a.jsonl", content))[-1] == Broken("not GB18030: byte 0xff")


def test_ascii_says_nothing_and_the_first_other_piece_decides(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "BLOCK_BYTES", 1000)
    rows = [{"a": "plain"}] * 200 + [{"a": "今天天气很好，我们去公园散步吧。"}]
    for name, content in (("a.jsonl", as_lines(rows)), ("a.json", json.dumps(rows, ensure_ascii=False).encode())):
        reader = Reader(write(name, content.decode().encode("gb18030")), "train")
        assert [value for _, value in numbered(reader)] == rows
        assert reader.encoding == "gb18030"

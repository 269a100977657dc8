"""Every layout in every kind of file: the same rows come out, and what cannot be read is refused with what to do."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from tunewright.pipeline.data import splits
from tunewright.pipeline.data.prepare import prepare
from tunewright.pipeline.data.rows import to_json
from tunewright.pipeline.errors import TunewrightError
from tunewright.pipeline.workspace import Workspace

Rows = list[dict[str, Any]]


def said(*texts: str, system: str = "") -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)
    ]
    return [{"role": "system", "content": system}, *turns] if system else turns


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALLS = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]
CALL_TEXT = [{"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}]
HISTORY = [["Hello there", "Hi, how can I help?"]]

# Rows of a layout, and what the first becomes.
LAYOUTS: dict[str, tuple[Rows, dict[str, Any]]] = {
    "alpaca": (
        [{"instruction": "Name a colour of the sky, please.", "input": "At noon", "output": "Blue, at noon."}],
        {"messages": said("Name a colour of the sky, please.\nAt noon", "Blue, at noon.")},
    ),
    "alpaca capitalised, with system and history": (
        [{"Instruction": "And now?", "Input": "", "Output": "Still here.", "System": "Be brief.", "History": HISTORY}],
        {"messages": said("Hello there", "Hi, how can I help?", "And now?", "Still here.", system="Be brief.")},
    ),
    "sharegpt": (
        [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}],
        {"messages": said("Hi", "Hello")},
    ),
    "sharegpt with a tool": (
        [
            {
                "conversations": [
                    {"from": "human", "value": "Is it cold in Oslo?"},
                    {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
                    {"from": "observation", "value": '{"celsius": -4}'},
                    {"from": "gpt", "value": "Yes, it freezes."},
                ],
                "tools": json.dumps(TOOLS),
            }
        ],
        {
            "messages": [
                {"role": "user", "content": "Is it cold in Oslo?"},
                {"role": "assistant", "content": "", "tool_calls": CALLS},
                {"role": "tool", "content": '{"celsius": -4}'},
                {"role": "assistant", "content": "Yes, it freezes."},
            ],
            "tools": TOOLS,
        },
    ),
    "chatml": (
        [{"messages": said("Hi", "Hello", system="Be kind.")}],
        {"messages": said("Hi", "Hello", system="Be kind.")},
    ),
    "openai with parts and tool calls": (
        [
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Is it cold in Oslo?"}]},
                    {"role": "assistant", "content": None, "tool_calls": CALL_TEXT},
                    {"role": "tool", "content": [{"type": "text", "text": "-4"}]},
                    {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
                ],
                "tools": TOOLS,
            }
        ],
        {
            "messages": [
                {"role": "user", "content": "Is it cold in Oslo?"},
                {"role": "assistant", "content": "", "tool_calls": CALLS},
                {"role": "tool", "content": "-4"},
                {"role": "assistant", "content": "Yes."},
            ],
            "tools": TOOLS,
        },
    ),
    "prompt and completion": (
        [{"prompt": "Two and two?", "completion": "Four."}], {"messages": said("Two and two?", "Four.")},
    ),
    "prompt and completion, conversational": (
        [{"prompt": said("Two and two?"), "completion": said("", "Four.")[1:]}],
        {"messages": said("Two and two?", "Four.")},
    ),
    "question and answer": ([{"question": "Why?", "answer": "Because."}], {"messages": said("Why?", "Because.")}),
    "problem and solution": ([{"problem": "1 + 1", "solution": "It is 2."}], {"messages": said("1 + 1", "It is 2.")}),
    "reasoning beside the answer": (
        [{"question": "6 x 7?", "reasoning": "Six sevens.", "answer": "42"}],
        {"messages": said("6 x 7?", "<think>\nSix sevens.\n</think>\n\n42")},
    ),
    "reasoning inside the answer": (
        [{"instruction": "6 x 7?", "output": "<think>\nSix sevens.\n</think>\n\n42"}],
        {"messages": said("6 x 7?", "<think>\nSix sevens.\n</think>\n\n42")},
    ),
    "raw text": (
        [{"text": "Rain falls from clouds when drops grow heavy."}],
        {"text": "Rain falls from clouds when drops grow heavy."},
    ),
    "preference pairs": (
        [{"prompt": "Capital of Peru?", "chosen": "Lima.", "rejected": "Cusco."}],
        {"prompt": said("Capital of Peru?"), "chosen": said("", "Lima.")[1:], "rejected": said("", "Cusco.")[1:]},
    ),
    "preference pairs, conversational": (
        [{"prompt": said("Capital of Peru?"), "chosen": said("", "Lima.")[1:], "rejected": said("", "Cusco.")[1:]}],
        {"prompt": said("Capital of Peru?"), "chosen": said("", "Lima.")[1:], "rejected": said("", "Cusco.")[1:]},
    ),
    "preference pairs, prompt inside": (
        [{"chosen": said("Capital of Peru?", "Lima."), "rejected": said("Capital of Peru?", "Cusco.")}],
        {"prompt": said("Capital of Peru?"), "chosen": said("", "Lima.")[1:], "rejected": said("", "Cusco.")[1:]},
    ),
    "preference pairs, sharegpt": (
        [
            {
                "conversations": [{"from": "human", "value": "Capital of Peru?"}],
                "chosen": {"from": "gpt", "value": "Lima."},
                "rejected": {"from": "gpt", "value": "Cusco."},
            }
        ],
        {"prompt": said("Capital of Peru?"), "chosen": said("", "Lima.")[1:], "rejected": said("", "Cusco.")[1:]},
    ),
    "kto": (
        [{"prompt": "Capital of Peru?", "completion": "Lima.", "label": True}],
        {"messages": said("Capital of Peru?", "Lima."), "label": True},
    ),
}  # fmt: skip


def as_jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_json(rows: Rows) -> bytes:
    return json.dumps(rows, ensure_ascii=False, indent=1).encode()


def as_table(separator: str) -> Callable[[Rows], bytes]:
    def write(rows: Rows) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text, delimiter=separator)
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow(value if isinstance(value, str) else json.dumps(value) for value in row.values())
        return text.getvalue().encode()

    return write


def _table(rows: Rows) -> pa.Table:
    return pa.Table.from_pylist(rows)


def as_parquet(rows: Rows) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(_table(rows), buffer)
    return buffer.getvalue()


def as_arrow(rows: Rows) -> bytes:
    buffer = io.BytesIO()
    feather.write_feather(_table(rows), buffer, compression="uncompressed")
    return buffer.getvalue()


def as_arrow_stream(rows: Rows) -> bytes:
    buffer = io.BytesIO()
    table = _table(rows)
    with pa.ipc.new_stream(buffer, table.schema) as stream:
        stream.write_table(table)
    return buffer.getvalue()


def zstd(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)


def zstd_stream(content: bytes) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, "zstd") as stream:
        stream.write(content)
    return buffer.getvalue().to_pybytes()


FILES: dict[str, Callable[[Rows], bytes]] = {
    "rows.json": as_json,
    "rows.jsonl": as_jsonl,
    "rows.csv": as_table(","),
    "rows.tsv": as_table("\t"),
    "rows.parquet": as_parquet,
    "rows.arrow": as_arrow,
    "stream.arrow": as_arrow_stream,
    "rows.jsonl.gz": lambda rows: gzip.compress(as_jsonl(rows)),
    "rows.json.gz": lambda rows: gzip.compress(as_json(rows)),
    "rows.csv.gz": lambda rows: gzip.compress(as_table(",")(rows)),
    "rows.jsonl.zst": lambda rows: zstd_stream(as_jsonl(rows)),
    "rows.tsv.zst": lambda rows: zstd_stream(as_table("\t")(rows)),
    "rows.parquet.gz": lambda rows: gzip.compress(as_parquet(rows)),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_alike_from_every_kind_of_file(
    workspace: Workspace, tmp_path: Path, layout: str, file: str
) -> None:
    rows, expected = LAYOUTS[layout]
    path = tmp_path / file
    path.write_bytes(FILES[file](rows))
    dataset = prepare(workspace, str(path), eval_fraction=0)
    (record,) = splits.read(Path(dataset["document"]["path"]) / "train.parquet")
    assert to_json(record) == expected
    assert dataset["document"]["kind"] == record.kind
    assert "mapped" not in dataset["document"]["format"]


def test_nulls_that_a_parquet_schema_adds_to_arguments_of_tools_are_not_read(
    workspace: Workspace, tmp_path: Path
) -> None:
    def row(arguments: dict[str, Any]) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
        return {"messages": [*said("Cold?"), {"role": "assistant", "content": "", "tool_calls": [call]}]}

    rows = [row({"city": "Oslo"}), row({"country": "Peru"})]
    (tmp_path / "rows.parquet").write_bytes(as_parquet(rows))
    dataset = prepare(workspace, str(tmp_path / "rows.parquet"), eval_fraction=0)
    found = list(splits.read(Path(dataset["document"]["path"]) / "train.parquet"))
    assert [to_json(record) for record in found] == rows


@pytest.mark.parametrize("name", ["story.txt", "story.md", "story.txt.gz", "story.md.zst"])
def test_plain_text_becomes_rows_of_raw_text_that_lose_nothing(workspace: Workspace, tmp_path: Path, name: str) -> None:
    text = "\n\n".join(f"Paragraph {i}: " + "word " * 400 for i in range(20))
    content = text.encode()
    path = tmp_path / name
    path.write_bytes(
        gzip.compress(content) if name.endswith("gz") else zstd_stream(content) if name.endswith("zst") else content
    )
    dataset = prepare(workspace, str(path), eval_fraction=0)
    rows = list(splits.read(Path(dataset["document"]["path"]) / "train.parquet"))
    assert dataset["document"]["kind"] == "text" and 2 <= len(rows) < 20
    assert " ".join(row.text for row in rows).split() == text.split()


REFUSED: dict[str, tuple[bytes, str, str]] = {
    "cut.json": (as_json([{"instruction": "a", "output": "b"}])[:-4], "broken_json", "line"),
    "cut.jsonl": (b'{"instruction": "a", "out', "broken_json", "line 1"),
    "cut.parquet": (as_parquet([{"instruction": "a", "output": "b"}])[:-6], "broken_file", "cut.parquet"),
    "no.parquet": (b"PAR1 but not at all PAR1", "broken_file", "no.parquet"),
    "no.arrow": (b"ARROW1 but not at all", "broken_file", "no.arrow"),
    "cut.jsonl.gz": (gzip.compress(as_jsonl([{"text": "x" * 5000}] * 50))[:-20], "broken_archive", "cut.jsonl.gz"),
    "no.json.gz": (b"not compressed at all", "broken_json", "no.json.gz"),
    "no.jsonl.zst": (b"not compressed at all", "broken_json", "no.jsonl.zst"),
    "quote.csv": (b'instruction,output\nHi,"Hello\n', "broken_csv", "line 2"),
    "twice.csv": (b"prompt,prompt,response\na,b,c\n", "duplicate_columns", "prompt"),
    "empty.tsv": (b"", "empty_file", "0 bytes"),
    "blank.txt": (b" \n\n ", "empty_file", "blank.txt"),
    "columns.parquet": (as_parquet([{"colour": "red", "size": 7}]), "unknown_layout", "colour ('red')"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_with_its_place(workspace: Workspace, tmp_path: Path, name: str) -> None:
    content, code, word = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TunewrightError) as refusal:
        prepare(workspace, str(path))
    assert refusal.value.code == code
    assert word in str(refusal.value)
    assert refusal.value.allowed
    assert list(workspace.home.datasets.iterdir()) == []


@pytest.mark.parametrize(
    "encoding", ["gb18030", "big5", "shift_jis", "euc_kr", "cp1251", "cp1252", "utf-16", "utf-8-sig"]
)
def test_other_encodings_are_recognised_and_said(workspace: Workspace, tmp_path: Path, encoding: str) -> None:
    words = {
        "gb18030": "请介绍一下中国的首都北京，以及它的历史和文化。",
        "big5": "請介紹一下臺灣的夜市文化，以及當地的小吃和歷史。",
        "shift_jis": "日本の首都は東京です。とても大きい都市で、たくさんの人が住んでいます。",
        "euc_kr": "대한민국의 수도는 서울입니다. 많은 사람들이 살고 있는 큰 도시입니다.",
        "cp1251": "Столица России — Москва. Это очень большой и красивый город.",
        "cp1252": "Où est l'été? Voilà le café où Zoë a fêté Noël, déjà très âgée.",
        "utf-16": "Grüße aus Köln", "utf-8-sig": "Grüße aus Köln",
    }[encoding]  # fmt: skip
    path = tmp_path / "rows.csv"
    lines = "".join(f'"Say {i}: {words}","{words} ({i})"\n' for i in range(12))
    path.write_bytes(f"question,answer\n{lines}".encode(encoding))
    dataset = prepare(workspace, str(path), eval_fraction=0, dedupe=False)
    first = next(splits.read(Path(dataset["document"]["path"]) / "train.parquet"))
    assert first.messages[0]["content"] == f"Say 0: {words}"
    said_so = [warning for warning in dataset["document"]["warnings"] if "rows.csv" in warning]
    assert bool(said_so) == (encoding != "utf-8-sig")

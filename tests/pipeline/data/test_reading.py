"""One file to rows: every kind of file, packed or not, and what is broken in them."""

import gzip
import hashlib
import io
import json
import os
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunewright.pipeline.data import blocks, encodings, opening
from tunewright.pipeline.data.plain_text import MAX_ROW_CHARACTERS
from tunewright.pipeline.data.reading import Broken, Reader
from tunewright.pipeline.errors import InvalidInput

Write = Callable[[str, Any], Path]
RunPython = Callable[..., str]

ROWS = [{"instruction": "Sag „Hallo“.", "output": "Hallo,\nWelt"}, {"instruction": "说你好", "output": '你"好'}]


def values(path: Path, split: str = "train") -> list[Any]:
    return [value for _, value in numbered(Reader(path, split))]


def numbered(reader: Reader) -> list[tuple[int, Any]]:
    return [pair for block in reader.blocks() for pair in block.parsed()]


def refusal(path: Path) -> InvalidInput:
    with pytest.raises(InvalidInput) as raised:
        values(path)
    assert raised.value.what
    assert raised.value.allowed
    assert f'source="{path}"' not in raised.value.next  # not the very same call again
    return raised.value


def as_parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def as_arrow(table: pa.Table, *, stream: bool) -> bytes:
    buffer = io.BytesIO()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(buffer, table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)
    return buffer.getvalue()


def as_zstd(content: bytes) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, "zstd") as packed:
        packed.write(content)
    return buffer.getvalue().to_pybytes()


def as_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_table(separator: str, rows: list[dict[str, str]] = ROWS) -> bytes:
    quoted = [[f'"{cell}"'.replace('"', '""')[1:-1] for cell in row.values()] for row in rows]
    return "\r\n".join([separator.join(rows[0]), *(separator.join(cells) for cells in quoted), ""]).encode()


TABLE = pa.Table.from_pylist(ROWS)
CONTENTS = {
    "a.json": json.dumps(ROWS, ensure_ascii=False, indent=1).encode(),
    "a.jsonl": as_lines(ROWS),
    "a.ndjson": as_lines(ROWS).replace(b"\n", b"\r\n\r\n"),
    "a.csv": as_table(","),
    "a.tsv": as_table("\t"),
    "a.parquet": as_parquet(TABLE),
    "a.arrow": as_arrow(TABLE, stream=False),
    "b.arrow": as_arrow(TABLE, stream=True),
    "a.feather": as_arrow(TABLE, stream=False),
}
PACKED: dict[str, Callable[[bytes], bytes]] = {"": lambda content: content, ".gz": gzip.compress, ".zst": as_zstd}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files come in pieces of seven bytes, so that every boundary falls somewhere."""
    monkeypatch.setattr(opening, "BLOCK_BYTES", 7)


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("name", CONTENTS)
def test_every_kind_of_file_gives_the_same_rows_packed_or_not(write: Write, name: str, packing: str) -> None:
    content = PACKED[packing](CONTENTS[name])
    reader = Reader(write(name + packing, content), "train")
    assert [value for _, value in numbered(reader)] == ROWS
    assert reader.sha256 == hashlib.sha256(content).hexdigest()
    assert reader.size_bytes == reader.bytes_read == len(content)
    assert reader.encoding == "utf-8"


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("name", [name for name in CONTENTS if name.endswith(("json", "jsonl", "csv", "tsv"))])
def test_it_does_not_matter_where_a_file_is_cut_into_pieces(write: Write, name: str) -> None:
    assert values(write(name, CONTENTS[name])) == ROWS


def test_packing_is_told_by_the_content_and_not_by_the_name(write: Write) -> None:
    assert values(write("unpacked-by-the-browser.jsonl.gz", as_lines(ROWS))) == ROWS
    assert values(write("packed-by-the-server.jsonl", gzip.compress(as_lines(ROWS)))) == ROWS


def test_a_gzip_of_several_members_is_read_to_its_end(write: Write) -> None:
    content = b"".join(gzip.compress(as_lines([row])) for row in ROWS)
    assert values(write("a.jsonl.gz", content)) == ROWS


FORMS: dict[str, tuple[str, str, list[Any]]] = {
    "a list named .jsonl": ("a.jsonl", '[\n{"a": 1},\n{"a": 2}\n]', [{"a": 1}, {"a": 2}]),
    "a list of one row, named .jsonl": ("a.jsonl", '[\n{"a": 1}\n]', [{"a": 1}]),
    "a list in one line": ("a.json", '[{"a": 1}, {"a": 2}]', [{"a": 1}, {"a": 2}]),
    "lines named .json": ("a.json", '\n{"a": 1}\n\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
    "one line named .json": ("a.json", '{"a": 1}\n', [{"a": 1}]),
    "one line without an end named .jsonl": ("a.jsonl", '{"a": 1}', [{"a": 1}]),
    "pretty objects in .jsonl": ("a.jsonl", '{\n "a": 1\n}\n{\n "a": 2\n}\n', [{"a": 1}, {"a": 2}]),
    "objects without a line end": ("a.json", '{"a": 1}{"a": 2} {"a": 3}', [{"a": 1}, {"a": 2}, {"a": 3}]),
    "two lists": ("a.json", '[\n{"a": 1}\n]\n[{"a": 2}]\n[\n]', [{"a": 1}, {"a": 2}]),
    "an object with one list": ("a.json", '{"version": 1, "data": [{"a": 1}, {"a": 2}]}', [{"a": 1}, {"a": 2}]),
    "an object with a list of the split": ("a.json", '{"test": [{"a": 1}], "train": [{"a": 2}]}', [{"a": 2}]),
    "a single row with turns": ("a.json", '{"messages": [{"role": "user"}]}', [{"messages": [{"role": "user"}]}]),
    "rows by their ids": (
        "a.json",
        '{"q1": {"a": 1}, "q2": {"a": 2, "b": 3}, "q3": {"a": 4}}',
        [{"a": 1}, {"a": 2, "b": 3}, {"a": 4}],
    ),
    "conversations by their ids": (
        "a.json",
        json.dumps({name: [{"role": "user", "content": name}] for name in "xyz"}),
        [{"messages": [{"role": "user", "content": name}]} for name in "xyz"],
    ),
    "one row of objects": (
        "a.json",
        '{"prompt": {"a": 1}, "chosen": {"a": 2}, "rejected": {"a": 3}}',
        [{"prompt": {"a": 1}, "chosen": {"a": 2}, "rejected": {"a": 3}}],
    ),
    "lines that are lists": ("a.jsonl", '[1, 2]\n[3, 4]\n{"a": 1}\n', [[1, 2], [3, 4], {"a": 1}]),
    "things that are no objects": ("a.json", '[1, "x", null, {"a": [{}]}]', [1, "x", None, {"a": [{}]}]),
    "nested objects on lines of their own": ("a.json", '{"data": [\n{"a": 1}\n,\n{"a": 2}\n]}', [{"a": 1}, {"a": 2}]),
}


@pytest.mark.parametrize("case", FORMS)
def test_the_form_of_json_is_told_by_the_content(write: Write, case: str) -> None:
    name, content, expected = FORMS[case]
    assert values(write(name, content)) == expected


@pytest.mark.usefixtures("small_pieces")
def test_a_list_is_read_right_wherever_its_pieces_end(write: Write) -> None:
    rows: list[Any] = [{"n": 12345678901, "text": "é" * 40, "list": [1.5e-7, True, None]}, 1234567890123, '\\"\n你', []]
    assert values(write("a.json", json.dumps(rows, ensure_ascii=False))) == rows
    assert values(write("b.json", json.dumps(rows, indent=3))) == rows


def test_a_broken_line_is_one_broken_row_and_keeps_its_number(write: Write) -> None:
    content = (
        '{"a": "é"}'.encode()
        + b'\n\n{"a" 2}\n{"a": "\xff"}\n{"a": 3}\n'
        + b"[" * 200_000
        + b"\n"
        + b"9" * 5000
        + b"\n\x00\x00\n"
    )
    rows = numbered(Reader(write("a.jsonl", content), "train"))
    assert [(n, v) for n, v in rows if not isinstance(v, Broken)] == [(1, {"a": "é"}), (5, {"a": 3})]
    broken = {n: value.why for n, value in rows if isinstance(value, Broken)}
    assert broken[3] == "no JSON: Expecting ':' delimiter near '{\"a\" 2}'"
    assert broken[4] == "not UTF-8: byte 0xff"
    assert set(broken) == {3, 4, 6, 7, 8}
    assert all(len(why) < 150 for why in broken.values())


def test_a_broken_first_line_does_not_hide_the_others(write: Write) -> None:
    for name in ("a.jsonl", "a.json"):
        first, second = values(write(name, '{"a": \n{"a": 2}\n'))
        assert isinstance(first, Broken)
        assert second == {"a": 2}


BROKEN: dict[str, tuple[str, str | bytes, str, list[str]]] = {
    "lines of which none is JSON": ("a.jsonl", "oops\n" * 200, "broken_json", ["line 1", "oops", "first 100 lines"]),
    "a truncated list": ("a.json", '[\n{"a": 1},\n{"a": "x', "broken_json", ["line 3, column 7", "Unterminated"]),
    "a list without an end": ("a.json", '[\n{"a": 1}\n', "broken_json", ["line 3", "does not end"]),
    "a truncated list named .jsonl": ("a.jsonl", '[\n{"a": 1},\n', "broken_json", ["line 3"]),
    "an error inside a list": ("a.json", '[\n{"a": 1},\n {"a" 2}\n]', "broken_json", ["line 3, column 7", '"a" 2']),
    "a forgotten comma": ("a.json", '[{"a": 1}\n{"a": 2}]', "broken_json", ["line 2, column 1", "delimiter"]),
    "brackets without end": ("a.json", "[" * 200_000, "broken_json", ["line 1"]),
    "several lists": ("a.json", '{"x": [{}], "y": [{}]}', "several_lists", ["x, y", 'split="x"']),
    "an empty file": ("a.jsonl", "", "empty_file", ["0 bytes"]),
    "blank lines": ("a.jsonl", "\n \n", "empty_file", []),
    "an empty list": ("a.json", "[]", "empty_file", []),
    "a header alone": ("a.csv", "a,b\n", "empty_file", []),
    "an empty text": ("a.txt", "\n\n", "empty_file", []),
    "an empty table": ("a.parquet", as_parquet(TABLE.slice(0, 0)), "empty_file", []),
    "no bytes of Parquet": ("a.parquet", b"", "broken_file", ["parquet"]),
    "text named Parquet": ("a.parquet", b"hello", "broken_file", ["parquet"]),
    "text named Arrow": ("a.arrow", b"hello", "broken_file", ["arrow"]),
    "an unclosed quote": ("a.csv", 'a,b\n1,"2\n', "broken_csv", ["line 2"]),
    "text after a quote": ("a.csv", 'a,b\n1,2\n"1"!,2\n', "broken_csv", ["line 3"]),
    "a header with a name twice": ("a.csv", "a,b,a\n1,2,3\n", "duplicate_columns", ["'a'"]),
    "a zero byte in a table": ("a.csv", "a,b\n1,\x002\n", "not_text", ["line 2"]),
    "a zero byte in a text": ("a.txt", "a\n\nb\x00", "not_text", ["line 3"]),
    "gzip cut off": ("a.jsonl.gz", gzip.compress(random.Random(1).randbytes(5000))[:900], "broken_archive", ["gzip"]),
    "gzip with junk behind": ("a.jsonl.gz", gzip.compress(as_lines(ROWS)) + b"junk", "broken_archive", ["gzip"]),
    "zstd cut off": ("a.jsonl.zst", as_zstd(random.Random(1).randbytes(5000))[:900], "broken_archive", ["zstd"]),
    "a picture": ("a.jsonl", random.Random(2).randbytes(4000), "unknown_encoding", ["neither UTF-8"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_with_place_and_reason(write: Write, case: str) -> None:
    name, content, code, words = BROKEN[case]
    path = write(name, content)
    with pytest.raises(InvalidInput) as raised:
        values(path)
    assert raised.value.code == code
    for word in words:
        assert word in str(raised.value)
    assert raised.value.next != f'prepare_dataset(source="{path}")'
    assert len(str(raised.value)) < 900 + 2 * len(str(path))


@pytest.mark.usefixtures("small_pieces")
def test_the_place_of_an_error_counts_what_was_read_before(write: Write) -> None:
    rows = ",\n".join(json.dumps({"n": i}) for i in range(50))
    error = refusal(write("a.json", f'[{rows},\n  {{"n" 50}}]'))
    assert "line 51, column 8" in error.what


def test_a_line_that_never_ends_is_refused_before_the_memory_is_full(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "BLOCK_BYTES", 100)
    monkeypatch.setattr(encodings, "MAX_LINE_BYTES", 1000)
    assert refusal(write("a.jsonl", as_lines(ROWS) + b'{"text": "' + b"x" * 5000)).code == "line_too_long"
    assert values(write("b.jsonl", as_lines([{"text": "x" * 900}]))) == [{"text": "x" * 900}]


def test_tables_are_split_by_the_separator_that_the_header_has(write: Write) -> None:
    for separator in ";|\t":
        reader = Reader(write("a.csv", f'q{separator}"a,b"\n"1{separator}2"{separator}3,4\n'), "train")
        assert numbered(reader) == [(1, {"q": f"1{separator}2", "a,b": "3,4"})]
        assert repr(separator) in reader.notes[0]
    assert values(write("b.csv", "q,a\n1;2;3;4,5\n")) == [{"q": "1;2;3;4", "a": "5"}]


def test_tables_have_any_line_end_and_cells_have_line_ends(write: Write) -> None:
    for end in ("\n", "\r\n", "\r"):
        content = f'q,a{end}1,"x{end}y"{end}{end}2,"z\u2028 \x85"{end}'
        assert values(write("a.csv", content.encode())) == [
            {"q": "1", "a": f"x{end}y"},
            {"q": "2", "a": "z\u2028 \x85"},
        ]


def test_a_record_of_another_length_stays_a_list(write: Write) -> None:
    assert values(write("a.csv", "q,a\n1,2\n1,2,3\n1\n")) == [{"q": "1", "a": "2"}, ["1", "2", "3"], ["1"]]


def test_text_becomes_rows_of_whole_paragraphs(write: Write) -> None:
    paragraphs = [f"Paragraph {i}: {'word ' * (i % 97)}end." for i in range(500)]
    for name, gap in (("a.txt", "\n\n"), ("a.md", "\r\n \r\n\r\n")):
        rows = [row["text"] for row in values(write(name, gap.join(paragraphs).encode()))]
        assert [part for row in rows for part in row.split("\n\n")] == paragraphs
        assert len(rows) > 5
        assert all(MAX_ROW_CHARACTERS / 2 < len(row) <= MAX_ROW_CHARACTERS for row in rows[:-1])


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("unit", ["word ", "Ein Satz. ", "没有空格的长文本", "一句话。", "line\n"])
def test_a_paragraph_longer_than_a_row_is_cut_and_nothing_is_lost(write: Write, unit: str) -> None:
    text = unit * (20_000 // len(unit))
    rows = [row["text"] for row in values(write("a.txt", text))]
    assert "".join("".join(rows).split()) == "".join(text.split())
    assert all(len(row) <= MAX_ROW_CHARACTERS for row in rows)
    assert all(row.rstrip().endswith(unit.strip()) for row in rows) or unit == "没有空格的长文本"


def test_columns_come_out_as_python_values(write: Write) -> None:
    table = pa.table({
        "messages": [[{"role": "user", "content": "q", "tool_calls": [{"n": 1}]}], []],
        "bytes": [b"\xff", None],
        "word": pa.array(["a", "b"]).dictionary_encode(),
    })  # fmt: skip
    expected = [
        {"messages": [{"role": "user", "content": "q", "tool_calls": [{"n": 1}]}], "bytes": b"\xff", "word": "a"},
        {"messages": [], "bytes": None, "word": "b"},
    ]
    assert values(write("a.parquet", as_parquet(table))) == expected
    assert values(write("a.arrow", as_arrow(table, stream=True))) == expected


def test_a_column_name_twice_is_refused_in_parquet_too(write: Write) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    assert refusal(write("a.parquet", as_parquet(table))).code == "duplicate_columns"
    assert refusal(write("a.arrow", as_arrow(table, stream=False))).code == "duplicate_columns"


def test_text_that_is_no_utf8_in_parquet_breaks_its_row_only(write: Write) -> None:
    text = pa.array([b"one", b"\xff\xfe", b"three"]).view(pa.string())
    rows = values(write("a.parquet", as_parquet(pa.table({"text": text}))))
    assert isinstance(rows[1], Broken)
    assert [rows[0], rows[2]] == [{"text": "one"}, {"text": "three"}]
    times = pa.array([0, 2**62], pa.timestamp("s"))
    rows = values(write("b.arrow", as_arrow(pa.table({"at": times}), stream=True)))
    assert isinstance(rows[1], Broken)
    assert not isinstance(rows[0], Broken)


def test_blocks_are_small_picklable_and_numbered_on(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "BLOCK_BYTES", 3000)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 3000)
    rows = [{"text": f"row {i}"} for i in range(3000)]
    table = pa.Table.from_pylist(rows)
    files = {
        "a.jsonl": as_lines(rows), "a.json": json.dumps(rows).encode(), "a.csv": as_table(",", rows),
        "a.arrow": as_arrow(table, stream=False), "a.parquet": as_parquet(table),
    }  # fmt: skip
    for name, content in files.items():
        found = [pickle.loads(pickle.dumps(block)) for block in Reader(write(name, content), "train").blocks()]
        assert [pair for block in found for pair in block.parsed()] == list(enumerate(rows, 1)), name
        assert len(found) > (5 if name[2:] in ("jsonl", "json", "csv") else 0), name


def test_a_list_is_never_held_whole(run_python: RunPython, write: Write) -> None:
    row = json.dumps({"text": "word " * 200})
    path = write("a.json", "[" + ",".join([row] * 40_000) + "]")
    code = """
import resource, sys
from pathlib import Path
from tunewright.pipeline.data.reading import Reader
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = sum(1 for block in Reader(Path(sys.argv[1]), "train").blocks() for _ in block.parsed())
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    count, grown_kib = map(int, run_python(code, path).split())
    assert count == 40_000
    assert grown_kib * 1024 < path.stat().st_size / 1.5  # 40 MB; held whole it would be 80


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_no_damage_to_a_columnar_file_does_more_than_refuse_it(write: Write, kind: str) -> None:
    table = pa.table(
        {"text": [f"row {i}" for i in range(50)], "turns": [[{"role": "user", "n": i}] for i in range(50)]}
    )
    whole = as_parquet(table) if kind == "parquet" else as_arrow(table, stream=False)
    chance = random.Random(3)
    codes: set[str] = set()
    for _ in range(150):
        damaged = bytearray(whole[: chance.randrange(len(whole))] if chance.random() < 0.2 else whole)
        for _ in range(chance.randrange(1, 9)):
            if damaged:
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            values(write(f"a.{kind}", bytes(damaged)))
        except InvalidInput as error:
            codes.add(error.code)
    assert "broken_file" in codes
    assert codes <= {"broken_file", "empty_file", "broken_rows", "duplicate_columns"}


def test_a_pipe_or_a_device_is_refused_without_being_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_ALLOW_DIRS", f"{tmp_path}{os.pathsep}/dev")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path in (tmp_path / "pipe.jsonl", Path("/dev/zero")):
        assert refusal(path).code == "not_a_file"


@pytest.fixture
def unreadable(write: Write) -> Iterator[Path]:
    """A file, opened as a user who may not: root may read everything."""
    path = write("a.jsonl", "{}")
    path.chmod(0)
    is_root = os.geteuid() == 0
    os.seteuid(65534 if is_root else os.geteuid())
    yield path
    if is_root:
        os.seteuid(0)


def test_a_file_that_may_not_be_read_is_refused(unreadable: Path) -> None:
    assert refusal(unreadable).code == "unreadable_file"

"""The rows of one data file, whatever their layout.

Guarantees: JSONL, CSV and TSV are streamed, one record in memory at a time (a `.json` file is parsed whole); a broken
file is refused with the place of the break; `sha256` is of the very bytes that the rows came from.
"""

import codecs
import csv
import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, cast

from tunewright.pipeline.errors import InvalidInput, call

# csv's own limit of 131,072 characters is less than one long document.
MAX_CELL_CHARACTERS = 16_000_000
# Lists that belong to one row; any other list of objects in a JSON object is the list of rows.
ROW_LISTS = ("conversations", "messages")


class Reader:
    """Reads one file once, from front to end. `sha256` and `size_bytes` hold for the whole file after that."""

    def __init__(self, path: Path, split: str) -> None:
        self.path = path
        self.size_bytes = 0
        self._split = split
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def rows(self) -> Iterator[tuple[int, object]]:
        """Row numbers, from 1, and rows as they stand: of JSONL the line's number, of CSV not counting the header.

        Raises InvalidInput: `broken_json`, `broken_csv`, `not_utf8`, `empty_file`, `several_lists`, `unreadable_file`.
        """
        suffix = self.path.suffix.lower()
        if suffix == ".jsonl":
            rows = self._json_lines(self._lines())
        elif suffix == ".json":
            rows = self._json()
        else:
            rows = self._table("\t" if suffix == ".tsv" else None)
        number = 0
        for number, row in rows:
            yield number, row
        if number == 0:
            raise InvalidInput(
                "empty_file", f"{self.path} holds no rows ({self.size_bytes} bytes).", allowed="Every file needs a row."
            )

    def _lines(self) -> Iterator[str]:
        try:
            with self.path.open("rb") as file:
                for number, raw in enumerate(file, 1):
                    self._hash.update(raw)
                    self.size_bytes += len(raw)
                    yield self._decoded(number, raw)
        except OSError as error:
            raise InvalidInput("unreadable_file", f"{self.path} cannot be read: {error.strerror}.") from error

    def _decoded(self, number: int, raw: bytes) -> str:
        try:
            return (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).decode("utf-8")
        except UnicodeDecodeError as error:
            utf16 = number == 1 and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            raise InvalidInput(
                "not_utf8",
                f"{self.path}, line {number}: byte 0x{raw[error.start]:02x} is not UTF-8"
                f"{'; the file looks like UTF-16' if utf16 else ''}.",
                allowed="Save the file as UTF-8 (with or without BOM).",
                next=call("prepare_dataset", source=str(self.path)),
            ) from error

    def _json_lines(self, lines: Iterable[str]) -> Iterator[tuple[int, object]]:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, self._parsed(line.strip("\r\n"), number)

    def _json(self) -> Iterator[tuple[int, object]]:
        text = "".join(self._lines())
        if not text.strip():
            return
        first, _, rest = text.lstrip().partition("\n")
        # One object per line is often found under the name .json too.
        if rest.strip() and _is_object(first):
            yield from self._json_lines(text.split("\n"))
        else:
            yield from enumerate(self._row_list(self._parsed(text)), 1)

    def _row_list(self, document: object) -> list[Any]:
        if isinstance(document, list):
            return cast("list[Any]", document)
        if not isinstance(document, dict):
            return [document]
        lists = {key: value for key, value in cast("dict[str, Any]", document).items() if _is_list_of_objects(value)}
        if self._split in lists:
            return lists[self._split]
        if not lists or set(lists) & set(ROW_LISTS):
            return [cast("dict[str, Any]", document)]
        if len(lists) == 1:
            return next(iter(lists.values()))
        raise InvalidInput(
            "several_lists",
            f"{self.path} holds several lists: {', '.join(lists)}; none is called {self._split!r}.",
            allowed="Name the list to read as `split`.",
            next=call("prepare_dataset", source=str(self.path), split=next(iter(lists))),
        )

    def _parsed(self, text: str, line: int | None = None) -> object:
        """`text` as JSON; `line` is its line in the file where it is one of several."""
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            around = text[max(0, error.pos - 20) : error.pos + 40]
            place, why = f"line {line or error.lineno}, column {error.colno}", f"{error.msg} near {around!r}"
            cause = error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
            place, why, cause = f"line {line or 1}", str(error), error
        raise InvalidInput(
            "broken_json",
            f"{self.path}, {place}: {why}.",
            allowed=f"{'Each line is one JSON object' if line else 'A .json file is a list of objects'}"
            "; one list is named .json, one object per line .jsonl.",
            next=call("prepare_dataset", source=str(self.path)),
        ) from cause

    def _table(self, separator: str | None) -> Iterator[tuple[int, object]]:
        """Without a `separator` the comma, or the semicolon of Europe's spreadsheets where the header has more."""
        csv.field_size_limit(MAX_CELL_CHARACTERS)
        # One pass: every line that `_lines` gives goes into the file's hash.
        lines = self._lines()
        head = next(lines, "")
        delimiter = separator or (";" if head.count(";") > head.count(",") else ",")
        records = csv.reader(chain([head] if head else [], lines), delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(records, list[str]())]
            filled = (record for record in records if record)
            for number, record in enumerate(filled, 1):
                # A record of another length stays a list, which no layout takes for a row.
                yield number, dict(zip(header, record, strict=True)) if len(record) == len(header) else record
        except csv.Error as error:
            raise InvalidInput(
                "broken_csv",
                f"{self.path}, line {records.line_num}: {error}.",
                allowed='A cell that holds a quote, the separator or a line break stands in "…", its quotes doubled.',
                next=call("prepare_dataset", source=str(self.path)),
            ) from error


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and isinstance(next(iter(cast("list[Any]", value)), None), dict)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False

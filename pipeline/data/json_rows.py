"""JSON in its three forms: one object per line, a list of objects, or objects one after the other.

The form is told by the content, not by the file's name: each is often found under the other's. Lines are passed on
unparsed, so that other processes can parse them; lists are parsed here as they stream by, never held whole. Only a
single JSON object (whose rows are one of its lists, or each under an id) is.
"""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, cast

from tunewright.pipeline.data.blocks import Block, Broken, around, in_blocks, parsed_line
from tunewright.pipeline.data.encodings import Decoding
from tunewright.pipeline.data.opening import repaired
from tunewright.pipeline.data.turns import ROLE_KEYS
from tunewright.pipeline.errors import InvalidInput, call

# Lists that belong to one row; any other list of objects in a JSON object is the list of rows.
ROW_LISTS = ("conversations", "messages", "prompt", "completion", "chosen", "rejected")
# An object of so many objects is one of rows, each under an id. Two may be the question and the answer of one row.
LEAST_KEYED = 3
PEEKED_LINES = 100
# A packed file of a few megabytes can hold gigabytes of one string.
MAX_VALUE_CHARACTERS = 500_000_000
BLANK = " \t\r\n"


def json_blocks(
    path: Path, pieces: Iterator[bytes], decoding: Decoding, *, named_lines: bool, split: str
) -> Iterator[Block]:
    """Blocks of a JSON file of any form; where it is lines, the rows' numbers are those of the lines.

    Raises InvalidInput: `broken_json`, `several_lists`, `unknown_encoding`, `line_too_long`.
    """
    head = next(pieces, b"")
    text = "".join(Decoding(path).text_pieces(iter([head])))
    whole = chain([head], pieces)
    if _is_lines(text.lstrip(BLANK), named_lines):
        return _line_blocks(whole, decoding)
    return in_blocks(_Values(path, decoding.text_pieces(whole), decoding, split).rows())


def _is_lines(head: str, named_lines: bool) -> bool:
    """Whether the file that begins with `head` holds one value per line. `named_lines`: its name says so."""
    first, newline, rest = head.partition("\n")
    if not newline:
        return named_lines and not head.startswith("[")
    if _is_value(first):
        return bool(rest.strip(BLANK)) or (named_lines and not head.startswith("["))
    if head.startswith("["):
        return False
    try:
        _, end = json.JSONDecoder().raw_decode(head)
    except (ValueError, RecursionError):
        lines = [line for line in head.split("\n", 2 * PEEKED_LINES)[:-1] if line.strip(BLANK)][:PEEKED_LINES]
        return 2 * sum(map(_is_object, lines)) >= len(lines) or named_lines
    return end < len(first) and named_lines


def _line_blocks(pieces: Iterator[bytes], decoding: Decoding) -> Iterator[Block]:
    first = 1
    for lines in decoding.line_pieces(pieces):
        if lines and not lines.isspace():
            yield Block(first, lines, encoding=decoding.line_encoding)
        first += lines.count(b"\n")


def _is_value(line: str) -> bool:
    return not isinstance(parsed_line(line.encode("utf-8", "surrogateescape")), Broken)


def _is_object(line: str) -> bool:
    return isinstance(parsed_line(line.encode("utf-8", "surrogateescape")), dict)


class _Values:
    """The rows of a text of JSON values, each with how many characters it took; holds a few pieces of it at a time."""

    def __init__(self, path: Path, pieces: Iterator[str], decoding: Decoding, split: str) -> None:
        self._path, self._pieces, self._decoding, self._split = path, pieces, decoding, split
        self._text, self._position = "", 0
        self._lines_before, self._column_before = 0, 0  # of the text that is no longer held

    def rows(self) -> Iterator[tuple[int, object]]:
        count = 0
        while character := self._next_character():
            if character == "[":
                yield from self._elements()
            else:
                characters, value = self._value()
                if count == 0 and not self._next_character():
                    yield from ((characters, row) for row in self._row_list(value))
                else:
                    yield characters, value
            count += 1

    def _elements(self) -> Iterator[tuple[int, object]]:
        self._position += 1
        if self._next_character() == "]":
            self._position += 1
            return
        while True:
            yield self._value()
            character = self._next_character()
            if character not in (",", "]"):
                self._broken("Expecting ',' delimiter" if character else "the list does not end", self._position)
            self._position += 1
            if character == "]":
                return
            self._next_character()

    def _next_character(self) -> str:
        """The next one that is not blank, not yet consumed; empty at the end."""
        while True:
            while self._position < len(self._text) and self._text[self._position] in BLANK:
                self._position += 1
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._read_more():
                return ""

    def _value(self) -> tuple[int, object]:
        """Consumes one value. What fails is tried again with more text, for it may only be cut."""
        failed_at = ""
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self._text, self._position)
                # A number that ends with the text may go on.
                if end < len(self._text) or not self._read_more():
                    return self._taken(value, end)
            except json.JSONDecodeError as error:
                offset = error.pos - self._position
                failure = f"{error.msg} {offset}"
                is_final = failure == failed_at and not error.msg.startswith("Unterminated string")
                if is_final or not self._read_more():
                    self._broken(error.msg, self._position + offset, error)
                failed_at = failure
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
                self._broken(str(error), self._position, error)

    def _taken(self, value: object, end: int) -> tuple[int, object]:
        characters, begin = end - self._position, self._position
        self._position = end
        if self._decoding.dirty and (why := self._decoding.misfit(self._text[begin:end])):
            return characters, Broken(why)
        return characters, value

    def _read_more(self) -> bool:
        """Holds at least twice as much as is not consumed yet; false at the end of the text."""
        kept = self._text[self._position :]
        if len(kept) > MAX_VALUE_CHARACTERS:
            raise InvalidInput(
                "value_too_long",
                f"{self._path} holds one value of more than {MAX_VALUE_CHARACTERS // 1_000_000} million characters.",
                allowed="Cut it into rows: one object per line, named .jsonl.",
                next=repaired(self._path),
            )
        gone = self._text[: self._position]
        self._lines_before += gone.count("\n")
        self._column_before = len(gone) - gone.rfind("\n") - 1 if "\n" in gone else self._column_before + len(gone)
        wanted, parts, size = max(1, len(kept)), [kept], 0
        while size < wanted and (piece := next(self._pieces, None)) is not None:
            parts.append(piece)
            size += len(piece)
        self._text, self._position = "".join(parts), 0
        return size > 0

    def _row_list(self, document: object) -> list[Any]:
        if not isinstance(document, dict):
            return [document]
        document = cast("dict[str, Any]", document)
        if not set(document) & {self._split, *ROW_LISTS} and (keyed := _keyed_rows(list(document.values()))):
            return keyed
        lists = {key: value for key, value in document.items() if _is_list_of_objects(value)}
        if self._split in lists:
            return lists[self._split]
        if not lists or set(lists) & set(ROW_LISTS):
            return [document]
        if len(lists) == 1:
            return next(iter(lists.values()))
        raise InvalidInput(
            "several_lists",
            f"{self._path} holds several lists: {', '.join(lists)}; none is called {self._split!r}.",
            allowed="Name the list to read as `split`.",
            next=call("prepare_dataset", source=str(self._path), split=next(iter(lists))),
        )

    def _broken(self, why: str, position: int, cause: Exception | None = None) -> NoReturn:
        before = self._text[:position]
        line = self._lines_before + before.count("\n") + 1
        column = position - before.rfind("\n") if "\n" in before else self._column_before + position + 1
        near = around(self._text, position)
        raise InvalidInput(
            "broken_json",
            f"{self._path}, line {line}, column {column}: {why}{f' near {near!r}' if near else ''}.",
            allowed="A .json file is a list of objects, a .jsonl file one object per line. Write a repaired copy.",
            next=repaired(self._path),
        ) from cause


def _keyed_rows(values: list[Any]) -> list[Any]:
    """The rows of an object that holds each under an id: objects of like keys, or conversations; else none."""
    if len(values) < LEAST_KEYED:
        return []
    if all(isinstance(value, dict) and value for value in values):
        keys = [set(cast("dict[str, Any]", value)) for value in values]
        return values if all(keys[0] & other for other in keys) else []
    if all(_is_list_of_objects(value) and set(ROLE_KEYS) & set(value[0]) for value in values):
        return [{"messages": value} for value in values]
    return []


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and isinstance(next(iter(cast("list[Any]", value)), None), dict)

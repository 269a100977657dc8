"""CSV and TSV: records under a header.

Streams. A record of another length than the header stays a list, which no layout takes for a row.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.pipeline.data import privacy
from tunewright.pipeline.data.blocks import Block, Broken, in_blocks
from tunewright.pipeline.data.encodings import Decoding
from tunewright.pipeline.data.opening import repaired
from tunewright.pipeline.errors import InvalidInput

if TYPE_CHECKING:
    import _csv

# csv's own limit of 131,072 characters is less than one long document.
MAX_CELL_CHARACTERS = 16_000_000
SEPARATORS = ",;\t|"  # the semicolon is what Europe's spreadsheets write
EXCEL_SEPARATOR = re.compile(r"sep=(.)", re.IGNORECASE)  # a first line that Excel writes and reads
QUOTED = re.compile('"[^"]*"')


def table_blocks(
    path: Path, pieces: Iterator[bytes], decoding: Decoding, notes: list[str], *, separator: str | None
) -> Iterator[Block]:
    """Blocks of dicts; rows are numbered from 1, the header not counted. Notes a separator that was recognised.

    Raises InvalidInput: `broken_csv`, `duplicate_columns`, `not_text`, `unknown_encoding`.
    """
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    lines = text_lines(path, decoding.text_pieces(pieces))
    head = next(lines, "")
    if said := EXCEL_SEPARATOR.fullmatch(head.rstrip("\r\n")):
        separator, head = said[1], next(lines, "")
    bare = QUOTED.sub("", head)
    delimiter = separator or max(SEPARATORS, key=bare.count)
    if separator is None and delimiter != ",":
        notes.append(f"{path.name}: the separator is {delimiter!r}.")
    records = csv.reader(chain([head], lines) if head else iter(()), delimiter=delimiter, strict=True)
    return in_blocks(_rows(path, records, decoding))


def text_lines(path: Path, pieces: Iterator[str]) -> Iterator[str]:
    """Lines with their ends, whichever of the three they have. Raises InvalidInput `not_text` for zero bytes."""
    rest, count = "", 0
    for piece in pieces:
        if "\0" in piece:
            line = count + piece[: piece.index("\0")].count("\n") + 1
            raise InvalidInput(
                "not_text",
                f"{path}, line {line}: a zero byte; this is no text file, or a damaged one.",
                allowed="Write a repaired copy as UTF-8 text.",
                next=repaired(path),
            )
        if len(rest) > 2 * MAX_CELL_CHARACTERS:
            raise InvalidInput(
                "line_too_long",
                f"{path}, line {count + 1} has more than {2 * MAX_CELL_CHARACTERS:,} characters.",
                allowed="Break it into lines.",
                next=repaired(path),
            )
        # Not splitlines: it also breaks at characters that stand within sentences.
        lines = list(io.StringIO(rest + piece, newline=""))
        # A carriage return at the end may be half of a line end.
        rest = lines.pop() if lines else ""
        count += len(lines)
        yield from lines
    yield from io.StringIO(rest, newline="")


def _rows(path: Path, records: "_csv.Reader", decoding: Decoding) -> Iterator[tuple[int, object]]:
    try:
        header = [name.strip() for name in next(records, list[str]())]
        refuse_duplicates(path, header)
        for record in records:
            if not record:
                continue
            size = sum(map(len, record))
            if decoding.dirty and (why := decoding.misfit("".join(record))):
                yield size, Broken(why)
            elif len(record) == len(header):
                yield size, dict(zip(header, record, strict=True))
            else:
                yield size, record
    except csv.Error as error:
        raise InvalidInput(
            "broken_csv",
            f"{path}, line {records.line_num}: {error}.",
            allowed='A cell that holds a quote, the separator or a line break stands in "…", its quotes doubled. '
            "Write a repaired copy.",
            next=repaired(path),
        ) from error


def refuse_duplicates(path: Path, header: list[str]) -> None:
    """Raises InvalidInput `duplicate_columns`; columns without a name do not count."""
    twice = [name for name, count in Counter(header).items() if count > 1 and name]
    if twice:
        raise InvalidInput(
            "duplicate_columns",
            f"{path} has several columns named {', '.join(repr(privacy.shown(name)) for name in twice[:5])}.",
            allowed="Every column has a name of its own: which of them is meant cannot be told. Write a repaired copy.",
            next=repaired(path),
        )

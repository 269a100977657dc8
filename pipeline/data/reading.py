"""The rows of one data file, whatever it is written in.

Guarantees: everything is streamed (but a single JSON object), so that memory does not grow with the file; a row that
cannot be read is a `Broken` among the others, a file that cannot be read is refused with the place of the break;
`sha256` is of the very bytes that the rows came from.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tunewright.pipeline.data.blocks import Block, Broken
from tunewright.pipeline.data.columnar import arrow_blocks, parquet_blocks
from tunewright.pipeline.data.encodings import Decoding
from tunewright.pipeline.data.json_rows import json_blocks
from tunewright.pipeline.data.opening import FileBytes, repaired, suffix_of
from tunewright.pipeline.data.plain_text import text_blocks
from tunewright.pipeline.data.tables import table_blocks
from tunewright.pipeline.errors import InvalidInput
from tunewright.pipeline.workspace import Workspace

LINES = (".jsonl", ".ndjson")
TABLES = {".csv": None, ".tsv": "\t"}
ARROW = (".arrow", ".feather")
STRUCTURED = (".json", *LINES, *TABLES, ".parquet", *ARROW)
TEXT = (".txt", ".md")
SUFFIXES = (*STRUCTURED, *TEXT)
# If not one of so many rows at the head can be read, none will be.
HEAD_ROWS = 100


class Reader:
    """Reads one file once, from front to end. `sha256`, `size_bytes` and `notes` are whole after the last block."""

    def __init__(self, path: Path, split: str, workspace: Workspace | None = None) -> None:
        """`path` has one of SUFFIXES; `split` names the list to read where a JSON object holds several.

        Without a workspace no file of its data home is read.
        """
        self.path = path
        self.notes: list[str] = []
        self._split = split
        self._file = FileBytes(path, workspace)
        self._decoding = Decoding(path)

    @property
    def sha256(self) -> str:
        return self._file.sha256

    @property
    def size_bytes(self) -> int:
        """Of the file as it lies, packed where it is packed."""
        return self._file.bytes_read

    @property
    def bytes_read(self) -> int:
        """How many of `size_bytes` have been read."""
        return self._file.bytes_read

    @property
    def encoding(self) -> str:
        """A codec's name; that of text in Parquet and Arrow files is utf-8 by definition."""
        return self._decoding.name

    def blocks(self) -> Iterator[Block]:
        """The file's blocks; no block is without rows.

        Raises InvalidInput: `path_not_allowed`, `not_a_file`, `unreadable_file`, `broken_archive`, `broken_json`,
        `several_lists`, `line_too_long`, `broken_csv`, `duplicate_columns`, `not_text`, `unknown_encoding`,
        `broken_file`, `broken_rows`, `empty_file`.
        """
        count = 0
        for count, block in enumerate(self._blocks(), 1):
            if count == 1:
                self._refuse_if_all_broken(block)
            yield block
        if count == 0:
            raise InvalidInput(
                "empty_file",
                f"{self.path} holds no rows ({self.size_bytes} bytes).",
                allowed="Every file needs a row.",
                next=repaired(self.path),
            )
        if self.encoding != "utf-8":
            self.notes.append(f"{self.path.name} is not UTF-8; it was read as {self.encoding}.")

    def _blocks(self) -> Iterator[Block]:
        suffix = suffix_of(self.path)
        if suffix == ".parquet":
            return parquet_blocks(self._file)
        if suffix in ARROW:
            return arrow_blocks(self._file)
        pieces = self._file.pieces()
        if suffix in TABLES:
            return table_blocks(self.path, pieces, self._decoding, self.notes, separator=TABLES[suffix])
        if suffix in TEXT:
            return text_blocks(self.path, pieces, self._decoding)
        return json_blocks(self.path, pieces, self._decoding, named_lines=suffix in LINES, split=self._split)

    def _refuse_if_all_broken(self, block: Block) -> None:
        head = list(islice(block.parsed(), HEAD_ROWS))
        number, first = head[0]
        if not isinstance(first, Broken) or not all(isinstance(value, Broken) for _, value in head):
            return
        code, place = ("broken_json", "line") if block.lines else ("broken_rows", "row")
        so_are = f" So are all of its first {len(head)} {place}s." if len(head) > 1 else ""
        raise InvalidInput(
            code,
            f"{self.path}, {place} {number}: {first.why}.{so_are}",
            allowed="A .json file is a list of objects, a .jsonl file one object per line. Write a repaired copy."
            if block.lines
            else "Write a repaired copy.",
            next=repaired(self.path),
        )

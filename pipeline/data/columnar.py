"""Parquet and Arrow files.

Guarantees that a broken file is refused rather than crashes the process: Arrow's buffers are validated before they
are read. Nested values come out as Python's. Values that Python cannot hold make their row `Broken`, not the file.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.pipeline.data import cells
from tunewright.pipeline.data.blocks import BLOCK_BYTES, Block, Broken
from tunewright.pipeline.data.opening import FileBytes, repaired
from tunewright.pipeline.data.tables import refuse_duplicates
from tunewright.pipeline.errors import InvalidInput

if TYPE_CHECKING:
    import pyarrow as pa

MAX_BATCH_ROWS = 10_000
IPC_FILE_MAGIC = b"ARROW1"


def parquet_blocks(file: FileBytes) -> Iterator[Block]:
    """Raises InvalidInput: `broken_file`, `duplicate_columns`."""
    import pyarrow.parquet as pq

    with file.seekable() as opened, _refusing(file.path):
        parquet = pq.ParquetFile(opened, buffer_size=1 << 20)
        refuse_duplicates(file.path, parquet.schema_arrow.names)
        meta = parquet.metadata
        size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
        yield from _numbered(parquet.iter_batches(batch_size=_batch_rows(size, meta.num_rows)))


def arrow_blocks(file: FileBytes) -> Iterator[Block]:
    """Of an IPC file (also named Feather) or an IPC stream. Raises InvalidInput: `broken_file`, `duplicate_columns`."""
    import pyarrow as pa

    with file.seekable() as opened, _refusing(file.path):
        is_file = opened.read(len(IPC_FILE_MAGIC)) == IPC_FILE_MAGIC
        opened.seek(0)
        reader = pa.ipc.open_file(opened) if is_file else pa.ipc.open_stream(opened)
        refuse_duplicates(file.path, reader.schema.names)
        yield from _numbered(_validated(reader))


def _bare(row: dict[str, Any]) -> dict[str, Any]:
    """The row without the keys inside its values that are null: a column stores every key that any row has in all."""
    return {
        name: cells.without_nulls(value) if isinstance(value, list | dict) else value for name, value in row.items()
    }


def rows_of(batch: "pa.RecordBatch | pa.Table") -> list[object]:
    """The rows as Python values; `Broken` where one holds text that is no UTF-8 or a date beyond Python's."""
    import pyarrow as pa

    failures = (ValueError, OverflowError, pa.ArrowException)
    try:
        return [_bare(row) for row in batch.to_pylist()]
    except failures:
        rows: list[object] = []
        for at in range(batch.num_rows):
            try:
                rows += map(_bare, batch.slice(at, 1).to_pylist())
            except failures as error:
                rows.append(Broken(f"a value cannot be read: {error!s:.100}"))
        return rows


def _validated(reader: Any) -> "Iterator[pa.RecordBatch]":
    import pyarrow as pa

    is_file = isinstance(reader, pa.ipc.RecordBatchFileReader)
    batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
    for batch in batches:
        # Offsets that point outside their buffer would be followed.
        batch.validate(full=True)
        rows = _batch_rows(batch.nbytes, batch.num_rows)
        yield from (batch.slice(at, rows) for at in range(0, batch.num_rows, rows))


def _numbered(batches: "Iterator[pa.RecordBatch]") -> Iterator[Block]:
    first = 1
    for batch in batches:
        if batch.num_rows:
            yield Block(first, rows=rows_of(batch))
            first += batch.num_rows


def _batch_rows(size_bytes: int, rows: int) -> int:
    """So many rows that they are about one block; the sizes come from the file and may be anything."""
    return max(1, min(MAX_BATCH_ROWS, rows, BLOCK_BYTES * rows // max(1, size_bytes)))


@contextmanager
def _refusing(path: Path) -> Generator[None]:
    import pyarrow as pa

    try:
        yield
    # MemoryError: a broken length asks for more than there is. OSError: what a decoder meets in broken pages.
    except (pa.ArrowException, OSError, MemoryError, ValueError, KeyError, IndexError, OverflowError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(
            "broken_file",
            f"{path} is damaged, or no {path.suffix.lstrip('.')} file: {str(error).partition(chr(10))[0]:.160}.",
            allowed="Fetch or write it again.",
            next=repaired(path),
        ) from error

"""Conversations on disk: an Arrow file while a dataset is being made, Parquet once it is.

Guarantees that the same rows give the same Parquet bytes (with one version of pyarrow), and that no more than a batch
of rows is in memory while writing. pyarrow is imported when it is first needed: an idle server does not pay for it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

Message = dict[str, str]

TRAIN, EVAL = "train", "eval"
# A batch ends at whichever comes first; Arrow's texts hold 2 GiB a batch, memory should see much less.
BATCH_ROWS = 2000
BATCH_CHARACTERS = 32_000_000


def split_file(folder: Path, split: str) -> Path:
    return folder / f"{split}.parquet"


def _schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema([("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])))])


class Staging:
    """Conversations appended to the Arrow file at `path`, numbered from 0 in order; to be closed before reading."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._schema = _schema()
        self._writer: Any = pa.ipc.new_file(path, self._schema)
        self._begin_batch()

    def _begin_batch(self) -> None:
        self._characters = 0
        self._offsets, self._roles, self._contents = [0], list[str](), list[str]()

    def add(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self._roles.append(message["role"])
            self._contents.append(message["content"])
            self._characters += len(message["content"])
        self._offsets.append(len(self._roles))
        if len(self._offsets) > BATCH_ROWS or self._characters > BATCH_CHARACTERS:
            self._write_batch()

    def _write_batch(self) -> None:
        import pyarrow as pa

        struct = self._schema.field("messages").type.value_type
        turns = pa.StructArray.from_arrays([pa.array(self._roles), pa.array(self._contents)], fields=list(struct))
        rows = pa.ListArray.from_arrays(pa.array(self._offsets, pa.int32()), turns)
        self._writer.write_batch(pa.RecordBatch.from_arrays([rows.cast(self._schema.types[0])], schema=self._schema))
        self._begin_batch()

    def close(self) -> None:
        if len(self._offsets) > 1:
            self._write_batch()
        self._writer.close()


def _batches(staged: Path) -> Iterator[tuple[int, "pa.RecordBatch"]]:
    """The batches of a closed staging file, each with the number of its first row; mapped, not read into memory."""
    import pyarrow as pa

    with pa.memory_map(str(staged)) as mapped, pa.ipc.open_file(mapped) as file:
        first = 0
        for number in range(file.num_record_batches):
            batch = file.get_batch(number)
            yield first, batch
            first += batch.num_rows


def write_split(staged: Path, target: Path, rows: set[int]) -> None:
    """Writes those `rows` of a closed staging file, in order, as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetWriter(target, _schema(), compression="zstd") as writer:
        for first, batch in _batches(staged):
            wanted = batch.filter(pa.array([first + i in rows for i in range(batch.num_rows)]))
            if wanted.num_rows:
                writer.write_batch(wanted)


def staged_rows(staged: Path, rows: set[int]) -> Iterator[list[Message]]:
    """Those `rows` of a closed staging file, in order."""
    for first, batch in _batches(staged):
        wanted = [i for i in range(batch.num_rows) if first + i in rows]
        yield from batch.take(wanted).column("messages").to_pylist() if wanted else []


def load_rows(path: Path) -> list[list[Message]]:
    """All conversations of a split's Parquet file, each a list of messages with `role` and `content`."""
    import pyarrow.parquet as pq

    return pq.read_table(path).column("messages").to_pylist()


def count_rows(path: Path) -> int:
    import pyarrow.parquet as pq

    return pq.read_metadata(path).num_rows


def load_slice(path: Path, offset: int, count: int) -> list[list[Message]]:
    """At most `count` conversations of a split from number `offset` on; reads only the row groups that hold them."""
    import pyarrow.parquet as pq

    rows: list[list[Message]] = []
    with pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            held = file.metadata.row_group(number).num_rows
            if offset < held and len(rows) < count:
                table = file.read_row_group(number).slice(offset, count - len(rows))
                rows += table.column("messages").to_pylist()
            offset = max(0, offset - held)
    return rows


def first_question(dataset_folder: Path) -> list[Message]:
    """The first conversation of the eval rows, else of the training rows, up to its first question; [] without rows."""
    for split in (EVAL, TRAIN):
        file = split_file(dataset_folder, split)
        rows = load_slice(file, 0, 1) if file.is_file() else []
        if rows:
            asked = next(i for i, message in enumerate(rows[0]) if message["role"] == "user")
            return rows[0][: asked + 1]
    return []

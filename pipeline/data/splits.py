"""Rows on disk: an Arrow file while a dataset is being made, Parquet once it is. One schema for each kind of row.

Guarantees that the same rows give the same Parquet bytes (with one version of pyarrow), and that no more than a batch
of rows is in memory while writing. pyarrow is imported when it is first needed: an idle server does not pay for it.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tunewright.pipeline.data.rows import Kind, Message, Record, calls_as_text, stored_message

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

TRAIN, EVAL = "train", "eval"
BATCH_ROWS = 2000
# Columns of conversations and those beside them, by the kind of row.
TURNS: dict[Kind, tuple[str, ...]] = {
    "sft": ("messages",),
    "preference": ("messages", "chosen", "rejected"),
    "kto": ("messages",),
    "text": (),
}


def split_file(folder: Path, split: str) -> Path:
    return folder / f"{split}.parquet"


def schema(kind: Kind) -> "pa.Schema":
    """The columns of a kind. Tool calls and tools are JSON text: their arguments have no common schema."""
    import pyarrow as pa

    turn = pa.struct([("role", pa.string()), ("content", pa.string()), ("tool_calls", pa.string())])
    columns: list[tuple[str, Any]] = [(name, pa.list_(turn)) for name in TURNS[kind]]
    if kind == "text":
        columns.append(("text", pa.string()))
    else:
        columns.append(("tools", pa.string()))
    if kind == "kto":
        columns.append(("label", pa.bool_()))
    return pa.schema([*columns, ("source_chunk", pa.string())], metadata={"kind": kind})


def batch(kind: Kind, records: Sequence[Record]) -> "pa.RecordBatch":
    """The records, all of `kind`, as one Arrow batch."""
    import pyarrow as pa

    form = schema(kind)
    columns = [_turns([getattr(record, name) for record in records], form.field(name).type) for name in TURNS[kind]]
    if kind == "text":
        columns.append(pa.array([record.text for record in records], pa.string()))
    else:
        tools = [json.dumps(record.tools, ensure_ascii=False) if record.tools else None for record in records]
        columns.append(pa.array(tools, pa.string()))
    if kind == "kto":
        columns.append(pa.array([record.label for record in records], pa.bool_()))
    columns.append(pa.array([record.source_chunk for record in records], pa.string()))
    return pa.RecordBatch.from_arrays(columns, schema=form)


def _turns(conversations: Sequence[Sequence[Message]], form: Any) -> Any:
    import pyarrow as pa

    offsets = [0]
    for messages in conversations:
        offsets.append(offsets[-1] + len(messages))
    flat = list(chain.from_iterable(conversations))
    turns = pa.StructArray.from_arrays(
        [
            pa.array([message["role"] for message in flat], pa.string()),
            pa.array([message["content"] for message in flat], pa.string()),
            pa.array([calls_as_text(message) for message in flat], pa.string()),
        ],
        fields=list(form.value_type),
    )
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), turns).cast(form)


def records(part: "pa.RecordBatch", kind: Kind) -> Iterator[Record]:
    """The rows of a batch or table that `batch` made."""
    for row in part.to_pylist():
        yield Record(
            kind=kind,
            messages=_messages(row.get("messages")),
            chosen=_messages(row.get("chosen")),
            rejected=_messages(row.get("rejected")),
            label=row.get("label"),
            text=row.get("text") or "",
            tools=json.loads(row["tools"]) if row.get("tools") else [],
            source_chunk=row.get("source_chunk"),
        )


def _messages(turns: list[dict[str, Any]] | None) -> list[Message]:
    return [stored_message(turn["role"], turn["content"], turn.get("tool_calls")) for turn in turns or []]


def _kind(form: "pa.Schema") -> Kind:
    """Datasets of the first version name no kind and have messages alone."""
    return cast(Kind, (form.metadata or {}).get(b"kind", b"sft").decode())


class Staging:
    """Batches appended to the Arrow file at `path`, rows numbered from 0 in order; to be closed before reading."""

    def __init__(self, path: Path, kind: Kind) -> None:
        import pyarrow as pa

        self._writer: Any = pa.ipc.new_file(path, schema(kind))

    def add(self, part: "pa.RecordBatch") -> None:
        self._writer.write_batch(part)

    def close(self) -> None:
        self._writer.close()


def _batches(staged: Path, *, mapped: bool) -> Iterator[tuple[int, "pa.RecordBatch"]]:
    """The batches of a closed staging file, each with the number of its first row.

    Mapped where only a few rows are looked at; else read, as mapped pages stay in memory until the end.
    """
    import pyarrow as pa

    source = pa.memory_map(str(staged)) if mapped else pa.OSFile(str(staged))
    with source as opened, pa.ipc.open_file(opened) as file:
        first = 0
        for number in range(file.num_record_batches):
            part = file.get_batch(number)
            yield first, part
            first += part.num_rows


def write_split(staged: Path, target: Path, kind: Kind, wanted: "np.ndarray[Any, Any]") -> None:
    """Writes the rows of a closed staging file where `wanted` (bool, one a row) is true, in order, as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetWriter(target, schema(kind), compression="zstd") as writer:
        for first, part in _batches(staged, mapped=False):
            kept = part.filter(pa.array(wanted[first : first + part.num_rows]))
            if kept.num_rows:
                writer.write_batch(kept)


def staged_rows(staged: Path, rows: "Iterable[int] | np.ndarray[Any, Any]") -> Iterator[Record]:
    """Those `rows` of a closed staging file, in order, each once."""
    import numpy as np

    wanted = np.unique(np.fromiter(rows, np.int64))
    if not len(wanted):
        return
    for first, part in _batches(staged, mapped=True):
        begin, end = np.searchsorted(wanted, (first, first + part.num_rows))
        if begin < end:
            yield from records(part.take(wanted[begin:end] - first), _kind(part.schema))


def write(path: Path, kind: Kind, rows: Iterable[Record]) -> int:
    """Writes records, all of `kind`, as a split's Parquet file; returns how many."""
    import pyarrow.parquet as pq

    written, remaining = 0, iter(rows)
    with pq.ParquetWriter(path, schema(kind), compression="zstd") as writer:
        while part := list(islice(remaining, BATCH_ROWS)):
            writer.write_batch(batch(kind, part))
            written += len(part)
    return written


def read(path: Path) -> Iterator[Record]:
    """All rows of a split's Parquet file, a batch in memory at a time."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for part in file.iter_batches(BATCH_ROWS):
            yield from records(part, _kind(file.schema_arrow))


def count_rows(path: Path) -> int:
    import pyarrow.parquet as pq

    return pq.read_metadata(path).num_rows


def load_slice(path: Path, offset: int, count: int) -> list[Record]:
    """At most `count` rows of a split from number `offset` on; reads only the row groups that hold them."""
    import pyarrow.parquet as pq

    rows: list[Record] = []
    with pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            held = file.metadata.row_group(number).num_rows
            if offset < held and len(rows) < count:
                table = file.read_row_group(number).slice(offset, count - len(rows))
                rows += records(table, _kind(file.schema_arrow))
            offset = max(0, offset - held)
    return rows


def first_question(dataset_folder: Path) -> list[Message]:
    """The first conversation of the eval rows, else of the training rows, up to its first question; [] without one."""
    for split in (EVAL, TRAIN):
        file = split_file(dataset_folder, split)
        rows = load_slice(file, 0, 1) if file.is_file() else []
        for number, message in enumerate(rows[0].messages if rows else []):
            if message["role"] == "user":
                return rows[0].messages[: number + 1]
    return []

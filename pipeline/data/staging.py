"""All usable rows of all sources in one Arrow file, with what is known of each beside it.

Guarantees that memory does not grow with the texts: about forty bytes a row stay, the rest is on disk.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tunewright.pipeline.data import hub, layouts
from tunewright.pipeline.data.arguments import DatasetArguments
from tunewright.pipeline.data.cleaning import Tally
from tunewright.pipeline.data.layouts import Layout
from tunewright.pipeline.data.opening import COMPRESSED_SUFFIXES
from tunewright.pipeline.data.pool import Task, processes
from tunewright.pipeline.data.processing import Processed, Recipe
from tunewright.pipeline.data.reading import Block, Broken, Reader
from tunewright.pipeline.data.rows import Kind
from tunewright.pipeline.data.sources import Source
from tunewright.pipeline.data.splits import Staging
from tunewright.pipeline.errors import InvalidInput, call
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np

    Array: TypeAlias = np.ndarray[Any, Any]

# Rows at the head of a file whose columns decide its layout.
PEEKED_ROWS = 100
MAX_NAMED_FILES = 20
# Of text that is packed, and of what is read over the network.
PACKED_FACTOR, MUCH_BYTES = 5, 1_000_000_000


@dataclass
class Staged:
    """The staged rows: arrays with one entry a row, and what became of the others.

    `files` describes each file or remote dataset; `file_of` and `numbers` say where a row stood. `found` is, for each
    row, where in `findings` stands what is noteworthy about it (the first: nothing).
    """

    rows: Path
    signatures: Path
    kind: Kind = "sft"
    files: list[Row] = field(default_factory=list[Row])
    notes: list[str] = field(default_factory=list[str])
    rows_read: int = 0
    file_of: "Array" = field(init=False)
    numbers: "Array" = field(init=False)
    fingerprints: "Array" = field(init=False)
    prompts: "Array" = field(init=False)
    characters: "Array" = field(init=False)
    found: "Array" = field(init=False)
    findings: list[tuple[str, ...]] = field(default_factory=lambda: [()])
    drops: Tally = field(default_factory=Tally)
    mended: Tally = field(default_factory=Tally)
    replaced: Counter[str] = field(default_factory=Counter[str])

    def __len__(self) -> int:
        return len(self.numbers)

    def place(self, row: int) -> tuple[str, int]:
        """The name of the file that a staged row came from, and its number there."""
        return self.files[self.file_of[row]]["name"], int(self.numbers[row])


def stage(
    workspace: Workspace,
    sources: list[Source],
    arguments: DatasetArguments,
    recipe: Recipe,
    folder: Path,
    on_bytes: Callable[[int], None],
) -> Staged:
    """Reads, cleans and stages every row in `folder`. `on_bytes` hears how many bytes of the files are read.

    Raises InvalidInput, NotFound, Unavailable.
    """
    staged = Staged(folder / "rows.arrow", folder / "signatures.bin")
    reading = _Reading(workspace, sources, arguments, staged, on_bytes)
    collector = _Collector(staged)
    try:
        with processes(recipe, _about_bytes(sources)) as process, staged.signatures.open("wb") as signatures:
            for file_number, done in process(reading.tasks()):
                collector.add(file_number, done)
                signatures.write(done.signatures)
    finally:
        collector.close()
    return staged


def _about_bytes(sources: list[Source]) -> int:
    """How much text there may be; of what is remote nobody knows, so it counts as much."""
    if any(source.remote for source in sources):
        return MUCH_BYTES
    files = [path for source in sources for path in source.files]
    return sum(path.stat().st_size * (PACKED_FACTOR if path.suffix in COMPRESSED_SUFFIXES else 1) for path in files)


class _Collector:
    """Gathers the results of blocks into one `Staged`."""

    def __init__(self, staged: Staged) -> None:
        self._staged = staged
        self._writer: Staging | None = None
        self._parts: dict[str, list[Array]] = {
            name: [] for name in ("file_of", "numbers", "fingerprints", "prompts", "characters", "found")
        }
        self._places: dict[tuple[str, ...], int] = {(): 0}
        self._count = 0

    def add(self, file_number: int, done: Processed) -> None:
        import numpy as np

        staged, count = self._staged, len(done.numbers)
        staged.rows_read += done.rows_read
        staged.drops.merge(done.drops)
        staged.mended.merge(done.mended)
        staged.replaced.update(done.replaced)
        if done.batch is None:
            return
        self._writer = self._writer or Staging(staged.rows, staged.kind)
        self._writer.add(done.batch)
        found = np.zeros(count, np.uint32)
        for row, findings in done.found.items():
            found[row] = self._places.setdefault(findings, len(staged.findings))
            if found[row] == len(staged.findings):
                staged.findings.append(findings)
        self._parts["found"].append(found)
        self._parts["file_of"].append(np.full(count, file_number, np.uint32))
        for name in ("numbers", "fingerprints", "prompts"):
            self._parts[name].append(np.frombuffer(getattr(done, name), np.uint64))
        self._parts["characters"].append(np.frombuffer(done.characters, np.uint64).astype(np.uint32))
        self._count += count

    def close(self) -> None:
        """Closes the staging file, and gives the arrays to the `Staged`."""
        import numpy as np

        if self._writer is not None:
            self._writer.close()
        for name, parts in self._parts.items():
            setattr(self._staged, name, np.concatenate(parts) if parts else np.empty(0, np.uint64))


class _Reading:
    """The blocks of all sources as tasks; notes each file's layout and, when it is read, its hash."""

    def __init__(
        self,
        workspace: Workspace,
        sources: list[Source],
        arguments: DatasetArguments,
        staged: Staged,
        on_bytes: Callable[[int], None],
    ) -> None:
        self._workspace, self._sources, self._arguments = workspace, sources, arguments
        self._staged, self._on_bytes = staged, on_bytes
        self._bytes_before = 0

    def tasks(self) -> Iterator[Task[int]]:
        for number, source in enumerate(self._sources):
            self._staged.notes += source.notes
            if source.remote is not None:
                blocks = hub.blocks(source.remote, self._arguments.max_rows, self._workspace)
                entry: Row = {"source": number, "name": source.given, "remote": asdict(source.remote)}
                yield from self._of(blocks, entry, source.given, source.remote.hint)
            for path in source.files:
                yield from self._of_file(number, source, path)

    def _of_file(self, number: int, source: Source, path: Path) -> Iterator[Task[int]]:
        reader = Reader(path, self._arguments.split, self._workspace)
        entry: Row = {"source": number, "name": path.name, "path": str(path)}
        for task in self._of(reader.blocks(), entry, str(path), source.hints.get(path)):
            yield task
            self._on_bytes(self._bytes_before + reader.bytes_read)
        entry |= {"sha256": reader.sha256, "size_bytes": reader.size_bytes, "encoding": reader.encoding}
        self._staged.notes += reader.notes
        self._bytes_before += reader.size_bytes

    def _of(self, blocks: Iterator[Block], entry: Row, where: str, hint: Any) -> Iterator[Task[int]]:
        first = next(blocks, None)
        if first is None:
            raise InvalidInput("empty_file", f"{where} holds no rows.", allowed="Every source needs a row.")
        head = [row for _, row in islice(first.parsed(), PEEKED_ROWS) if not isinstance(row, Broken)]
        try:
            arguments = self._arguments
            layout = layouts.find(head, where, arguments.format, arguments.mapping, hint, arguments.again)
        except InvalidInput as error:
            raise self._or_without(where, error) from error
        self._agree(layout, where)
        entry |= {"format": layout.format, "kind": layout.kind, "columns": layout.columns}
        self._staged.files.append(entry)
        file_number = len(self._staged.files) - 1
        for block in chain([first], blocks):
            yield layout, entry["name"], block, file_number

    def _or_without(self, where: str, error: InvalidInput) -> InvalidInput:
        """The refusal of a file; beside others of which one was recognised, with the call for those alone."""
        others = [str(path) for source in self._sources for path in source.files if str(path) != where]
        weighted = any(source.weight is not None for source in self._sources)
        is_one_of_few = self._staged.files and 0 < len(others) <= MAX_NAMED_FILES and not weighted
        if error.code != "unknown_layout" or not is_one_of_few:
            return error
        allowed = f"{error.allowed} Is it no data of yours, as an export's list of users: give the other files alone."
        again = self._arguments.again(source=others if len(others) > 1 else others[0])
        return InvalidInput(error.code, error.what, allowed=allowed, next=again)

    def _agree(self, layout: Layout, where: str) -> None:
        if not self._staged.files:
            self._staged.kind = layout.kind
        elif layout.kind != self._staged.kind:
            before = self._staged.files[0]
            raise InvalidInput(
                "mixed_kinds",
                f"{before['name']} holds {self._staged.kind} data ({before['format']}), {where} holds {layout.kind} "
                f"data ({layout.format}).",
                allowed="One dataset holds one kind: prepare them one by one.",
                next=call("prepare_dataset", source=where),
            )

"""From files to a dataset: read, recognise, clean, choose, split, describe.

Guarantees: the same files and arguments give the same Parquet bytes; a failure or a kill leaves no dataset, at worst a
hidden partial folder that the next start removes; memory does not grow with the text of JSONL, CSV and TSV files (a
few hundred bytes a row stay). Does not change any text, and does not fetch anything but, with `model`, its tokenizer.
"""

import errno
import hashlib
import shutil
from array import array
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.pipeline import files
from tunewright.pipeline.data import cleaning, layouts, selection, splits, statistics
from tunewright.pipeline.data.reading import Reader
from tunewright.pipeline.data.sources import GLOB_CHARACTERS, Source, SourceArgument, as_given, resolve
from tunewright.pipeline.data.splits import EVAL, TRAIN, load_rows, split_file
from tunewright.pipeline.errors import InvalidInput, NoSpace, call
from tunewright.pipeline.ids import new_id
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from tunewright.pipeline.chat_template import ChatTemplate

__all__ = ["load_rows", "prepare"]

# Rows at the head of a file whose columns decide its layout.
PEEKED_ROWS = 100
PROGRESS_EVERY_ROWS = 1000
MAX_EVAL_FRACTION = 0.5
# The staging file is about as large as the source, the Parquet files smaller.
SPACE_FACTOR = 2

OnProgress = Callable[[float, float, str], None]


@dataclass(frozen=True)
class _Options:
    """The arguments that decide the dataset's content, as its manifest keeps them."""

    format: str
    mapping: dict[str, str] | None
    split: str
    system_prompt: str | None
    eval_fraction: float
    max_rows: int | None
    dedupe: bool
    model: str | None
    seed: int

    def check(self) -> None:
        """Raises InvalidInput."""
        if self.format not in layouts.FORMATS:
            raise InvalidInput(
                "invalid_format", f"format={self.format!r}.", allowed=f"One of {', '.join(layouts.FORMATS)}."
            )
        if not 0 <= self.eval_fraction <= MAX_EVAL_FRACTION:
            raise InvalidInput(
                "invalid_eval_fraction",
                f"eval_fraction={self.eval_fraction}.",
                allowed=f"0 to {MAX_EVAL_FRACTION}; 0.05 is usual.",
            )
        if self.max_rows is not None and self.max_rows < 1:
            raise InvalidInput("invalid_max_rows", f"max_rows={self.max_rows}.", allowed="1 or more, or none.")
        if self.mapping is not None:
            layouts.check_mapping(self.mapping, self.format)


@dataclass
class _Staged:
    """What is known of the rows in the staging file; the lists have one entry a row."""

    origins: "array[int]" = field(default_factory=lambda: array("L"))  # number of the row's source
    characters: "array[int]" = field(default_factory=lambda: array("L"))
    suspects: dict[int, cleaning.Suspects] = field(default_factory=dict[int, cleaning.Suspects])
    drops: cleaning.Drops = field(default_factory=cleaning.Drops)
    rows_read: int = 0
    files: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


def prepare(
    workspace: Workspace,
    source: SourceArgument,
    *,
    name: str | None = None,
    format: str = "auto",
    mapping: Mapping[str, str] | None = None,
    split: str = "train",
    system_prompt: str | None = None,
    eval_fraction: float = 0.05,
    max_rows: int | None = None,
    dedupe: bool = True,
    model: str | None = None,
    seed: int = 42,
    on_progress: OnProgress | None = None,
) -> Row:
    """Makes a dataset of the files that `source` names (see `sources.resolve`); returns its row in the store.

    `split` picks the files of a folder and the list of a JSON object; `max_rows` keeps the first usable rows, or with
    weights that many by share; `model` is whose tokenizer counts; without it tokens are estimated.
    `on_progress(done, total, message)` is called with growing `done`; what it raises stops the work, nothing is left.

    Raises InvalidInput, NotFound, Unavailable, NoSpace. Writes `datasets/ID/` and one row, or nothing.
    """
    prompt = system_prompt if system_prompt and system_prompt.strip() else None
    columns = dict(mapping) if mapping is not None else None
    options = _Options(format, columns, split, prompt, eval_fraction, max_rows, dedupe, model, seed)
    options.check()
    sources = resolve(source, split)
    template = _template(workspace, model)
    report_progress = on_progress or _unheard
    size = sum(path.stat().st_size for entry in sources for path in entry.files)
    files.require_space(workspace.home.datasets, SPACE_FACTOR * size, "Preparing the dataset")

    title = name or _stem(sources[0].given)
    dataset_id = new_id("dataset", title)
    final = workspace.home.datasets / dataset_id
    with _disk_full_named(final), files.new_folder(final) as folder:
        staging = folder / "rows.arrow"
        staged = _stage(sources, options, staging, lambda done: report_progress(0.8 * done, size, "Reading rows"))
        kept = _choose(staged, sources, options)
        held_out = selection.held_out(kept, eval_fraction, seed)
        report_progress(0.8 * size, size, "Writing the splits")
        splits.write_split(staging, split_file(folder, TRAIN), set(kept) - held_out)
        splits.write_split(staging, split_file(folder, EVAL), held_out)
        report_progress(0.9 * size, size, "Counting tokens")
        tokens = _tokens(staged, kept, staging, template, model)
        staging.unlink()
        report = _report(staged, tokens, kept, len(held_out), eval_fraction)
        document = _describe(folder, sources, options, staged, report)
        report_progress(size, size, "Storing the dataset")
    document["path"] = str(final)
    try:
        workspace.store.add_artifact(dataset_id, "dataset", title, document, parents=[])
    except BaseException:
        shutil.rmtree(final)
        raise
    return workspace.store.artifact(dataset_id)


def _unheard(done: float, total: float, message: str) -> None:
    """The progress of work that nobody follows."""


def _template(workspace: Workspace, model: str | None) -> "ChatTemplate | None":
    if model is None:
        return None
    # Brings jinja2 and tokenizers, which an idle server does not need.
    from tunewright.pipeline import chat_template

    return chat_template.load(workspace, model)


def _stem(given: str) -> str:
    """What a dataset is called after its source: the file's or folder's name, of a glob the part before the stars."""
    words = [part for part in Path(given).expanduser().absolute().parts if not set(part) & set(GLOB_CHARACTERS)]
    return Path(words[-1]).stem or "dataset"


@contextmanager
def _disk_full_named(target: Path) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise NoSpace(
            "no_disk_space",
            f"The disk became full while writing {target}.",
            allowed="Free some space, or move the data home (TUNEWRIGHT_HOME) to a larger disk.",
            next='list_artifacts() and delete_artifact(artifact_id="…", confirm=true)',
            done="What was written has been removed.",
        ) from error


def _stage(sources: list[Source], options: _Options, staging: Path, on_bytes: Callable[[int], None]) -> _Staged:
    """Writes every usable row to the staging file. `on_bytes` hears how many bytes of the sources are read."""
    staged = _Staged()
    seen: set[bytes] = set()
    rows = splits.Staging(staging)
    try:
        bytes_before = 0
        for number, source in enumerate(sources):
            for path in source.files:
                reader = Reader(path, options.split)
                for row, messages in _usable(reader, options, staged):
                    if staged.rows_read % PROGRESS_EVERY_ROWS == 0:
                        on_bytes(bytes_before + reader.size_bytes)
                    if options.dedupe:
                        mark = cleaning.fingerprint(messages)
                        if mark in seen:
                            staged.drops.add("duplicate", path.name, row, "an earlier row says the same", messages)
                            continue
                        seen.add(mark)
                    if source.weight is None and len(staged.origins) == options.max_rows:
                        staged.drops.add("max_rows", path.name, row, "enough rows were kept before it", messages)
                        continue
                    _keep(rows, staged, number, messages)
                bytes_before += reader.size_bytes
    finally:
        rows.close()
    return staged


def _usable(reader: Reader, options: _Options, staged: _Staged) -> Iterator[tuple[int, list[layouts.Message]]]:
    """The conversations of one file with their row numbers; notes what is dropped, and the file when it is read."""
    numbered = reader.rows()
    head = list(islice(numbered, PEEKED_ROWS))
    layout = layouts.find([row for _, row in head], str(reader.path), options.format, options.mapping)
    for number, row in chain(head, numbered):
        staged.rows_read += 1
        try:
            messages = layouts.to_messages(layout, row)
        except layouts.Unusable as error:
            staged.drops.add(error.reason, reader.path.name, number, str(error), row)
            continue
        if options.system_prompt and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": options.system_prompt})
        yield number, messages
    staged.files.append(
        {"path": str(reader.path), "sha256": reader.sha256, "size_bytes": reader.size_bytes, **asdict(layout)}
    )


def _keep(rows: splits.Staging, staged: _Staged, source: int, messages: list[layouts.Message]) -> None:
    found = cleaning.suspects(messages)
    if found:
        staged.suspects[len(staged.origins)] = found
    rows.add(messages)
    staged.origins.append(source)
    staged.characters.append(sum(len(message["content"]) for message in messages))


def _choose(staged: _Staged, sources: list[Source], options: _Options) -> list[int]:
    """The staged rows that make the dataset; notes those left out for the shares. Raises InvalidInput without rows."""
    weights = [source.weight for source in sources if source.weight is not None]
    held = set(staged.origins)
    barren = [source.given for number, source in enumerate(sources) if weights and number not in held]
    if not held or barren:
        where = f" in {barren[0]}" if barren else ""
        raise InvalidInput(
            "dataset_empty",
            f"No usable row is left{where} of {staged.rows_read} read: {staged.drops}.",
            allowed="A row needs a prompt and an answer; roles go user, assistant in turn and end with the assistant.",
            next=call("prepare_dataset", source=sources[0].given, mapping={"prompt": "…", "response": "…"}),
        )
    if not weights:
        return list(range(len(staged.origins)))
    kept, over_maximum = selection.shares(staged.origins, weights, options.max_rows, options.seed)
    staged.drops.counts["max_rows"] += over_maximum
    staged.drops.counts["weight"] += len(staged.origins) - len(kept) - over_maximum
    return kept


def _tokens(
    staged: _Staged, kept: list[int], staging: Path, template: "ChatTemplate | None", model: str | None
) -> dict[str, Any]:
    if template is None or model is None:
        return statistics.estimate([staged.characters[row] for row in kept])
    counted = {kept[i] for i in statistics.sample(len(kept))}
    return statistics.count(template, model, splits.staged_rows(staging, counted), len(kept))


def _report(staged: _Staged, tokens: dict[str, Any], kept: list[int], eval_rows: int, eval_fraction: float) -> Row:
    found = [staged.suspects[row] for row in kept if row in staged.suspects]
    return {
        "rows_read": staged.rows_read,
        "train_rows": len(kept) - eval_rows,
        "eval_rows": eval_rows,
        "dropped": staged.drops.to_dict(),
        "tokens": tokens,
        "warnings": cleaning.warnings(len(kept), eval_rows, eval_fraction, found),
    }


def _describe(folder: Path, sources: list[Source], options: _Options, staged: _Staged, report: Row) -> Row:
    """Writes manifest.json and report.json beside the splits; returns the document of the store's row.

    `sha256` is the hash of the two Parquet files' hashes (hex, train before eval): it names the dataset's content.
    """
    written: dict[str, dict[str, Any]] = {}
    for file in (split_file(folder, TRAIN), split_file(folder, EVAL)):
        with file.open("rb") as data:
            written[file.name] = {
                "sha256": hashlib.file_digest(data, "sha256").hexdigest(),
                "size_bytes": file.stat().st_size,
            }
    sha256 = hashlib.sha256("".join(entry["sha256"] for entry in written.values()).encode("ascii")).hexdigest()
    described: Row = {
        "source": as_given(sources),
        "format": ", ".join(sorted({file["format"] for file in staged.files})),
    }
    manifest = {"files": staged.files, "arguments": asdict(options), "written": written, "sha256": sha256}
    files.write_json(folder / "manifest.json", described | manifest)
    files.write_json(folder / "report.json", report)
    return described | report | {"sha256": sha256}

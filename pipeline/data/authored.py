"""Datasets that grow by examples which an agent or another model writes.

Guarantees: every accepted example can be trained on and repeats none before it; a call's examples are appended in one
step, so that a kill leaves the state before or after; two processes that append at once lose nothing; a dataset that
something is trained on never changes. Nothing is mended: the author is told, and can do better.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from filelock import FileLock

from tunewright.pipeline import artifacts, files
from tunewright.pipeline.data import (
    advice,
    cleaning,
    describe,
    layouts,
    mending,
    near,
    placeholders,
    splits,
    statistics,
)
from tunewright.pipeline.data.conversation import check
from tunewright.pipeline.data.rows import Kind, Record, Unusable
from tunewright.pipeline.data.splits import EVAL, TRAIN, split_file
from tunewright.pipeline.documents import reading
from tunewright.pipeline.errors import Conflict, InvalidInput, NotFound, call
from tunewright.pipeline.ids import PREFIX, free_id
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

# One question in twenty is held out, told by its fingerprint: it stays where it is, however many come after it.
EVAL_EVERY = 20
MIN_ROWS_FOR_EVAL = 20
# All rows are read and compared at every call.
MAX_ROWS = 20_000
AGENT = "add_examples"
# Each change gives a dataset a folder of its own.
FOLDER = re.compile(r".+\.r\d+")
PROMPT_CHARACTERS = 80
WHY_CHARACTERS = 240


@dataclass(frozen=True)
class Appended:
    """What became of the examples of one call; `refused` has `index` (from 0), `reason` and `why`.

    `row` is the dataset's row in the store, or None where none was made because no example was accepted.
    """

    row: Row | None
    accepted: int
    refused: list[dict[str, Any]]

    @property
    def dataset_id(self) -> str | None:
        return self.row["id"] if self.row else None


@dataclass
class _Held:
    """The rows of a dataset in the order in which they came, and what later ones are compared with."""

    rows: list[tuple[str, Record]] = field(default_factory=list[tuple[str, Record]])
    fingerprints: set[bytes] = field(default_factory=set[bytes])
    split_of_prompt: dict[bytes, str] = field(default_factory=dict[bytes, str])
    index: near.Index = field(default_factory=near.Index)

    @property
    def kind(self) -> Kind | None:
        return self.rows[0][1].kind if self.rows else None

    def add(self, record: Record, split: str) -> None:
        self.rows.append((split, record))
        self.fingerprints.add(cleaning.fingerprint(record))
        self.split_of_prompt.setdefault(cleaning.prompt_fingerprint(record), split)
        self.index.add(record)

    def of(self, split: str) -> list[Record]:
        return [record for its_split, record in self.rows if its_split == split]

    def split_for(self, record: Record) -> str:
        """Eval for one question in twenty, once there are twenty rows; what asks the same stands in the same split."""
        prompt = cleaning.prompt_fingerprint(record)
        is_held_out = int.from_bytes(prompt, "little") % EVAL_EVERY == 0 and len(self.rows) >= MIN_ROWS_FOR_EVAL
        return self.split_of_prompt.get(prompt, EVAL if is_held_out else TRAIN)


def append(
    workspace: Workspace,
    dataset: str,
    examples: Sequence[Mapping[str, Any]],
    source_chunk: str | None = None,
    *,
    source: str = AGENT,
) -> Appended:
    """Checks `examples` (rows in any layout that `layouts` knows) and appends those that pass.

    `dataset` is an id or its unique prefix (`ds-…`); or a name, under which a dataset is made, or the one of that name
    that the same `source` made is found. `source_chunk` links every example to the chunk it was written from; an
    example's own `source_chunk` goes before it.

    Raises NotFound (the dataset, the chunk), InvalidInput, Conflict (`dataset_in_use`, `dataset_too_large`), NoSpace.
    """
    if source_chunk is not None:
        reading.find_chunk(workspace, source_chunk)
    with FileLock(workspace.home.root / "examples.lock", thread_local=False):
        _remove_leftovers(workspace)
        row = _existing(workspace, dataset, source)
        if row is not None:
            _refuse_in_use(workspace, row)
            _refuse_large(row)
        held = _load(row)
        refused: list[dict[str, Any]] = []
        for index, example in enumerate(examples):
            try:
                record = _checked(workspace, example, source_chunk, held)
            except Unusable as error:
                why = cleaning.shortened(str(error), WHY_CHARACTERS)
                refused.append({"index": index, "reason": error.reason, "why": why})
                continue
            held.add(record, held.split_for(record))
        added = len(examples) - len(refused)
        if added:
            row = _write(workspace, row, row["name"] if row else dataset.strip(), held, source, added)
    return Appended(row, added, refused)


def _remove_leftovers(workspace: Workspace) -> None:
    """Removes the folders that killed calls left: before or after them, the store points at another one."""
    rows = workspace.store.artifacts("dataset", limit=-1)
    ids = {row["id"] for row in rows}
    # Names, not paths: a home that was moved is no leftover.
    current = {Path(row["document"]["path"]).name for row in rows}
    for folder in workspace.home.datasets.iterdir():
        # One under a bare id and without a row is a dataset that prepare_dataset is about to store.
        is_ours = FOLDER.fullmatch(folder.name) or folder.name in ids
        if is_ours and folder.name not in current:
            shutil.rmtree(folder, ignore_errors=True)


def _existing(workspace: Workspace, dataset: str, source: str) -> Row | None:
    if not dataset.strip():
        raise InvalidInput(
            "no_dataset", "The dataset has neither id nor name.", allowed="An id, or a name for a new dataset."
        )
    if dataset.startswith(f"{PREFIX['dataset']}-"):
        return artifacts.find(workspace, dataset, "dataset")
    named = [row for row in workspace.store.artifacts("dataset", limit=-1) if row["name"] == dataset.strip()]
    return next((row for row in named if row["document"]["source"] == source), None)


def _refuse_in_use(workspace: Workspace, row: Row) -> None:
    active = workspace.store.rows("SELECT * FROM jobs WHERE state IN ('queued','running','interrupted')")
    # Sources stand in lists and objects, and may be prefixes of the id.
    using = [job["id"] for job in active if any(_names(value, row["id"]) for value in _strings(job["spec"]))]
    using += [child["id"] for child in workspace.store.children(row["id"])]
    if using:
        raise Conflict(
            "dataset_in_use",
            f"{row['id']} is used by {', '.join(using[:5])}, which name it by its present content.",
            allowed="Put the examples into a new dataset, and train on both: a source may be a list of dataset ids.",
            next=_into_new(row),
            done="Nothing was added.",
        )


def _names(value: str, dataset_id: str) -> bool:
    return value.startswith(f"{PREFIX['dataset']}-") and dataset_id.startswith(value)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        held = cast("list[object] | dict[str, object]", value)
        for entry in held.values() if isinstance(held, dict) else held:
            yield from _strings(entry)


def _into_new(row: Row) -> str:
    return call("add_examples", dataset=f"{row['name']}-2", examples=[{"prompt": "…", "response": "…"}])


def _refuse_large(row: Row) -> None:
    rows = row["document"]["train_rows"] + row["document"]["eval_rows"]
    if rows > MAX_ROWS:
        raise Conflict(
            "dataset_too_large",
            f"{row['id']} has {rows:,} rows; examples are added to at most {MAX_ROWS:,}.",
            allowed="Put the examples into a new dataset, then prepare one from both ids.",
            next=_into_new(row),
            done="Nothing was added.",
        )


def _load(row: Row | None) -> _Held:
    held = _Held()
    if row is not None:
        for split in (TRAIN, EVAL):
            for record in splits.read(split_file(Path(row["document"]["path"]), split)):
                held.add(record, split)
    return held


def _checked(workspace: Workspace, example: Mapping[str, Any], source_chunk: str | None, held: _Held) -> Record:
    """The example as a record. Raises Unusable."""
    fields = {key: value for key, value in example.items() if key != "source_chunk"}
    chunk = example.get("source_chunk") or source_chunk
    if not isinstance(chunk, str | None):
        raise Unusable("malformed", "source_chunk is no text")
    try:
        record = layouts.to_record(layouts.find([fields], "The example"), fields)
    except InvalidInput as error:
        raise Unusable("unknown_layout", error.what) from error
    if chunk is not None and chunk != source_chunk:
        try:
            reading.find_chunk(workspace, chunk)
        except NotFound as error:
            raise Unusable("unknown_chunk", error.what) from error
    record.source_chunk = chunk
    check(record)
    for text in cleaning.texts_of(record):
        if tokens := mending.control_tokens(text):
            raise Unusable("control_tokens", f"{tokens[0]!r} stands in a text: it belongs to the chat template")
        if names := placeholders.find(text):
            raise Unusable("placeholders", f"{{{{{sorted(names)[0]}}}}} would be learnt as it stands")
    if held.kind not in (None, record.kind):
        raise Unusable("another_kind", f"the example is {record.kind} data, the dataset holds {held.kind} data")
    if cleaning.fingerprint(record) in held.fingerprints:
        raise Unusable("duplicate", "the dataset has this example already")
    alike = held.index.find(record)
    if alike is not None:
        prompt = cleaning.shortened(held.rows[alike][1].prompt(), PROMPT_CHARACTERS)
        raise Unusable("near_duplicate", f"nearly the same as the example that asks: {prompt}")
    return record


def _write(workspace: Workspace, row: Row | None, name: str, held: _Held, source: str, added: int) -> Row:
    """Writes all rows into a new folder, then lets the store point there: the moment of the change."""
    dataset_id = row["id"] if row else free_id("dataset", name, workspace.home.datasets)
    before: Row = row["document"] if row else {"source": source, "dropped": {}, "mended": {}, "rows_read": 0}
    old = Path(before["path"]) if row else None
    final = workspace.home.datasets / f"{dataset_id}.r{before.get('version', 0) + 1}"
    files.require_space(workspace.home.datasets, 2 * files.size_bytes(old) if old else 0, "Adding the examples")
    with files.new_folder(final) as folder:
        for split in (TRAIN, EVAL):
            splits.write(split_file(folder, split), held.rows[0][1].kind, held.of(split))
        described, report = _report(workspace, before, held, added)
        document = describe.write(folder, name, dataset_id, described, report, **_manifest(old, source, added))
    document["path"] = str(final)
    try:
        if row is None:
            workspace.store.add_artifact(dataset_id, "dataset", name, document, parents=[])
        else:
            _switch(workspace, row, document)
    except BaseException:
        shutil.rmtree(final)
        raise
    if old:
        shutil.rmtree(old)
    return workspace.store.artifact(dataset_id)


def _switch(workspace: Workspace, row: Row, document: Row) -> None:
    """Raises Conflict where something began to use the dataset meanwhile, NotFound where it was deleted."""
    with workspace.store.transaction() as db:
        _refuse_in_use(workspace, row)
        changed = db.execute("UPDATE artifacts SET document=? WHERE id=?", (json.dumps(document), row["id"]))
        if not changed.rowcount:
            raise NotFound(
                "artifact_not_found",
                f"{row['id']} was deleted meanwhile.",
                next=call("list_artifacts", kind="dataset"),
                done="Nothing was added.",
            )


def _report(workspace: Workspace, before: Row, held: _Held, added: int) -> tuple[Row, Row]:
    """What the dataset is, and its report: what was said of the rows before stays, but for what all rows decide."""
    everything = [record for _, record in held.rows]
    sample = [everything[number] for number in statistics.sample(len(everything))]
    longest = max(everything, key=lambda record: sum(map(len, cleaning.texts_of(record))))
    # Topics and leaks are not looked for at every call.
    report: Row = {key: value for key, value in before.items() if key not in ("path", "sha256", "topics", "leakage")}
    described = {"source": report.pop("source"), "kind": everything[0].kind, "format": report.pop("format", "written")}
    report |= {
        "rows_read": report["rows_read"] + added,
        "train_rows": len(held.of(TRAIN)),
        "eval_rows": len(held.of(EVAL)),
        "warnings": report.get("warnings", []),
        "version": report.get("version", 0) + 1,
        **describe.summary(workspace, sample, len(everything), longest),
    }
    return described, report | {"advice": advice.of(report | {"kind": described["kind"]})}


def _manifest(old: Path | None, source: str, added: int) -> Row:
    """What the manifest says beside the hashes: where the rows before came from, and every addition."""
    held: Row = files.read_json(old / "manifest.json") if old else {"files": [], "arguments": {}}
    additions = [*held.get("added", []), {"by": source, "rows": added}]
    return {"files": held["files"], "arguments": held["arguments"], "added": additions}

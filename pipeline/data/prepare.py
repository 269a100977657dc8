"""From any source to a dataset: read, recognise, clean, choose, split, describe.

Guarantees: the same files and arguments give the same Parquet bytes, whatever the number of cores; a failure or a kill
leaves no dataset, at worst a hidden partial folder that a later start removes; everything that was dropped, mended or
replaced is counted. Fetches nothing but remote sources and, with `model`, its tokenizer.
"""

import errno
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tunewright.pipeline import files, models
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.data import cleaning, describe, near, overlap, request, selection, splits, staging, terms
from tunewright.pipeline.data.arguments import DatasetArguments
from tunewright.pipeline.data.describe import Chosen
from tunewright.pipeline.data.processing import Recipe
from tunewright.pipeline.data.sources import Source, SourceArgument, as_given, resolve
from tunewright.pipeline.data.splits import EVAL, TRAIN, split_file
from tunewright.pipeline.data.staging import Staged
from tunewright.pipeline.errors import InvalidInput, NoSpace, NotFound, call
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np

    Array: TypeAlias = np.ndarray[Any, Any]

# The staging file is about as large as the source, the Parquet files smaller, signatures half a kilobyte a row.
SPACE_FACTOR = 3
# Pairs that share most of their words are looked at by so many: two rows each are in memory.
COMPARED_ROWS = 5000

OnProgress = Callable[[float, float, str], None]


def run(context: JobContext) -> dict[str, Any]:
    """The stage of a `prepare_dataset` job; returns the dataset's id. A job run twice makes one dataset."""
    spec = context.spec
    try:
        made = context.workspace.store.artifact(spec["dataset_id"], "dataset")
    except NotFound:

        def report(done: float, total: float, message: str) -> None:
            context.check_cancelled()
            context.progress(message, done, total)

        arguments = DatasetArguments(**spec["arguments"])
        made = _make(context.workspace, spec["source"], spec["name"], spec["dataset_id"], arguments, report)
    document = made["document"]
    counted = {name: {reason: e["count"] for reason, e in document[name].items()} for name in ("dropped", "mended")}
    shown = ("kind", "format", "rows_read", "train_rows", "eval_rows", "warnings", "advice")
    return {"dataset_id": made["id"], **{key: document[key] for key in shown}, **counted}


def prepare(
    workspace: Workspace,
    source: SourceArgument,
    *,
    name: str | None = None,
    on_progress: OnProgress | None = None,
    **arguments: Any,
) -> Row:
    """Makes a dataset of what `source` names (see `sources.resolve`); returns its row in the store.

    `arguments` are those of DatasetArguments. `on_progress(done, total, message)` is called with growing `done`; what
    it raises stops the work, nothing is left.

    Raises InvalidInput, NotFound, Unavailable, NoSpace. Writes `datasets/ID/` and one row, or nothing.
    """
    chosen = DatasetArguments(**arguments)
    spec = request.check(workspace, source, name, chosen)
    return _make(workspace, source, spec["name"], spec["dataset_id"], chosen, on_progress or _unheard)


def _make(
    workspace: Workspace,
    source: SourceArgument,
    title: str,
    dataset_id: str,
    arguments: DatasetArguments,
    report_progress: OnProgress,
) -> Row:
    sources = resolve(source, arguments.split, workspace)
    recipe = _recipe(workspace, arguments)
    size = sum(path.stat().st_size for entry in sources for path in entry.files)
    files.require_space(workspace.home.datasets, SPACE_FACTOR * size, "Preparing the dataset")
    final = workspace.home.datasets / dataset_id
    # A job that was killed between the folder and its row begins again under the same id.
    for left in (final, *final.parent.glob(f"{files.PARTIAL}*-{final.name}")):
        shutil.rmtree(left, ignore_errors=True)
    with _disk_full_named(final), files.new_folder(final) as folder:
        staged = staging.stage(
            workspace, sources, arguments, recipe, folder,
            lambda done: report_progress(0.7 * done, size, "Reading and cleaning rows"),
        )  # fmt: skip
        report_progress(0.7 * size, size, "Looking for duplicates")
        chosen = _choose(staged, sources, arguments)
        report_progress(0.8 * size, size, "Writing the splits")
        for split, rows in ((TRAIN, chosen.train), (EVAL, chosen.held_out)):
            splits.write_split(staged.rows, split_file(folder, split), staged.kind, rows)
        report_progress(0.9 * size, size, "Describing the rows")
        report = describe.report(workspace, staged, chosen, sources, arguments)
        staged.rows.unlink()
        staged.signatures.unlink()
        described: Row = {
            "source": as_given(sources),
            "kind": staged.kind,
            "format": ", ".join(sorted({file["format"] for file in staged.files})),
        }
        document = describe.write(
            folder, title, dataset_id, described, report, files=staged.files, arguments=arguments.model_dump()
        )
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


def _recipe(workspace: Workspace, arguments: DatasetArguments) -> Recipe:
    actions = request.actions(arguments)
    return Recipe(
        actions=actions,
        system_prompt=arguments.system_prompt,
        substitutions={name.strip("{} "): text for name, text in (arguments.substitutions or {}).items()},
        terms=terms.load(request.pack_path(workspace, arguments.domain)) if arguments.domain else None,
        benchmark=overlap.load(request.benchmark_path(workspace, arguments.benchmark_dir))
        if arguments.benchmark_dir
        else None,
        signatures=arguments.dedupe and actions["near_duplicate"] != "ignore",
        model_folder=models.tokenizer_folder(workspace, arguments.model) if arguments.model else None,
        max_seq_length=arguments.max_seq_length,
    )


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


def _choose(staged: Staged, sources: list[Source], arguments: DatasetArguments) -> Chosen:
    """The staged rows that make the dataset; notes those left out. Raises InvalidInput without rows."""
    import numpy as np

    kept = np.ones(len(staged), bool)
    near_of = np.full(len(staged), -1, np.int64)
    if arguments.dedupe:
        repeated = selection.repeats(staged.fingerprints)
        kept &= repeated < 0
        _note_repeats(staged, "duplicate", repeated)
        action = cleaning.actions(arguments.cleaning)["near_duplicate"]
        if action != "ignore":
            near_of = _copies(staged, near.find(staged.signatures, kept))
        if action == "drop":
            kept &= near_of < 0
            _note_repeats(staged, "near_duplicate", near_of)
    kept = _shared(staged, kept, sources, arguments)
    alike = kept & (near_of >= 0) & kept[near_of]
    alike[near_of[alike]] = True
    held_out = selection.held_out(kept, staged.prompts, alike, arguments.eval_fraction, arguments.seed)
    return Chosen(kept & ~held_out, held_out, near_of)


def _copies(staged: Staged, near_of: "Array") -> "Array":
    """The pairs of `near_of` that are copies of each other in truth; of the others -1."""
    import numpy as np

    rows = np.flatnonzero(near_of >= 0)
    for begin in range(0, len(rows), COMPARED_ROWS):
        part = rows[begin : begin + COMPARED_ROWS]
        needed = np.unique(np.concatenate((part, near_of[part])))
        records = dict(zip(needed.tolist(), splits.staged_rows(staged.rows, needed), strict=True))
        for row in part.tolist():
            if not near.is_copy(records[int(near_of[row])], records[row]):
                near_of[row] = -1
    return near_of


def _note_repeats(staged: Staged, reason: str, earlier: "Array") -> None:
    import numpy as np

    rows = np.flatnonzero(earlier >= 0)
    shown = [int(row) for row in rows[: cleaning.MAX_EXAMPLES]]
    for row, record in zip(shown, splits.staged_rows(staged.rows, shown), strict=True):
        file, number = staged.place(row)
        first_file, first_number = staged.place(int(earlier[row]))
        where = f"row {first_number}" if first_file == file else f"row {first_number} of {first_file}"
        says = "the same" if reason == "duplicate" else "nearly the same"
        staged.drops.add(reason, file, number, f"{where} says {says}", record)
    staged.drops.counts[reason] += len(rows) - len(shown)


def _shared(staged: Staged, kept: "Array", sources: list[Source], arguments: DatasetArguments) -> "Array":
    """The kept rows after weights and max_rows. Raises InvalidInput where a source has none."""
    import numpy as np

    weights = [source.weight for source in sources if source.weight is not None]
    origin_of_file = np.array([file["source"] for file in staged.files], np.int64)
    origins = origin_of_file[staged.file_of] if len(staged) else np.empty(0, np.int64)
    held = set(origins[kept].tolist())
    barren = [source.given for number, source in enumerate(sources) if weights and number not in held]
    if not held or barren:
        where = f" in {barren[0]}" if barren else ""
        raise InvalidInput(
            "dataset_empty",
            f"No usable row is left{where} of {staged.rows_read} read: {staged.drops}.",
            allowed="A row needs a prompt and an answer; roles go user, assistant in turn and end with the assistant.",
            next=call("prepare_dataset", source=sources[0].given, mapping={"prompt": "…", "response": "…"}),
        )
    if weights:
        chosen, over_maximum = selection.shares(origins, kept, weights, arguments.max_rows, arguments.seed)
        staged.drops.counts["max_rows"] += over_maximum
        staged.drops.counts["weight"] += int(kept.sum() - chosen.sum()) - over_maximum
        return chosen
    if arguments.max_rows is None:
        return kept
    chosen = selection.first_rows(kept, arguments.max_rows)
    staged.drops.counts["max_rows"] += int(kept.sum() - chosen.sum())
    return chosen

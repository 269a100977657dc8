"""From a request to the exact specification of a dataset: what can be refused before a job starts is. Light."""

from pathlib import Path

from tunewright.pipeline import access, domains, models
from tunewright.pipeline.access import GLOB_CHARACTERS
from tunewright.pipeline.data import cleaning, layouts, overlap, terms
from tunewright.pipeline.data.arguments import DatasetArguments
from tunewright.pipeline.data.cleaning import Action, Finding
from tunewright.pipeline.data.sources import SourceArgument, as_given, resolve
from tunewright.pipeline.errors import InvalidInput, call
from tunewright.pipeline.ids import free_id
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace


def check(workspace: Workspace, source: SourceArgument, name: str | None, arguments: DatasetArguments) -> Row:
    """The spec of a `prepare_dataset` job. Raises InvalidInput, NotFound, Unavailable; starts nothing.

    Opens no data file: what is wrong inside one is found by the job.
    """
    if arguments.mapping is not None:
        layouts.check_mapping(arguments.mapping, arguments.format)
    sources = resolve(source, arguments.split, workspace)
    actions(arguments)
    if arguments.domain:
        terms.load(pack_path(workspace, arguments.domain))
    if arguments.benchmark_dir:
        overlap.load(benchmark_path(workspace, arguments.benchmark_dir))
    if arguments.model:
        models.tokenizer_folder(workspace, arguments.model)
    title = name or _stem(sources[0].given)
    return {
        "dataset_id": free_id("dataset", title, workspace.home.datasets),
        "name": title,
        "source": as_given(sources),
        "arguments": arguments.model_dump(),
    }


def actions(arguments: DatasetArguments) -> dict[Finding, Action]:
    """What to do about every finding. Raises InvalidInput."""
    taken = cleaning.actions(arguments.cleaning)
    measured = taken["too_long"] != "keep"
    if measured != (arguments.max_seq_length is not None) or (measured and arguments.model is None):
        raise InvalidInput(
            "too_long_incomplete",
            f"cleaning={{'too_long': {taken['too_long']!r}}}, max_seq_length={arguments.max_seq_length}, "
            f"model={arguments.model!r}: rows are measured with all three.",
            allowed="Leave all out (training cuts what is longer, and says so), or give all, with too_long drop, "
            "truncate or split.",
            next=call(
                "prepare_dataset", source="…", cleaning={"too_long": "split"}, max_seq_length=2048,
                model=arguments.model or "toy",
            ),
        )  # fmt: skip
    return taken


def pack_path(workspace: Workspace, given: str) -> Path:
    """The file of a domain pack: a built-in one's, by its name, or a path's that may be read. Raises InvalidInput."""
    return domains.path_of(given) if given in domains.available() else access.readable(workspace, Path(given))


def benchmark_path(workspace: Workspace, given: str) -> Path:
    """The folder of a benchmark of which everything may be read. Raises InvalidInput."""
    return access.readable_folder(workspace, Path(given))


def _stem(given: str) -> str:
    """What a dataset is called after its source: the file's or folder's name, of a glob the part before the stars."""
    words = [part for part in Path(given).expanduser().absolute().parts if not set(part) & set(GLOB_CHARACTERS)]
    return words[-1].partition(".")[0] or "dataset"

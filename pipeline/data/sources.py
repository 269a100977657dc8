"""What a dataset's `source` names: files, folders, LLaMA-Factory's entries, datasets of hubs and of our own store.

Guarantees that every file it returns existed, is a regular file, has a suffix that `reading` knows, and may be read
(see `access`); of what may not be read nothing is said. Opens none of them but a folder's `dataset_info.json`; asks no
network: whether a remote dataset exists is found out by reading it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TypeAlias

from tunewright.pipeline import access
from tunewright.pipeline.access import GLOB_CHARACTERS
from tunewright.pipeline.data import folders, hub, llamafactory
from tunewright.pipeline.data.hub import RemoteDataset
from tunewright.pipeline.data.llamafactory import Entry, LayoutHint
from tunewright.pipeline.data.opening import not_a_file, suffix_of
from tunewright.pipeline.data.reading import SUFFIXES
from tunewright.pipeline.data.splits import EVAL, TRAIN, split_file
from tunewright.pipeline.errors import InvalidInput, NotFound, TunewrightError, call, nearest
from tunewright.pipeline.ids import PREFIX
from tunewright.pipeline.workspace import Workspace

WHAT_WORKS = (
    f"A source is a file ({folders.KNOWN}), a folder of such files, a glob, a Hub dataset (owner/name), "
    "modelscope:owner/name, a dataset id (ds-…), or a list of these."
)
KEYS = ("source", "weight", "config")
# LLaMA-Factory's own, with all its datasets, is forty kilobytes.
MAX_INFO_BYTES = 10_000_000
FORM = '{"source": "file.jsonl", "weight": 1.0}, with "config" for a Hub dataset that has several'

Weighted: TypeAlias = Mapping[str, str | Path | float | None]
SourceArgument: TypeAlias = str | Path | Sequence[str | Path | Weighted]


@dataclass(frozen=True)
class Source:
    """One entry of `source`: its files in reading order, or the remote dataset it is; its weight where one was given.

    `hints` says of a file what `dataset_info.json` knows of its layout; `dataset_id` is that of an own dataset;
    `notes` say what of the source was left out.
    """

    given: str
    files: list[Path]
    weight: float | None = None
    remote: RemoteDataset | None = None
    hints: dict[Path, LayoutHint] = field(default_factory=dict[Path, LayoutHint])
    dataset_id: str | None = None
    notes: list[str] = field(default_factory=list[str])


def resolve(source: SourceArgument, split: str, workspace: Workspace | None = None) -> list[Source]:
    """The entries of `source`, each with its files. Of a folder, files named for `split` win over the others.

    `workspace` is needed for ids of own datasets, and for files in the data home. Either every entry has a weight or
    none has. Raises InvalidInput, NotFound.
    """
    if isinstance(source, (str, Path)):
        return [_named(str(source), split, workspace)]
    if not source:
        raise InvalidInput("no_source", "The list of sources is empty.", allowed=WHAT_WORKS)
    sources = [_entry(entry, split, workspace) for entry in source]
    unweighted = [entry.given for entry in sources if entry.weight is None]
    if 0 < len(unweighted) < len(sources):
        raise InvalidInput(
            "weight_missing",
            f"{unweighted[0]!r} has no weight while other sources have one.",
            allowed="Give every source of the list a weight, or none.",
            next=call("prepare_dataset", source=[_as_given(replace(s, weight=s.weight or 1.0)) for s in sources]),
        )
    return sources


def as_given(sources: Sequence[Source]) -> str | list[str | dict[str, str | float]]:
    """The `source` argument again, as JSON, with whole paths: it names the same from any folder."""
    entries = [_as_given(source) for source in sources]
    if len(entries) == 1 and isinstance(entries[0], str):
        return entries[0]
    return entries


def _as_given(source: Source) -> str | dict[str, str | float]:
    # One that a dataset_info.json leads to is named by the path that led there.
    is_local = (source.remote is None or source.remote.hint is not None) and source.dataset_id is None
    given = str(Path(source.given).expanduser().absolute()) if is_local else source.given
    entry: dict[str, str | float] = {"source": given}
    if source.weight is not None:
        entry["weight"] = source.weight
    if source.remote is not None and source.remote.config is not None and source.remote.hint is None:
        entry["config"] = source.remote.config
    return entry if len(entry) > 1 else given


def _entry(entry: str | Path | Weighted, split: str, workspace: Workspace | None) -> Source:
    if isinstance(entry, (str, Path)):
        return _named(str(entry), split, workspace)
    given, weight, config = (entry.get(key) for key in KEYS)
    if not isinstance(given, (str, Path)) or set(entry) - set(KEYS) or not isinstance(config, (str, type(None))):
        raise InvalidInput("invalid_source", f"{dict(entry)!r:.200} is no source.", allowed=f"Form: {FORM}.")
    source = _named(str(given), split, workspace)
    if config is not None:
        if source.remote is None:
            raise InvalidInput(
                "invalid_source",
                f"{given!s:.200} has no configuration {config!r}: it is no dataset of a hub.",
                allowed="Leave config out, or name the folder or glob of the files wanted.",
                next=call("prepare_dataset", source=str(given)),
            )
        source = replace(source, remote=replace(source.remote, config=config))
    if weight is None:
        return source
    if not isinstance(weight, (int, float)) or not (math.isfinite(weight) and weight > 0):
        raise InvalidInput(
            "invalid_weight",
            f"The weight of {str(given)!r} is {weight!r}.",
            allowed="A weight is a number above 0; only the ratios between the weights count.",
        )
    return replace(source, weight=float(weight))


def _named(given: str, split: str, workspace: Workspace | None) -> Source:
    """The source that one text names; of several possible meanings the local one wins."""
    if not given.strip():
        raise InvalidInput("no_source", "The source is an empty text.", allowed=WHAT_WORKS)
    remote = hub.named(given, split)
    if remote is not None:
        return Source(given, [], remote=remote)
    path = _path(given)
    is_id = hub.ID.fullmatch(given) is not None and not folders.is_data(path)
    is_here = all(access.is_readable(workspace, part) for part in access.looked_at(path))
    # A name that may be another thing is not refused for lying where nothing may be read.
    source = _local(given, path, split, workspace) if is_here else None
    if source is not None:
        for file in source.files:
            access.readable(workspace, file)
        return source
    if workspace is not None and given.startswith(f"{PREFIX['dataset']}-") and path.name == given:
        return _own(given, workspace)
    if is_id and not (is_here and path.parent.exists()):
        return Source(given, [], remote=RemoteDataset("huggingface", given, split=split))
    for part in access.looked_at(path):
        access.readable(workspace, part)
    raise _missing(given, path)


def _local(given: str, path: Path, split: str, workspace: Workspace | None) -> Source | None:
    """What lies at the path, matches it, or is listed beside it; None where nothing does."""
    if path.is_dir():
        return _of_folder(given, path, split, workspace)
    if path.is_file():
        return Source(given, [_with_known_suffix(path)])
    if path.exists():
        raise not_a_file(path)
    if given.startswith(f"{PREFIX['dataset']}-") and path.name == given:
        return None
    if set(given) & set(GLOB_CHARACTERS):
        return _of_glob(given, path)
    listed = _listed_in(path.parent, workspace)
    return _of_listed(given, path, listed, split) if listed else None


def _listed_in(folder: Path, workspace: Workspace | None) -> dict[str, Entry]:
    """What the folder's `dataset_info.json` lists, if that may be read and is no larger than such a file is."""
    info = folder / llamafactory.INFO_FILE
    try:
        is_one = info.is_file() and access.is_readable(workspace, info) and info.stat().st_size <= MAX_INFO_BYTES
    except PermissionError:  # whoever lists the folder says so
        return {}
    return llamafactory.entries(folder) if is_one else {}


def _path(given: str) -> Path:
    try:
        path = Path(given).expanduser().absolute()
        path.exists()
    except PermissionError as error:
        raise InvalidInput(
            "unreadable_file",
            f"{given[:200]} cannot be looked at: {error.strerror}.",
            allowed="Make its folder readable for the user that runs this server, or give a copy.",
            next=call("prepare_dataset", source=f"…/{Path(given).name}"),
        ) from error
    except (OSError, RuntimeError, ValueError) as error:  # longer than any path, ~ of an unknown user, a zero byte
        raise InvalidInput(
            "invalid_source", f"{given[:80]!r} is no path: {error!s:.80}.", allowed=WHAT_WORKS
        ) from error
    return path


def _own(given: str, workspace: Workspace) -> Source:
    """All rows of a dataset of our own, those held out included."""
    dataset = workspace.store.artifact(given, "dataset")
    counts = {TRAIN: dataset["document"]["train_rows"], EVAL: dataset["document"]["eval_rows"]}
    folder = Path(dataset["document"]["path"])
    files = [split_file(folder, split) for split, count in counts.items() if count]
    gone = [path for path in files if not path.is_file()]
    if gone:
        raise NotFound(
            "dataset_gone",
            f"The files of {dataset['id']} are no longer there: {gone[0]}.",
            allowed="Its folder was removed outside of this tool.",
            next=call("list_artifacts", kind="dataset"),
        )
    return Source(given, files, dataset_id=dataset["id"])


def _of_folder(given: str, folder: Path, split: str, workspace: Workspace | None) -> Source:
    """The datasets that its `dataset_info.json` lists, as far as they lie there; without one, its data files."""
    notes: list[str] = []
    entries = list(_listed_in(folder, workspace).values())
    allowed = [entry for entry in entries if entry.path and access.is_readable(workspace, entry.path)]
    listed = [entry for entry in allowed if entry.is_here]
    outside = [entry.name for entry in entries if entry.path and entry not in allowed]
    if outside:
        notes.append(f"{folder.name}/{llamafactory.INFO_FILE} names files outside of what may be read: {outside[0]}.")
    if not listed:
        return Source(given, folders.data_files(folder, split, notes), notes=notes)
    files: list[Path] = []
    hints: dict[Path, LayoutHint] = {}
    for entry in listed:
        for path in _files_of(entry, split, notes):
            if path in hints:
                notes.append(f"{entry.name} names {path.name} once more; it was read once.")
                continue
            files.append(path)
            hints[path] = entry.hint
    names = ", ".join(entry.name for entry in listed)
    notes.append(f"{folder.name}/{llamafactory.INFO_FILE} names what was read: {names}.")
    return Source(given, files, hints=hints, notes=notes)


def _of_listed(given: str, path: Path, listed: dict[str, Entry], split: str) -> Source:
    """The dataset that the parent folder's `dataset_info.json` has under this name, here or at its hub."""
    entry = listed.get(path.name)
    if entry is None:
        names = [*listed, *folders.names(path.parent)]
        raise NotFound(
            "source_not_found",
            f"There is no {path}, and {llamafactory.INFO_FILE} beside it lists no {path.name!r}.",
            allowed=nearest(path.name, names),
            next=call("prepare_dataset", source=str(path.parent)),
        )
    notes: list[str] = []
    if entry.is_here:
        files = _files_of(entry, split, notes)
        return Source(given, files, hints=dict.fromkeys(files, entry.hint), notes=notes)
    if entry.hub is None:
        raise NotFound(
            "source_not_found",
            f"{llamafactory.INFO_FILE} lists {entry.name!r} as {entry.path or 'a script or cloud file'}, which is not "
            "there.",
            allowed="Put its file there, or give another entry whose file is there.",
            next=call("prepare_dataset", source=str(path.parent)),
        )
    remote = RemoteDataset(
        "modelscope" if entry.hub == "modelscope" else "huggingface",
        entry.id, entry.config, entry.split or split, entry.folder, entry.hint,
    )  # fmt: skip
    _note_samples(entry, notes)
    return Source(given, [], remote=remote, notes=notes)


def _files_of(entry: Entry, split: str, notes: list[str]) -> list[Path]:
    if entry.path is None:
        return []
    _note_samples(entry, notes)
    if entry.path.is_dir():
        return folders.data_files(entry.path, split, notes)
    if not entry.path.is_file():
        raise not_a_file(entry.path)
    return [_with_known_suffix(entry.path)]


def _note_samples(entry: Entry, notes: list[str]) -> None:
    if entry.num_samples is not None:
        notes.append(f"{entry.name}: num_samples {entry.num_samples} was not applied; max_rows limits the rows.")


def _of_glob(pattern: str, path: Path) -> Source:
    try:
        matches = list(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    except (ValueError, OSError) as error:
        raise InvalidInput(
            "invalid_source", f"The glob {pattern[:80]!r} is broken: {error!s:.80}.", allowed=WHAT_WORKS
        ) from error
    notes: list[str] = []
    found = folders.without_readme((match for match in matches if folders.is_data(match) and match.is_file()), notes)
    if found:
        return Source(pattern, sorted(found), notes=notes)
    others = f" ({len(matches)} other entries match)" if matches else ""
    raise NotFound(
        "glob_without_match",
        f"The glob {pattern[:80]!r} matches no data file{others}; it was looked up from {Path.cwd()}.",
        allowed=WHAT_WORKS,
    )


def _with_known_suffix(path: Path) -> Path:
    if suffix_of(path) not in SUFFIXES:
        raise InvalidInput(
            "unsupported_file",
            f"{path} is a {path.suffix or 'file without a suffix'}.",
            allowed=f"Convert it to one of {folders.KNOWN} first.",
            next=call("prepare_dataset", source=str(path.with_suffix(".jsonl"))),
        )
    return path


def _missing(given: str, path: Path) -> TunewrightError:
    at_hub = f" For a dataset of the Hub: {hub.HUB_PREFIX}{given}." if hub.ID.fullmatch(given) else ""
    if not path.parent.is_dir():
        existing = next(parent for parent in path.parents if parent.is_dir())
        return NotFound(
            "source_not_found",
            f"There is no {path}: its folder does not exist, {existing} does.",
            allowed=WHAT_WORKS + at_hub,
        )
    there = folders.names(path.parent)
    close = get_close_matches(path.name, there, n=1, cutoff=0.4)
    return NotFound(
        "source_not_found",
        f"There is no {path}.",
        allowed=(f"In its folder: {nearest(path.name, there)}" if there else "Its folder holds no data.")
        + f"{at_hub} {WHAT_WORKS}",
        next=call("prepare_dataset", source=str(path.parent / close[0])) if close else "",
    )

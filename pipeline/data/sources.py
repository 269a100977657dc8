"""Which files a dataset's `source` names.

Guarantees that every file it returns existed and has a suffix that `reading` knows. Opens none of them.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tunewright.pipeline.errors import InvalidInput, NotFound, TunewrightError, Unavailable, call, nearest

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")
WHAT_WORKS = f"A source is a file ({', '.join(SUFFIXES)}), a folder of such files, a glob, or a list of these."
GLOB_CHARACTERS = "*?["
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

Weighted: TypeAlias = Mapping[str, str | Path | float]
SourceArgument: TypeAlias = str | Path | Sequence[str | Path | Weighted]


@dataclass(frozen=True)
class Source:
    """One entry of `source`: its files in reading order, and its weight where one was given."""

    given: str
    files: list[Path]
    weight: float | None = None


def resolve(source: SourceArgument, split: str) -> list[Source]:
    """The entries of `source`, each with its files. Of a folder, files named for `split` win over the others.

    Either every entry has a weight or none has. Raises InvalidInput, NotFound, Unavailable.
    """
    if isinstance(source, (str, Path)):
        return [Source(str(source), _files(str(source), split))]
    if not source:
        raise InvalidInput("no_source", "The list of sources is empty.", allowed=WHAT_WORKS)
    sources = [_entry(entry, split) for entry in source]
    unweighted = [entry.given for entry in sources if entry.weight is None]
    if 0 < len(unweighted) < len(sources):
        raise InvalidInput(
            "weight_missing",
            f"{unweighted[0]!r} has no weight while other sources have one.",
            allowed="Give every source of the list a weight, or none.",
            next=call("prepare_dataset", source=[{"source": s.given, "weight": s.weight or 1.0} for s in sources]),
        )
    return sources


def as_given(sources: Sequence[Source]) -> str | list[str | dict[str, str | float]]:
    """The `source` argument again, as JSON."""
    if len(sources) == 1:
        return sources[0].given
    return [s.given if s.weight is None else {"source": s.given, "weight": s.weight} for s in sources]


def _entry(entry: str | Path | Weighted, split: str) -> Source:
    if isinstance(entry, (str, Path)):
        return Source(str(entry), _files(str(entry), split))
    path, weight = entry.get("source"), entry.get("weight")
    if not isinstance(path, (str, Path)) or set(entry) - {"source", "weight"}:
        raise InvalidInput(
            "invalid_source", f"{dict(entry)!r} is no source.", allowed='Form: {"source": "file.jsonl", "weight": 1.0}.'
        )
    if weight is None:
        return Source(str(path), _files(str(path), split))
    if not isinstance(weight, (int, float)) or not (math.isfinite(weight) and weight > 0):
        raise InvalidInput(
            "invalid_weight",
            f"The weight of {str(path)!r} is {weight!r}.",
            allowed="A weight is a number above 0; only the ratios between the weights count.",
        )
    return Source(str(path), _files(str(path), split), float(weight))


def _files(given: str, split: str) -> list[Path]:
    if not given.strip():
        raise InvalidInput("no_source", "The source is an empty text.", allowed=WHAT_WORKS)
    try:
        path = Path(given).expanduser().absolute()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError) as error:  # longer than any path, or ~ of an unknown user
        raise InvalidInput(
            "invalid_source", f"{given[:80]!r} is no path: {error!s:.80}.", allowed=WHAT_WORKS
        ) from error
    if is_folder:
        return _of_folder(path, split)
    if is_file:
        return [_with_known_suffix(path)]
    if set(given) & set(GLOB_CHARACTERS):
        return _of_glob(given, path)
    raise _missing(given, path)


def _known(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _of_folder(folder: Path, split: str) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if _known(path))
    if not found:
        raise InvalidInput(
            "no_data_files",
            f"The folder {folder} holds no data file.",
            allowed=f"Looked for {', '.join(SUFFIXES)} directly in it; a glob reaches deeper.",
            next=call("prepare_dataset", source=f"{folder}/**/*.jsonl"),
        )
    return [path for path in found if path.name.lower().startswith(split.lower())] or found


def _of_glob(pattern: str, path: Path) -> list[Path]:
    try:
        matches = list(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    except ValueError as error:
        raise InvalidInput(
            "invalid_source", f"The glob {pattern[:80]!r} is broken: {error}.", allowed=WHAT_WORKS
        ) from error
    found = sorted(path for path in matches if _known(path))
    if found:
        return found
    others = f" ({len(matches)} other entries match)" if matches else ""
    raise NotFound(
        "glob_without_match",
        f"The glob {pattern[:80]!r} matches no data file{others}; it was looked up from {Path.cwd()}.",
        allowed=WHAT_WORKS,
    )


def _with_known_suffix(path: Path) -> Path:
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidInput(
            "unsupported_file",
            f"{path} is a {path.suffix or 'file without a suffix'}.",
            allowed=f"Convert it to one of {', '.join(SUFFIXES)} first.",
            next=call("prepare_dataset", source=str(path.with_suffix(".jsonl"))),
        )
    return path


def _missing(given: str, path: Path) -> TunewrightError:
    if HUB_ID.fullmatch(given) and path.suffix.lower() not in SUFFIXES and not path.parent.exists():
        return Unavailable(
            "hub_dataset_unsupported",
            f"{given!r} is no local path; datasets of the Hub cannot be fetched by this tool yet.",
            allowed=f"Download the dataset's file ({', '.join(SUFFIXES)}) and give its path.",
            next=call("prepare_dataset", source=f"{given.split('/')[1]}.jsonl"),
        )
    if not path.parent.is_dir():
        existing = next(parent for parent in path.parents if parent.is_dir())
        return NotFound(
            "source_not_found",
            f"There is no {path}: its folder does not exist, {existing} does.",
            allowed=WHAT_WORKS,
        )
    names = [entry.name for entry in sorted(path.parent.iterdir()) if entry.is_dir() or _known(entry)]
    return NotFound(
        "source_not_found", f"There is no {path}.", allowed=f"In its folder: {nearest(path.name, names)} {WHAT_WORKS}"
    )

"""Which files of a folder are data.

Looks at names only. Hidden files and folders, and the notes that `datasets` writes beside its own files, never count;
texts beside structured files do not either, and a README or LICENSE only where there is nothing else at all.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tunewright.pipeline.data.opening import COMPRESSED_SUFFIXES, suffix_of
from tunewright.pipeline.data.reading import SUFFIXES, TEXT
from tunewright.pipeline.errors import InvalidInput, call

# What `Dataset.save_to_disk` and older Hub repositories keep beside the data.
METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
ABOUT = re.compile(r"(readme|licen[sc]e|notice|changelog|contributing|citation)(?![a-z])", re.IGNORECASE)
# Entries that are looked at below one folder: a dataset has thousands of files, a home directory millions.
MAX_ENTRIES = 100_000
KNOWN = f"{', '.join(SUFFIXES)}, each also with {' or '.join(COMPRESSED_SUFFIXES)}"


def is_data(path: Path) -> bool:
    """Whether it is a file that can be read, by its name."""
    return suffix_of(path) in SUFFIXES and path.name not in METADATA and not path.name.startswith(".")


def data_files(folder: Path, split: str, notes: list[str]) -> list[Path]:
    """The data files of `folder`, sorted: those directly in it or else deeper ones; those of `split` or else all.

    What was left out or fetched from deeper is appended to `notes`. Raises InvalidInput: `no_data_files`,
    `unreadable_file`, `folder_too_large`.
    """
    try:
        found = [path for path in folder.iterdir() if is_data(path) and path.is_file()]
    except OSError as error:
        raise InvalidInput(
            "unreadable_file",
            f"The folder {folder} cannot be listed: {error.strerror}.",
            allowed="Make it readable for the user that runs this server, or give a copy.",
            next=call("prepare_dataset", source=f"…/{folder.name}"),
        ) from error
    if all(map(_is_about, found)) and (deeper := list(_deeper(folder))):
        found = deeper
        notes.append(f"{folder.name} holds no data file itself: {len(found)} of deeper folders were found.")
    if not found:
        raise InvalidInput(
            "no_data_files",
            f"The folder {folder} holds no data file, nor do the folders in it.",
            allowed=f"Looked for {KNOWN}.",
            next=call("prepare_dataset", source="…/data.jsonl"),
        )
    found = without_readme(found, notes)
    chosen = _of_split(folder, found, split)
    if len(chosen) < len(found):
        notes.append(f"Of {folder.name} the {len(chosen)} file(s) named for {split!r} were read.")
    return sorted(chosen)


def names(folder: Path) -> list[str]:
    """The folders and data files in it; none where it cannot be listed."""
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() or is_data(entry))
    except OSError:
        return []


def without_readme(files: Iterable[Path], notes: list[str]) -> list[Path]:
    """The files without texts, where there are others; of texts those that are not about the folder, likewise."""
    files = list(files)
    structured = [path for path in files if suffix_of(path) not in TEXT]
    chosen = structured or [path for path in files if not _is_about(path)] or files
    if len(chosen) < len(files):
        notes.append(f"{len(files) - len(chosen)} text file(s) beside the data were left out.")
    return chosen


def _is_about(path: Path) -> bool:
    return suffix_of(path) in TEXT and ABOUT.match(path.name) is not None


def _deeper(folder: Path) -> Iterator[Path]:
    looked_at = 0
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        looked_at += len(folders) + len(names)
        if looked_at > MAX_ENTRIES:
            raise InvalidInput(
                "folder_too_large",
                f"Below {folder} there are more than {MAX_ENTRIES:,} files and folders.",
                allowed="Name the folder in which the data lies, or a glob.",
                next=call("prepare_dataset", source=f"{folder}/…/*.jsonl"),
            )
        yield from (path for name in names if is_data(path := Path(here, name)) and path.is_file())


def _of_split(folder: Path, files: list[Path], split: str) -> list[Path]:
    """Files named for the split as on the Hub: `train.jsonl`, `data/train-00000-of-00002.parquet`, `train/0.arrow`."""
    word = re.compile(rf"(^|[-._ /0-9]){re.escape(split.lower())}([-._ /0-9]|$)")

    def is_of_split(path: Path) -> bool:
        name = path.relative_to(folder).as_posix().lower()
        return path.name.lower().startswith(split.lower()) or word.search(name) is not None

    return [path for path in files if is_of_split(path)] or files

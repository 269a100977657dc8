"""LLaMA-Factory's `dataset_info.json`: which files a folder's datasets are in, and how their rows are laid out.

Reads the fields of LLaMA-Factory's data README (data/README.md of its repository). `script_url` and `cloud_file_name`
entries are not read; files of the same name that `datasets` writes are told apart by their content.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from tunewright.pipeline.files import read_json

INFO_FILE = "dataset_info.json"
PLACES = ("file_name", "hf_hub_url", "ms_hub_url", "script_url", "cloud_file_name")


@dataclass(frozen=True)
class LayoutHint:
    """What an entry says about the rows of its file; empty where it says nothing.

    `format` is LLaMA-Factory's `formatting`: alpaca, sharegpt or openai. `columns` maps its words (prompt, query,
    response, history, messages, system, tools, chosen, rejected, kto_tag) to the file's; `tags` likewise (role_tag,
    content_tag, user_tag, assistant_tag, observation_tag, function_tag, system_tag). `ranking` marks pairs.
    """

    format: str | None = None
    columns: dict[str, str] = field(default_factory=dict[str, str])
    tags: dict[str, str] = field(default_factory=dict[str, str])
    ranking: bool = False


@dataclass(frozen=True)
class Entry:
    """One dataset. `path` is where its file or folder should lie; `hub` and `id` where it can be fetched."""

    name: str
    hint: LayoutHint
    path: Path | None = None
    hub: str | None = None
    id: str = ""
    config: str | None = None
    split: str | None = None
    folder: str | None = None
    num_samples: int | None = None

    @property
    def is_here(self) -> bool:
        try:
            return self.path is not None and self.path.exists()
        except OSError:  # longer than any path, or out of reach
            return False


def entries(folder: Path) -> dict[str, Entry]:
    """The datasets that the folder's `dataset_info.json` describes; none where it has no such file of LLaMA-Factory."""
    try:
        document = read_json(folder / INFO_FILE) if (folder / INFO_FILE).is_file() else None
    except (OSError, ValueError, RecursionError):  # whatever it is, the folder is read like any other
        return {}
    if not isinstance(document, dict):
        return {}
    described = cast("dict[str, Any]", document)
    return {
        name: _entry(folder, name, cast("dict[str, Any]", value))
        for name, value in described.items()
        if isinstance(value, dict) and any(isinstance(value.get(place), str) for place in PLACES)
    }


def _entry(folder: Path, name: str, value: Mapping[str, Any]) -> Entry:
    def text(key: str) -> str | None:
        found = value.get(key)
        return found if isinstance(found, str) and found else None

    hub = next((hub for key, hub in (("hf_hub_url", "huggingface"), ("ms_hub_url", "modelscope")) if text(key)), None)
    file_name, samples = text("file_name"), value.get("num_samples")
    return Entry(
        name,
        LayoutHint(
            text("formatting"), _texts(value.get("columns")), _texts(value.get("tags")), value.get("ranking") is True
        ),
        path=folder / file_name if file_name else None,
        hub=hub,
        id=text("hf_hub_url" if hub == "huggingface" else "ms_hub_url") or "",
        config=text("subset"),
        split=text("split"),
        folder=text("folder"),
        num_samples=samples if isinstance(samples, int) else None,
    )


def _texts(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {key: name for key, name in cast("dict[str, Any]", value).items() if isinstance(name, str)}

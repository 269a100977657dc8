"""What stands behind an artifact that is to be published: its adapter, its dataset, and the folders with its tokenizer.

Reads the store only; does not guarantee that a folder named in a row still exists (`file_of` looks).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunewright.pipeline.errors import Conflict, NotFound, call
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace


def adapter_of(workspace: Workspace, artifact: Row) -> Row:
    """The adapter that an export was made from; an adapter itself. Raises NotFound."""
    if artifact["kind"] == "adapter":
        return artifact
    return workspace.store.artifact(artifact["document"]["adapter_id"], "adapter")


def adapters_of(workspace: Workspace, artifact: Row) -> list[Row]:
    """All adapters that an export was combined from, its first one first; without those that were deleted since."""
    others: dict[str, float] = artifact["document"].get("combine_with") or {}
    found = [workspace.store.rows("SELECT * FROM artifacts WHERE id=? AND kind='adapter'", id) for id in others]
    return [adapter_of(workspace, artifact), *(rows[0] for rows in found if rows)]


def dataset_of(workspace: Workspace, artifact: Row) -> Row | None:
    """The dataset that the adapter was trained on, or None where it was deleted since."""
    dataset_id = adapter_of(workspace, artifact)["document"].get("dataset_id")
    found = workspace.store.rows("SELECT * FROM artifacts WHERE id=? AND kind='dataset'", dataset_id)
    return found[0] if found else None


def export_call(export: Row, outputs: Sequence[str]) -> str:
    """The call that exports `outputs` of the same model: the same adapters, as strong and combined in the same way."""
    document, given = export["document"], dict[str, Any]()
    if document.get("adapter_scale", 1.0) != 1.0:
        given["adapter_scale"] = document["adapter_scale"]
    if document.get("combine_with"):
        given |= {"combine_with": document["combine_with"], "combination": document["combination"]}
    return call("merge_and_export", adapter_id=document["adapter_id"], outputs=list(outputs), **given)


def hub_id(name: str) -> str | None:
    """`name` where it is a Hub id, which others can load; None for a local folder and the built-in toy."""
    is_hub_id = name.count("/") == 1 and not name.startswith(("/", ".", "~")) and not Path(name).exists()
    return name if is_hub_id else None


def base_of(adapter: Row) -> str:
    """The base as it may be named in public: a Hub id, or the last part of a local path."""
    name = adapter["document"]["base_model"]
    return hub_id(name) or Path(name).name


def is_whole(artifact: Row) -> bool:
    """Whether it is a whole model, trained full or frozen in part, that is kept among the adapters."""
    return artifact["document"].get("form") == "full"


def file_of(workspace: Workspace, artifact: Row, name: str) -> Path | None:
    """The model's small file called `name`: the export's own copy if it has one, else the adapter's."""
    folder = Path(artifact["document"]["path"])
    adapter = Path(adapter_of(workspace, artifact)["document"]["path"])
    candidates = [folder / "merged" / name, folder / "lora" / name, folder / name, adapter / name]
    return next((file for file in candidates if file.is_file()), None)


def tokenizer_folder(workspace: Workspace, artifact: Row) -> Path:
    """The folder whose tokenizer and chat template the model was trained with. Raises NotFound."""
    file = file_of(workspace, artifact, "tokenizer.json")
    if file is None:
        raise NotFound(
            "tokenizer_missing",
            f"Neither {artifact['id']} nor its adapter has a tokenizer.json: their folders were changed.",
            allowed="An adapter's folder holds the tokenizer that it was trained with.",
            next=call("list_artifacts", kind="adapter"),
        )
    return file.parent


def file_changed(export: Row, path: Path, output: str) -> Conflict:
    """The error for a file of an export that is not the one that was made and measured."""
    return Conflict(
        "file_changed",
        f"{path.name} is not the file that {export['id']} was made with.",
        allowed="Files of an export are not to be edited.",
        next=export_call(export, [output]),
    )

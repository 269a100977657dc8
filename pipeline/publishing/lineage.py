"""What stands behind an artifact that is to be published: its adapter, its dataset, and the folders with its tokenizer.

Reads the store only; does not guarantee that a folder named in a row still exists (`file_of` looks).
"""

from pathlib import Path

from tunewright.pipeline.errors import NotFound, call
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace


def adapter_of(workspace: Workspace, artifact: Row) -> Row:
    """The adapter that an export was made from; an adapter itself. Raises NotFound."""
    if artifact["kind"] == "adapter":
        return artifact
    return workspace.store.artifact(artifact["document"]["adapter_id"], "adapter")


def dataset_of(workspace: Workspace, artifact: Row) -> Row | None:
    """The dataset that the adapter was trained on, or None where it was deleted since."""
    dataset_id = adapter_of(workspace, artifact)["document"].get("dataset_id")
    found = workspace.store.rows("SELECT * FROM artifacts WHERE id=? AND kind='dataset'", dataset_id)
    return found[0] if found else None


def file_of(workspace: Workspace, artifact: Row, name: str) -> Path | None:
    """The model's small file called `name`: the export's own copy if it has one, else the adapter's."""
    folder = Path(artifact["document"]["path"])
    adapter = Path(adapter_of(workspace, artifact)["document"]["path"])
    candidates = [folder / "merged" / name, folder / "lora" / name, adapter / name]
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

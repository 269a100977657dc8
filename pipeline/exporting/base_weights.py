"""The 16-bit weights that an adapter is merged into: found on this machine, or fetched from the Hub.

Guarantees: never a quantized base. Merging into 4-bit weights would bake their rounding error into every layer.
"""

import re
from pathlib import Path
from typing import Any

from tunewright.pipeline import files, models
from tunewright.pipeline.errors import InvalidInput, NotFound
from tunewright.pipeline.settings import hub_endpoint
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

QUANTIZED_SUFFIX = re.compile(r"(-unsloth)?-bnb-4bit$")
PATTERNS = ["*.safetensors", "*.safetensors.index.json", *models.SMALL_FILES]


def locate(workspace: Workspace, adapter: Row) -> Path:
    """The folder of the adapter's base in 16 bits (or 32); downloads it where only its Hub id is known.

    What was trained as a whole model is its own base.
    Raises InvalidInput where it is quantized and its original cannot be named, NotFound where a local folder is gone,
    Unavailable where the Hub cannot be reached.
    """
    document = adapter["document"]
    if document.get("form") == "full":
        return Path(document["path"])
    name: str = document["base_model"]
    path = Path(document["base_path"]) if document.get("base_path") else None
    if path and (path / "config.json").is_file():
        if not _is_quantized(path):
            return path
        original = QUANTIZED_SUFFIX.sub("", name)
        if original == name or not _is_hub_id(original):
            raise _quantized(name, path)
        name = original
    elif not _is_hub_id(name):
        raise NotFound(
            "base_missing",
            f"The base model {name!r} of {adapter['id']} is not at {path} any more.",
            allowed="Merging needs the weights that the adapter was trained on; the adapter alone can be exported.",
            next=f'merge_and_export(adapter_id="{adapter["id"]}", outputs=["lora"])',
        )
    return _from_hub(workspace, name)


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def _is_quantized(folder: Path) -> bool:
    return "quantization_config" in files.read_json(folder / "config.json")


def _quantized(name: str, folder: Path) -> InvalidInput:
    method: dict[str, Any] = files.read_json(folder / "config.json")["quantization_config"]
    return InvalidInput(
        "base_quantized",
        f"The base {name!r} is quantized ({method.get('quant_method', 'method unknown')}): merging would keep its "
        "rounding errors.",
        allowed="Train on the 16-bit model instead (load_in_4bit=true quantizes it in memory), or export the adapter "
        "alone.",
        next='merge_and_export(adapter_id="…", outputs=["lora"])',
    )


def _from_hub(workspace: Workspace, name: str) -> Path:
    """A whole snapshot of `name`, or of its 16-bit original where `name` says that it is a 4-bit copy."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    original = QUANTIZED_SUFFIX.sub("", name)
    try:
        folder = Path(snapshot_download(original, allow_patterns=PATTERNS, endpoint=hub_endpoint()))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise models.unreachable(workspace, original) from error
    # Offline, a snapshot of which only small files were ever fetched is returned as it is.
    if not any(folder.glob("*.safetensors")):
        raise models.unreachable(workspace, original)
    if _is_quantized(folder):
        raise _quantized(original, folder)
    return folder

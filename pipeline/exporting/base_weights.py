"""The 16-bit weights that an adapter is merged into: found on this machine, or fetched from the Hub.

Guarantees: never a quantized base. Merging into 4-bit weights would bake their rounding error into every layer. Never
other weights than the adapter's record names (`require_trained_on`), as far as it names them. Light.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any

from tunewright.pipeline import files, models
from tunewright.pipeline.errors import InvalidInput, NotFound
from tunewright.pipeline.exporting import weights
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
    # The revision that was trained on, where it is one of this very repository.
    revision = _revision(Path(document["path"])) if name == document["base_model"] else None
    return _from_hub(workspace, name, revision)


def _revision(adapter: Path) -> str | None:
    provenance = adapter / "provenance.json"
    return files.read_json(provenance).get("base_revision") if provenance.is_file() else None


def require_trained_on(adapter: Path, base: Path) -> None:
    """Raises InvalidInput where the adapter in `adapter` was trained on other weights than those in `base`.

    Compares the fingerprint that provenance.json holds (`base_fingerprint`), else the folder that adapter_config.json
    names. Says nothing where neither is there, or where the two are of different types (4 bits against 16).
    """
    recorded = trained_on(adapter)
    if recorded is None:
        return
    found = weights.fingerprint(base)
    if recorded != found and recorded.split(":")[0] == found.split(":")[0]:
        raise InvalidInput(
            "adapter_of_another_base",
            f"The adapter was trained on other weights than those at {base}: fingerprint {_short(recorded)}, not "
            f"{_short(found)}. The shapes are the same, the values are not.",
            allowed="An adapter fits only the base that it was trained on: not a later revision, another fine-tune, or "
            "the model that it was merged into already.",
            next="list_models()",
            done="Nothing was exported.",
        )


def trained_on(adapter: Path) -> str | None:
    """The fingerprint (`weights.fingerprint`) of the base of the adapter in `adapter`, None where nothing tells it."""
    provenance = adapter / "provenance.json"
    recorded = files.read_json(provenance).get("base_fingerprint") if provenance.is_file() else None
    named = Path(files.read_json(adapter / "adapter_config.json").get("base_model_name_or_path") or "")
    if recorded or not (named.is_absolute() and (named / "config.json").is_file()):
        return recorded
    try:
        return weights.fingerprint(named)
    except InvalidInput:  # half of it is gone
        return None


def _short(fingerprint: str) -> str:
    return fingerprint.split(":")[1][:12]


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


def _from_hub(workspace: Workspace, name: str, revision: str | None) -> Path:
    """A whole snapshot of `name`, or of its 16-bit original where `name` says that it is a 4-bit copy."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    original = QUANTIZED_SUFFIX.sub("", name)
    get = partial(
        snapshot_download, original, revision=revision if original == name else None, allow_patterns=PATTERNS,
        endpoint=hub_endpoint(),
    )  # fmt: skip
    try:
        try:
            folder = Path(get())
        except (HfHubHTTPError, OSError):
            # A commit's list of files is asked for even where all of it is cached.
            folder = Path(get(local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise models.unreachable(workspace, original) from error
    # Offline, a snapshot of which only small files were ever fetched is returned as it is.
    if not any(folder.glob("*.safetensors")):
        raise models.unreachable(workspace, original)
    if _is_quantized(folder):
        raise _quantized(original, folder)
    return folder

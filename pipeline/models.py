"""Base models by name: the built-in toy, a local folder, or a Hub id; and why a name cannot be trained.

Light: reads configs and tokenizers, never weights. Nothing is downloaded here but a model's small files. Guarantees
that a model's weights are safetensors, and that a local one lies, with all that its links lead to, where files may be
read.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from tunewright.pipeline import access, catalog, files, toy
from tunewright.pipeline.errors import InvalidInput, NotFound, TunewrightError, Unavailable, call, nearest
from tunewright.pipeline.ids import PREFIX
from tunewright.pipeline.settings import hub_endpoint, trusts_code_of
from tunewright.pipeline.workspace import Workspace

# What a tokenizer may be made of; its files belong together. Patterns of paths in a model's folder or repository.
TOKENIZER_FILES = [
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model",
    "chat_template*", "additional_chat_templates/*",
]  # fmt: skip
# Everything of a model but its weights; licences are passed on with what is made of it.
SMALL_FILES = [
    "config.json", "generation_config.json", *TOKENIZER_FILES, "*processor_config.json",
    "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*",
]  # fmt: skip
# Of what a config says that others rely on. First what holds the rest.
CONFIG_TYPES = {
    "text_config": (dict,), "model_type": (str,), "max_position_embeddings": (int, float), "layer_types": (list,),
    "layers_block_type": (list,),
}  # fmt: skip
HUB_TIMEOUT_S = 10
# Weights as pickles, which can run code when they are loaded.
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Model:
    """A base model that can be trained. `folder` holds its weights, or is None while they are only on the Hub."""

    name: str
    kind: Literal["toy", "local", "hub"]
    folder: Path | None
    config: dict[str, Any]

    @property
    def loadable(self) -> str:
        """What `from_pretrained` takes."""
        return str(self.folder) if self.folder else self.name

    @property
    def trust_remote_code(self) -> bool:
        """Whether the user lets the Python that comes with the model run (see `settings.trusts_code_of`)."""
        return trusts_code_of(self.name)


def resolve(workspace: Workspace, name: str) -> Model:
    """The model called `name`. Raises InvalidInput, NotFound or Unavailable, each saying what would work."""
    if name == catalog.TOY:
        folder = toy.prepare(workspace.home)
        return Model(name, "toy", folder, _config(folder))
    path, is_path = Path(name), name.startswith((".", "/", "~"))
    # A Hub id may also be a path from here; it is one only where files may be read.
    is_here = access.is_readable(workspace, path)
    path = path.expanduser() if is_here else path
    if name.lower().endswith(".gguf") or (is_here and path.is_dir() and _holds_only_gguf(path)):
        raise _not_trainable(
            name, "is a GGUF file: quantized for serving, it holds no weights that can be trained", path.name
        )
    if is_here and path.is_dir():
        return _local(access.readable_folder(workspace, path))
    if is_path:
        access.readable(workspace, path)
        raise NotFound(
            "model_not_found", f"There is no folder {name!r}.", allowed=_what_works(workspace), next=LIST_MODELS
        )
    if name.startswith((f"{PREFIX['adapter']}-", f"{PREFIX['dataset']}-")) and "/" not in name:
        raise _is_an_id(name)
    if ":" in name and "\\" not in name:
        raise _not_trainable(name, "is an Ollama tag: Ollama holds GGUF, which serves but cannot be trained", name)
    if name.upper().endswith("-GGUF"):
        raise _not_trainable(name, "is a repository of GGUF files, which serve but cannot be trained", name)
    if name.count("/") != 1:
        known = [model.hub_id for model in catalog.KNOWN_MODELS]
        by_tail = [hub_id for hub_id in known if hub_id.split("/")[1].lower() == name.lower()]
        raise NotFound(
            "model_not_found",
            f"No model is called {name!r}.",
            allowed=f"A Hub id is owner/name. {nearest(f'unsloth/{name}', by_tail or known)}",
            next=LIST_MODELS,
        )
    return _hub(workspace, name)


LIST_MODELS = "list_models()"


def _is_an_id(name: str) -> InvalidInput:
    is_adapter = name.startswith(PREFIX["adapter"])
    return InvalidInput(
        "not_a_model", f"{name[:100]!r} is {'an adapter' if is_adapter else 'a dataset'}'s id.",
        allowed="Tools that ask a tuned model take it as adapter_id; start_finetune goes on from it by continue_from, "
        "with the base it was trained on as model." if is_adapter else "A model is a Hub id, a local folder or 'toy'.",
        next=call("chat_with_adapter", adapter_id=name, prompt="…") if is_adapter else LIST_MODELS,
    )  # fmt: skip


def _holds_only_gguf(path: Path) -> bool:
    return not (path / "config.json").exists() and any(path.glob("*.gguf"))


def _not_trainable(name: str, why: str, tag: str) -> InvalidInput:
    known = catalog.trainable_form(tag) or catalog.trainable_form(_as_tag(tag))
    instead = f"Train {known.hub_id} instead" if known else "Train the model's safetensors form from the Hub instead"
    return InvalidInput(
        "model_not_trainable",
        f"{name!r} {why}.",
        allowed=f"{instead}; afterwards it goes back to Ollama as GGUF.",
        next=f'plan_finetune(dataset_id="…", model="{known.hub_id}")' if known else LIST_MODELS,
    )


def _as_tag(file_name: str) -> str:
    """`Qwen3-8B-Q4_K_M.gguf` → `qwen3:8b`: how the file would be tagged in Ollama."""
    words = file_name.split("/")[-1].lower().removesuffix(".gguf").split("-")
    size = next((word for word in words[1:] if word[:1].isdigit() and word.endswith("b")), "")
    return f"{words[0]}:{size}"


def _local(path: Path) -> Model:
    if not (path / "config.json").is_file():
        adapter = (path / "adapter_config.json").is_file()
        raise InvalidInput(
            "not_a_model",
            f"{path} has no config.json{': it is an adapter, not a base model' if adapter else ''}.",
            allowed="A model folder holds config.json, *.safetensors and tokenizer.json.",
            next=LIST_MODELS,
        )
    if not _has_weights(path):
        raise _no_safetensors(str(path))
    return Model(str(path), "local", path, _config(path))


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object that is one of a model's small files. Raises InvalidInput, as anybody may have written it."""
    try:
        found = files.read_json(file)
    except (OSError, ValueError, RecursionError) as error:
        raise _not_a_model(f"{file} is no JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise _not_a_model(f"{file} holds no JSON object")
    return cast("dict[str, Any]", found)


def _not_a_model(what: str) -> InvalidInput:
    return InvalidInput("not_a_model", f"{what}.", allowed="Fetch the model again, or take another.", next=LIST_MODELS)


def _config(folder: Path) -> dict[str, Any]:
    """The model's config; those of its values whose type others rely on have it. Raises InvalidInput."""
    config = read_object(folder / "config.json")
    for name, kinds in CONFIG_TYPES.items():
        # Models that see and read keep what concerns text apart.
        for part in (config, config.get("text_config") or {}):
            if not isinstance(part.get(name), (*kinds, type(None))):
                raise _not_a_model(f"{folder / 'config.json'} has {name}={part[name]!r:.60}")
    return config


def cached_folder(hub_id: str) -> Path | None:
    """The snapshot of a Hub model that this machine holds with weights, else None."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "config.json")
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    return folder if _has_weights(folder) else None


def _has_weights(folder: Path) -> bool:
    """Whether the safetensors are there, and where they are sharded, every shard: a download may have been cut off.

    A shard of another kind is none: an index that names a pickle would have it loaded.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = read_object(index).get("weight_map")
        if not isinstance(shards, dict):
            raise _not_a_model(f"{index} has no weight_map")
        return all(_is_shard(folder, name) for name in cast("dict[str, object]", shards).values())
    return any(folder.glob("*.safetensors"))


def _is_shard(folder: Path, name: object) -> bool:
    if not isinstance(name, str):
        return False
    return Path(name).name == name and name.endswith(".safetensors") and (folder / name).is_file()


def cached_ids() -> list[str]:
    """Hub models whose weights lie in the local cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    names = [entry.name for entry in Path(HF_HUB_CACHE).glob("models--*--*")]
    ids = [name.removeprefix("models--").replace("--", "/", 1) for name in names]
    return sorted(hub_id for hub_id in ids if cached_folder(hub_id))


def _hub(workspace: Workspace, hub_id: str) -> Model:
    from huggingface_hub.errors import HFValidationError

    try:
        folder = cached_folder(hub_id)
    except HFValidationError as error:
        raise InvalidInput("model_not_found", f"{hub_id!r} is no valid Hub id.", next=LIST_MODELS) from error
    if folder:
        return Model(hub_id, "hub", folder, _config(folder))
    small = _fetch_small_files(workspace, hub_id)
    if not (small / "config.json").is_file():
        raise InvalidInput(
            "not_a_model", f"{hub_id} has no config.json.", allowed="It is no transformers model.", next=LIST_MODELS
        )
    _require_safetensors(hub_id, small)
    return Model(hub_id, "hub", None, _config(small))


def _require_safetensors(hub_id: str, small: Path) -> None:
    """Raises InvalidInput where the Hub's repository has pickled weights alone: a loader would fall back to them.

    Where the Hub cannot be asked, what is cached in `small` counts: nothing else could be loaded.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        siblings = HfApi(endpoint=hub_endpoint()).model_info(hub_id, timeout=HUB_TIMEOUT_S).siblings or []
        names = [sibling.rfilename for sibling in siblings]
    except (HfHubHTTPError, httpx.HTTPError, OSError):
        names = [entry.name for entry in small.iterdir()]
    if any(name.endswith(PICKLED) for name in names) and not any(name.endswith(".safetensors") for name in names):
        raise _no_safetensors(hub_id)


def _no_safetensors(what: str) -> InvalidInput:
    return InvalidInput(
        "no_safetensors",
        f"{what} has no *.safetensors, or not all that its index names.",
        allowed="Only safetensors are loaded: pickled weights (*.bin, *.pt) can run code.",
        next=LIST_MODELS,
    )


def _fetch_small_files(workspace: Workspace, hub_id: str) -> Path:
    """Downloads a Hub model's config, tokenizer and template into the Hub's cache; returns the snapshot's folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(
            snapshot_download(hub_id, allow_patterns=SMALL_FILES, endpoint=hub_endpoint(), etag_timeout=HUB_TIMEOUT_S)
        )
    except RepositoryNotFoundError as error:
        known = [model.hub_id for model in catalog.KNOWN_MODELS]
        raise NotFound(
            "model_not_found",
            f"The Hub has no model {hub_id!r}, or it is private or gated and the token in use cannot see it.",
            allowed=nearest(hub_id, known),
            next=LIST_MODELS,
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise unreachable(workspace, hub_id) from error


def unreachable(workspace: Workspace, hub_id: str) -> TunewrightError:
    """The error for a Hub model that is neither cached nor downloadable."""
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    return Unavailable(
        "model_not_downloadable",
        f"{hub_id!r} is not cached on this machine and {hub_endpoint()} cannot be reached{offline}.",
        allowed=_what_works(workspace),
        next='list_models(fits_only=true) or plan_finetune(dataset_id="…", model="toy")',
    )


def _what_works(workspace: Workspace) -> str:
    cached = cached_ids()
    here = f"Cached here: {', '.join(cached[:5])}." if cached else "No Hub model is cached here."
    return (
        f"{here} Also works: the built-in model 'toy', the path of a local folder with config.json and safetensors, "
        "or a mirror named in HF_ENDPOINT."
    )


def tokenizer_folder(workspace: Workspace, name: str) -> Path:
    """A folder with the tokenizer and chat template of the model called `name`. Raises as `resolve`."""
    model = resolve(workspace, name)
    return model.folder or _fetch_small_files(workspace, model.name)

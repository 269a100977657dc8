"""Which model is meant, and what must be loaded for it: an adapter on the base it was trained on, or a model. Light.

Guarantees: an adapter is put on the weights it was trained on, in the bits it was trained in, where they are still on
this machine. Does not guarantee that they fit into memory.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunewright.pipeline import gpu, models
from tunewright.pipeline.errors import InvalidInput, NotFound, call
from tunewright.pipeline.models import Model
from tunewright.pipeline.workspace import Workspace

# Of models whose config does not say how much they read.
CONTEXT_TOKENS = 4096
# What Unsloth trains in place of a Hub model in 4 bits, the more exact kind first.
FOUR_BIT_COPIES = ("unsloth-bnb-4bit", "bnb-4bit")
# Sampling for models that say nothing themselves.
FALLBACK = {"temperature": 0.7, "top_p": 0.9, "top_k": 40}
# Qwen3's model card; greedy decoding in thinking mode loops.
QWEN3 = {
    False: {"temperature": 0.7, "top_p": 0.8, "top_k": 20},
    True: {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
}


@dataclass(frozen=True)
class Subject:
    """What to load. `name` is for people; `base` is what transformers loads (a folder, or a Hub id).

    `adapter_path` is a PEFT folder, or None for a base and for what was trained as a whole model, whose own folder is
    `base` then and whose untrained base `base_without` is; else `base_without` is `base`.
    """

    name: str
    base: str
    adapter_id: str | None
    adapter_path: str | None
    base_without: str
    tokenizer_folder: str
    load_in_4bit: bool
    context_tokens: int
    enable_thinking: bool
    trust_remote_code: bool

    @property
    def untrained(self) -> "Subject":
        """Its base alone: the same weights where only an adapter stands beside them."""
        return replace(self, name=self.base_without, base=self.base_without, adapter_id=None, adapter_path=None)


def resolve(workspace: Workspace, *, adapter_id: str | None = None, model: str | None = None) -> Subject:
    """The subject of an adapter's id (or its prefix), or of a base model's name.

    Raises InvalidInput, NotFound, or Unavailable where a model is neither here nor to be fetched.
    """
    if (adapter_id is None) == (model is None):
        raise InvalidInput(
            "adapter_or_model", f"adapter_id={adapter_id!r} and model={model!r} were given.",
            allowed="Give adapter_id for a tuned model, or model for a base model alone.",
            next=call("list_artifacts", kind="adapter"),
        )  # fmt: skip
    if adapter_id is not None:
        return _of_adapter(workspace, adapter_id)
    base = _base(workspace, str(model))
    return Subject(
        name=base.name, base=base.loadable, adapter_id=None, adapter_path=None, base_without=base.loadable,
        tokenizer_folder=str(models.tokenizer_folder(workspace, base.name)), load_in_4bit=bool(gpu.indexes()),
        context_tokens=_context_tokens(base.config), enable_thinking=False,
        trust_remote_code=base.trust_remote_code,
    )  # fmt: skip


def _of_adapter(workspace: Workspace, adapter_id: str) -> Subject:
    adapter = workspace.store.artifact(adapter_id, "adapter")
    document = adapter["document"]
    whole = document.get("form") == "full"
    base = _base(workspace, document["base_model"])
    four_bit = bool(document["training"]["load_in_4bit"])
    trained_on = _trained_on(document, base, four_bit=four_bit)
    return Subject(
        name=adapter["id"], base=document["path"] if whole else trained_on, adapter_id=adapter["id"],
        adapter_path=None if whole else document["path"], base_without=trained_on,
        tokenizer_folder=document["path"], load_in_4bit=four_bit, context_tokens=_context_tokens(base.config),
        enable_thinking=bool(document.get("enable_thinking")), trust_remote_code=base.trust_remote_code,
    )  # fmt: skip


def _base(workspace: Workspace, name: str) -> Model:
    base = models.resolve(workspace, name)
    if base.kind == "toy" and base.folder and not (base.folder / "model.safetensors").exists():
        raise NotFound(
            "toy_not_made", "The toy model's weights are made by the first fine-tune of it.",
            next='start_finetune(dataset_id="…", model="toy")',
        )  # fmt: skip
    return base


def _trained_on(document: dict[str, Any], base: Model, *, four_bit: bool) -> str:
    """The folder that was trained on where it is still there: a Hub model may have a later revision by now."""
    path = document.get("base_path")
    if path and (Path(path) / "config.json").is_file():
        return path
    if base.kind == "hub" and base.folder is None and four_bit:
        tail = base.name.split("/")[1].lower()
        cached = {name.lower(): name for name in models.cached_ids()}
        for copy in FOUR_BIT_COPIES:
            name = cached.get(f"unsloth/{tail}-{copy}")
            folder = models.cached_folder(name) if name else None
            if folder:
                return str(folder)
    return base.loadable


def _context_tokens(config: dict[str, Any]) -> int:
    # Models that see and read keep what concerns text apart.
    text = config.get("text_config") or config
    return int(text.get("max_position_embeddings") or CONTEXT_TOKENS)


def sampling_defaults(folder: Path, *, thinking: bool) -> dict[str, float]:
    """Temperature, top_p and top_k that the model of `folder` asks for, by thinking mode where it has one."""
    config = folder / "config.json"
    model_type = models.read_object(config).get("model_type") if config.is_file() else ""
    if str(model_type).startswith("qwen3"):
        return dict(QWEN3[thinking])
    generation = folder / "generation_config.json"
    own = models.read_object(generation) if generation.is_file() else {}
    return {key: own[key] if isinstance(own.get(key), int | float) else value for key, value in FALLBACK.items()}

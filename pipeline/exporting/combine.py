"""Several LoRA adapters of one base made into one, with weights, by peft's `add_weighted_adapter`. Heavy.

Guarantees: every tensor of every adapter is in the result or the adapters are refused; the base's weights are not
read; the result is a PEFT folder like any other, with the scale 1. `cat` is exact and has the sum of the ranks; `svd`
is the best approximation in the largest rank; the others without `_svd` combine the factors A and B apart, which is
rough; those with `_svd` combine whole matrices and cost a full SVD of each (seconds on a GPU, up to a minute on a CPU).
The random ones (DARE) draw the same numbers every time. Adapters may cancel each other out: no method knows what they
were trained for.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tunewright.pipeline import files
from tunewright.pipeline.errors import InvalidInput
from tunewright.pipeline.exporting import base_weights, lora, merge, shards
from tunewright.pipeline.exporting.outputs import ONE_RANK, Combination

# peft, and transformers with it, take seconds to import: only an export that combines waits for them.
if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

METHODS: tuple[str, ...] = get_args(Combination)
# The share of values that is kept, by how a method's name begins. TIES keeps the largest fifth (Yadav et al. 2023);
# DARE drops values at random and scales up the rest (Yu et al. 2024), magnitude_prune drops the smallest: half is mild.
DENSITY = {"ties": 0.2, "dare": 0.5, "magnitude_prune": 0.5}
SEED = 0
COMBINED = "combined"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def combine(base: Path, adapters: Sequence[tuple[Path, float]], method: str, folder: Path) -> list[str]:
    """Writes the sum of `adapters` (PEFT folder, weight) as one PEFT adapter into `folder`, which is made.

    Tokenizer and template are the first adapter's. Returns warnings. Raises InvalidInput for an unknown method, for
    adapters of different bases, of different ranks where the method wants one, and for what is not plain LoRA.
    """
    from peft import get_peft_model_state_dict

    if method not in METHODS:
        raise _refused(f"method {method!r} is unknown", f"Methods: {', '.join(METHODS)}.")
    folders = [adapter for adapter, _ in adapters]
    products = [_products(base, adapter) for adapter in folders]
    _require_one_base(folders)
    ranks = sorted({product.a.shape[0] for found in products for product in found.values()})
    if method in ONE_RANK and len(ranks) > 1:
        raise _refused(
            f"method {method!r} adds matrices of one rank, these have {', '.join(map(str, ranks))}",
            "cat and the methods that end in svd take different ranks.",
        )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SEED)
        model = _model(folders, products)
        _add_weighted(model, [weight for _, weight in adapters], method)
    tensors = get_peft_model_state_dict(model, adapter_name=COMBINED, save_embedding_layers=False)
    if method == "svd":
        tensors = _truncated(tensors, ranks[-1])
    folder.mkdir(parents=True, exist_ok=True)
    _write(model.peft_config[COMBINED], tensors, folder)
    merge.copy_small_files(folders[0], folders[0], folder)
    files.write_json(folder / "provenance.json", _provenance(adapters, method))
    return _warnings(folders)


def _products(base: Path, adapter: Path) -> dict[str, lora.LowRank]:
    """The products of `adapter` by the name of the tensor they change; InvalidInput where that is not all it is."""
    if not (adapter / CONFIG).is_file():
        raise _refused(f"{adapter.name} is a whole model, no adapter", "LoRA adapters are combined.")
    stored, changes = merge.read_changes(base, adapter, 1.0)
    whole = [name for name, tensor in changes.replaced.items() if not shards.equal(tensor, stored[name])]
    if whole:
        raise _refused(f"{adapter.name} trained {whole[0]!r} as a whole", "Plain LoRA is combined.")
    for product in changes.added.values():
        if product.magnitude or product.on_4_bits:
            kind = "DoRA" if product.magnitude else "LoftQ"
            raise _refused(f"{adapter.name} was trained with {kind}", "LoRA and rsLoRA are combined.")
    return changes.added


def _require_one_base(folders: Sequence[Path]) -> None:
    """Raises InvalidInput where the adapters name different bases and no fingerprint shows that they are the same."""
    unknown = [folder for folder in folders if base_weights.trained_on(folder) is None]
    named = [files.read_json(folder / CONFIG).get("base_model_name_or_path") or "" for folder in folders]
    originals = {base_weights.QUANTIZED_SUFFIX.sub("", name) for name in named}
    if unknown and len(originals) > 1:
        raise _refused(
            f"they were trained on different bases ({', '.join(sorted(originals))})",
            "Adapters of one base go together.",
        )


def _model(folders: Sequence[Path], products: Sequence[dict[str, lora.LowRank]]) -> "PeftModel":
    """A skeleton with every adapter on it under its `_name`: peft's layers on base weights that take no memory."""
    from peft import LoraConfig, PeftModel, set_peft_model_state_dict

    device = "cuda" if torch.cuda.is_available() else "cpu"
    skeleton = nn.Module()
    for found in products:
        for name, product in found.items():
            _put(skeleton, name.removesuffix(".weight"), _layer(product, device))
    model: PeftModel | None = None
    for number, (folder, found) in enumerate(zip(folders, products, strict=True)):
        config = dataclasses.replace(
            LoraConfig.from_pretrained(str(folder)),
            # By their whole names: which layers the adapter has is settled.
            target_modules=[name.removesuffix(".weight") for name in found],
            layers_to_transform=None,
            layers_pattern=None,
            exclude_modules=None,
        )
        if model is None:
            model = PeftModel(skeleton, config, adapter_name=_name(number))
        else:
            model.add_adapter(_name(number), config)
        # Without the base's own embedding, which peft stores beside its LoRA.
        tensors = {key: tensor for key, tensor in load_file(folder / WEIGHTS).items() if ".lora_" in key}
        loaded = set_peft_model_state_dict(model, tensors, adapter_name=_name(number))
        if loaded.unexpected_keys:
            raise _refused(f"peft finds no place for {loaded.unexpected_keys[0]!r}", "Plain LoRA is combined.")
    if model is None:
        raise _refused("no adapter is given", "One or more are combined.")
    return model


def _name(number: int) -> str:
    # Not the number alone: peft would take `layers.0.` for a part of adapter 0.
    return f"adapter_{number}"


def _layer(product: lora.LowRank, device: str) -> nn.Module:
    """A layer of the kind that the product was trained on; all its weights are one zero, seen many times."""
    from transformers.pytorch_utils import Conv1D

    rows, columns = product.shape
    with torch.device("meta"):
        if not product.transposed:
            layer: nn.Module = nn.Linear(columns, rows, bias=False)
        elif product.embedding:
            layer = nn.Embedding(rows, columns)
        else:
            layer = Conv1D(columns, rows)
    for name, parameter in list(layer.named_parameters()):
        zeros = torch.zeros((), device=device).expand(parameter.shape)
        setattr(layer, name, nn.Parameter(zeros, requires_grad=False))
    return layer


def _put(skeleton: nn.Module, name: str, layer: nn.Module) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        if not hasattr(skeleton, parent):
            skeleton.add_module(parent, nn.Module())
        skeleton = getattr(skeleton, parent)
    skeleton.add_module(last, layer)


def _add_weighted(model: "PeftModel", weights: Sequence[float], method: str) -> None:
    names = [_name(number) for number in range(len(weights))]
    base: Any = model.base_model
    base.add_weighted_adapter(
        names,
        list(weights),
        COMBINED,
        # The same as peft's svd once it is truncated, without a full SVD of every matrix.
        combination_type="cat" if method == "svd" else method,
        density=next((share for name, share in DENSITY.items() if method.startswith(name)), None),
        svd_full_matrices=False,
    )


def _truncated(tensors: dict[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """Each product B A in its best approximation of `rank` (Eckart and Young), by the SVD of its small core.

    With B = Q_b R_b and Aᵀ = Q_a R_a the singular values of B A are those of R_b R_aᵀ.
    """
    shorter: dict[str, torch.Tensor] = {}
    for key_a in [key for key in tensors if "lora_A" in key or "lora_embedding_A" in key]:
        key_b = key_a.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")
        q_a, r_a = torch.linalg.qr(tensors[key_a].float().T)
        q_b, r_b = torch.linalg.qr(tensors[key_b].float())
        u, s, v = torch.linalg.svd(r_b @ r_a.T)
        shorter[key_a] = v[:rank] @ q_a.T
        shorter[key_b] = q_b @ u[:, :rank] * s[:rank]
    return shorter


def _write(config: "PeftConfig", tensors: dict[str, torch.Tensor], folder: Path) -> None:
    rank = next(tensor.shape[0] for key, tensor in tensors.items() if "lora_A" in key or "lora_embedding_A" in key)
    config.save_pretrained(str(folder))
    # peft keeps the first adapter's use_rslora, with which the combination would be scaled a second time.
    changed = {"r": rank, "lora_alpha": rank, "use_rslora": False, "inference_mode": True}
    files.write_json(folder / CONFIG, files.read_json(folder / CONFIG) | changed)
    on_cpu = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    save_file(on_cpu, folder / WEIGHTS, metadata={"format": "pt"})


def _provenance(adapters: Sequence[tuple[Path, float]], method: str) -> dict[str, Any]:
    first = adapters[0][0]
    return {
        "base_model": files.read_json(first / CONFIG).get("base_model_name_or_path"),
        "base_fingerprint": base_weights.trained_on(first),
        "combination": {
            "method": method,
            "adapters": [{"name": adapter.name, "weight": weight} for adapter, weight in adapters],
        },
    }


def _warnings(folders: Sequence[Path]) -> list[str]:
    first, *others = folders
    return [
        f"{other.name} was trained with another {what} than {first.name}, whose {what} the combination has."
        for other in others
        for what, names in (("chat template", ("chat_template.jinja", "tokenizer_config.json")),
                            ("tokenizer", ("tokenizer.json",)))
        if _contents(first, names) != _contents(other, names)
    ]  # fmt: skip


def _contents(folder: Path, names: Iterable[str]) -> list[bytes | None]:
    return [(folder / name).read_bytes() if (folder / name).is_file() else None for name in names]


def _refused(why: str, allowed: str) -> InvalidInput:
    return InvalidInput(
        "not_combinable",
        f"The adapters cannot be combined: {why}.",
        allowed=allowed,
        next='merge_and_export(adapter_id="…", outputs=["lora"]) exports one as it is',
        done="Nothing was exported.",
    )

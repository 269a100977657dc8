"""Which parameters of a base are trained: an adapter's, the last layers', or all; and where they begin.

Guarantees: names that the model lacks are refused before anything is attached, with those that it has; an adapter gone
on from keeps its own shape and form. Heavy.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from transformers.pytorch_utils import Conv1D

from tunewright.pipeline import files
from tunewright.pipeline.errors import InvalidInput, call
from tunewright.pipeline.training.arguments import ALL_LINEAR
from tunewright.pipeline.training.run import Run

# What makes an adapter's shape and formula; a run that goes on from one takes them from it.
SHAPE = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")


@dataclass(frozen=True)
class Start:
    """Where training begins: from the base alone, or from `adapter_id`: its `config` and `tensors` (LoRA), or the
    folder of the `whole` model.
    """

    adapter_id: str | None = None
    config: dict[str, Any] | None = None
    tensors: dict[str, torch.Tensor] | None = None
    whole: Path | None = None


def start(run: Run) -> Start:
    """Reads what `continue_from` names. Raises InvalidInput where it does not go with `finetuning_type`, NotFound."""
    adapter_id = run.context.spec.get("continue_from")
    if not adapter_id:
        return Start()
    document = run.context.workspace.store.artifact(adapter_id, "adapter")["document"]
    folder, is_whole = Path(document["path"]), document.get("form") == "full"
    if is_whole == run.is_lora:
        kind = "a whole model" if is_whole else "a LoRA adapter"
        way = call("start_finetune", dataset_id=run.context.spec["dataset_id"], model=str(folder))
        raise InvalidInput(
            "adapter_of_another_form",
            f"{adapter_id} is {kind}, which finetuning_type={run.arguments['finetuning_type']!r} cannot go on from.",
            allowed="lora goes on from LoRA adapters, full and freeze from whole models.",
            next=way if is_whole else call("merge_and_export", adapter_id=adapter_id, outputs=["merged_16bit"]),
        )
    if is_whole:
        return Start(adapter_id, whole=folder)
    config = files.read_json(folder / "adapter_config.json")
    if config.get("loftq_config") and not run.arguments["load_in_4bit"]:
        raise InvalidInput(
            "adapter_of_another_base", f"{adapter_id} was trained with LoftQ, on the 4-bit form of its base.",
            allowed="It goes on with load_in_4bit=true alone.",
        )  # fmt: skip
    return Start(adapter_id, config, load_file(folder / "adapter_model.safetensors"))


def lora(run: Run, start: Start, model: Any) -> dict[str, Any]:
    """The keyword arguments of peft's LoraConfig. Raises InvalidInput for target_modules that `model` lacks."""
    arguments, config = run.arguments, start.config
    if config:
        with_embeddings = bool(config["modules_to_save"])
        chosen = {key: config[key] for key in SHAPE if config.get(key)}
        chosen["target_modules"] = _last_parts(config["target_modules"])
    else:
        _require_modules(run, model)
        with_embeddings = bool(arguments["embedding_learning_rate"])
        chosen = {"r": arguments["lora_rank"]} | {
            key: arguments[key] for key in ("lora_alpha", "target_modules", "use_rslora", "use_dora")
        }
    if with_embeddings:
        names, tied = embedding_names(model)
        # Where both are one matrix, peft trains one and puts it in both places.
        chosen |= {"modules_to_save": names, "ensure_weight_tying": tied}
    return {"lora_dropout": arguments["lora_dropout"], **chosen}


def go_on(start: Start, model: Any) -> None:
    """Puts the earlier adapter's weights in place. Raises InvalidInput unless they fill this one exactly."""
    try:
        outcome = set_peft_model_state_dict(model, start.tensors)
    except RuntimeError as error:  # torch's word for other shapes
        raise _does_not_fit(start, str(error).splitlines()[-1].strip()) from error
    missing = [key for key in outcome.missing_keys if "lora_" in key or "modules_to_save" in key]
    if outcome.unexpected_keys or missing:
        raise _does_not_fit(start, f"{[*outcome.unexpected_keys, *missing][:3]} are in one of them only")
    if start.config and start.config.get("loftq_config"):
        model.peft_config["default"].loftq_config = start.config["loftq_config"]


def select_weights(run: Run, model: Any) -> None:
    """For full and freeze: marks the base's own weights that are trained. Raises InvalidInput."""
    quantized = next((name for name, p in model.named_parameters() if not p.is_floating_point()), None)
    if quantized:
        raise InvalidInput(
            "base_quantized", f"The base {run.base.name!r} is quantized ({quantized}): its weights cannot be trained.",
            allowed='finetuning_type="lora", or the 16-bit form of the model with load_in_4bit=false.',
            next="list_models()", done="Nothing was trained.",
        )  # fmt: skip
    if run.arguments["finetuning_type"] == "full":
        return  # as it was loaded; Unsloth freezes what a text model never uses
    layers, count = decoder_layers(model), run.arguments["trainable_layers"]
    if count > len(layers):
        raise InvalidInput(
            "too_many_layers", f"trainable_layers={count}, but {run.base.name} has {len(layers)}.",
            allowed=f'1 to {len(layers)}, or finetuning_type="full".', done="Nothing was trained.",
        )  # fmt: skip
    model.requires_grad_(False)
    for layer in layers[len(layers) - count :]:
        layer.requires_grad_(True)


def decoder_layers(model: Any) -> torch.nn.ModuleList:
    """The list of a language model's blocks: of all lists in its decoder the one with the most parameters."""
    lists = [module for module in model.get_decoder().modules() if isinstance(module, torch.nn.ModuleList)]
    return max(lists, key=lambda found: sum(parameter.numel() for parameter in found.parameters()))


def linear_names(model: Any) -> set[str]:
    """Last parts of the names of layers that can get a LoRA; without the output layer, which is trained as a whole."""
    head = model.get_output_embeddings()
    return {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head
    }


def embedding_names(model: Any) -> tuple[list[str], bool]:
    """Last parts of the names of the input and the output embedding, and whether both are one matrix."""
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    names = [name.rpartition(".")[2] for wanted in modules for name, found in model.named_modules() if found is wanted]
    return names, modules[0].weight is modules[1].weight


def _last_parts(target_modules: list[str] | str) -> list[str] | str:
    """peft writes "all-linear" out as full names, which Unsloth does not take for some models."""
    if isinstance(target_modules, str):
        return target_modules
    return sorted({name.rpartition(".")[2] for name in target_modules})


def _require_modules(run: Run, model: Any) -> None:
    wanted = run.arguments["target_modules"]
    if wanted == ALL_LINEAR:
        return
    has = linear_names(model)
    unknown = sorted(set(wanted) - has)
    if unknown:
        raise InvalidInput(
            "unknown_target_modules",
            f"target_modules names {', '.join(unknown)}, which {run.base.name} does not have.",
            allowed=f'Its linear layers: {", ".join(sorted(has))}; or "{ALL_LINEAR}". Embeddings and head are trained '
            "with embedding_learning_rate.",
            next=call("start_finetune", dataset_id=run.context.spec["dataset_id"], model=run.base.name,
                      target_modules=ALL_LINEAR),
            done="No adapter was made.",
        )  # fmt: skip


def _does_not_fit(start: Start, why: str) -> InvalidInput:
    return InvalidInput(
        "adapter_does_not_fit", f"The weights of {start.adapter_id} do not fit this model: {why}.",
        allowed="An adapter goes on only on the base that it was trained on.", next='list_artifacts(kind="adapter")',
        done="Nothing was trained.",
    )  # fmt: skip

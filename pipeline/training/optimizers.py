"""Parameter groups with rates of their own: LoRA+ for B, and the embeddings' rate. Heavy.

LoRA+ (Hayou et al. 2024): B learns `loraplus_ratio` times as fast as A. Weight decay spares what transformers' own
trainer spares: biases and norms.
"""

from typing import Any

import torch
from transformers import Trainer
from transformers import TrainingArguments as TransformersArguments

from tunewright.pipeline.training import config
from tunewright.pipeline.training.run import Run


def optimizer(run: Run, model: Any) -> torch.optim.Optimizer | None:
    """For the trainer's `optimizers`; None where every parameter has one rate, and the trainer's own will do."""
    arguments = run.arguments
    rate, embedding_rate, ratio = (
        arguments["learning_rate"], arguments["embedding_learning_rate"], arguments["loraplus_ratio"],
    )  # fmt: skip
    if not embedding_rate and not ratio:
        return None
    embeddings = {id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings())}
    decaying = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]  # its self is unused
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        own = rate
        if embedding_rate and id(parameter) in embeddings:
            own = embedding_rate
        elif ratio and ".lora_B." in name:
            own = rate * ratio
        groups.setdefault((own, arguments["weight_decay"] if name in decaying else 0.0), []).append(parameter)
    # `common` alone would let the evaluation strategy ask for a dataset; the optimizer needs its own fields only.
    settings = TransformersArguments(**config.common(run, with_eval=False))
    made, options = Trainer.get_optimizer_cls_and_kwargs(settings, model)
    chosen = [{"params": found, "lr": own, "weight_decay": decay} for (own, decay), found in groups.items()]
    result = made(chosen, **options)
    if options.get("optim_bits") == 8:
        _keep_embeddings_wide(model)
    return result


def _keep_embeddings_wide(model: Any) -> None:
    """The trainer's own rule: 8-bit states of embeddings are unstable."""
    from bitsandbytes.optim.optimizer import GlobalOptimManager

    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            GlobalOptimManager.get_instance().register_module_override(module, "weight", {"optim_bits": 32})

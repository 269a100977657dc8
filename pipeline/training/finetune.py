"""The fine-tuning job: load the base model, attach an adapter, train, evaluate, save. Runs in a worker, on Unsloth.

Guarantees: goes on from the last whole checkpoint after a kill; the adapter appears only when it is complete.
"""

import errno
from pathlib import Path
from typing import Any

from tunewright.pipeline.backend import FastLanguageModel

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.sft_config import SFTConfig

from tunewright.pipeline import models, toy
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import Cancelled, InvalidInput, call
from tunewright.pipeline.toy import weights
from tunewright.pipeline.training import adapter, checkpoints, examples
from tunewright.pipeline.training.examples import Examples
from tunewright.pipeline.training.reporting import CountingTrainer, Reporter, peak_gib

Arguments = dict[str, Any]


def run(context: JobContext) -> dict[str, Any]:
    """Trains and stores an adapter; returns its id with the run's figures. Raises Cancelled, InvalidInput."""
    made = adapter.made_before(context)
    if made:
        return made
    spec, arguments = context.spec, context.spec["arguments"]
    base = models.resolve(context.workspace, spec["model"])
    if base.kind == "toy" and not toy.is_trained(context.workspace.home):
        context.event("info", "toy", "Bringing up the built-in toy model, once per data home.")
        weights.ensure(context.workspace.home, lambda done, total: _toy_progress(context, done, total))
    template = ChatTemplate(models.tokenizer_folder(context.workspace, spec["model"]))
    train, evaluation = _examples(context, template, arguments)

    context.progress("loading the model")
    model, tokenizer = _load(context, base, arguments)
    if spec["continue_from"]:
        _continue_from(context, model, spec["continue_from"])
    context.check_cancelled()
    trainer = _trainer(context, model, tokenizer, train, evaluation, arguments)
    reporter = Reporter(context, trainer)
    trainer.add_callback(reporter)

    checkpoint = checkpoints.newest(context.folder)
    if checkpoint:
        context.event("info", "resumed_from", f"Going on from {checkpoint.name}.")
    context.progress("training", 0, 0)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if reporter.cancelled:
        raise Cancelled(context.job_id)
    figures = _figures(context, trainer, train)
    return adapter.save(context, base, template, model, figures)


def _toy_progress(context: JobContext, done: int, total: int) -> None:
    context.check_cancelled()
    if done % 10 == 0 or done == total:
        context.progress("bringing up the toy model", done, total)


def _examples(context: JobContext, template: ChatTemplate, arguments: Arguments) -> tuple[Examples, Examples]:
    context.progress("encoding the dataset")
    dataset = context.workspace.store.artifact(context.spec["dataset_id"], "dataset")
    folder = Path(dataset["document"]["path"])
    length = arguments["max_seq_length"]
    train = examples.build(folder / "train.parquet", template, length, context.check_cancelled)
    evaluation = examples.build(folder / "eval.parquet", template, length, context.check_cancelled)
    if not train.count:
        raise InvalidInput(
            "nothing_to_train",
            f"None of {dataset['id']}'s conversations has an answer within max_seq_length={length} tokens.",
            allowed="Raise max_seq_length, or look at the rows.",
            next=call("inspect_dataset", dataset_id=dataset["id"], view="mask", model=context.spec["model"]),
        )
    context.event(
        "info", "encoded",
        f"{train.count} training and {evaluation.count} eval conversations, {train.tokens} tokens, "
        f"{train.trained_tokens} of them trained on.",
    )  # fmt: skip
    if train.truncated:
        context.event(
            "warning", "truncated",
            f"{train.truncated} conversations are longer than {length} tokens and were cut; "
            f"{train.without_answer} lost their answer and were left out.",
        )  # fmt: skip
    return train, evaluation


def _load(
    context: JobContext, base: models.Model, arguments: Arguments
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    on_gpu = torch.cuda.is_available()
    try:
        model, tokenizer = FastLanguageModel.from_pretrained(
            base.loadable, max_seq_length=arguments["max_seq_length"], load_in_4bit=arguments["load_in_4bit"]
        )
    except OSError as error:
        if base.folder is not None or error.errno == errno.ENOSPC:
            raise
        raise models.unreachable(context.workspace, base.name) from error
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    unknown = sorted(set(arguments["target_modules"]) - linear)
    if unknown:
        raise InvalidInput(
            "unknown_target_modules", f"target_modules names {', '.join(unknown)}, which {base.name} does not have.",
            allowed=f"Its linear layers: {', '.join(sorted(linear))}.", next="start_finetune(…) without target_modules",
            done="No adapter was made.",
        )  # fmt: skip
    model = FastLanguageModel.get_peft_model(
        model, r=arguments["lora_rank"], lora_alpha=arguments["lora_alpha"], lora_dropout=arguments["lora_dropout"],
        target_modules=arguments["target_modules"], random_state=arguments["seed"],
        # Unsloth's checkpointing saves VRAM at little cost; a CPU has memory and wants the speed.
        use_gradient_checkpointing="unsloth" if on_gpu else False,
    )  # fmt: skip
    return model, tokenizer


def _continue_from(context: JobContext, model: PreTrainedModel, adapter_id: str) -> None:
    """Starts from another adapter's weights. Raises InvalidInput where their shapes differ."""
    tensors = load_file(context.workspace.home.adapters / adapter_id / "adapter_model.safetensors")
    outcome = set_peft_model_state_dict(model, tensors)
    if outcome.unexpected_keys:
        raise InvalidInput(
            "adapter_does_not_fit", f"{adapter_id} has weights that this model lacks: {outcome.unexpected_keys[:3]}."
        )
    context.event("info", "continued", f"Starting from the weights of {adapter_id}.")


def _trainer(
    context: JobContext, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Examples,
    evaluation: Examples, arguments: Arguments,
) -> CountingTrainer:  # fmt: skip
    def build(packing: bool) -> CountingTrainer:
        rows = examples.pack(train.rows, arguments["max_seq_length"]) if packing else train.rows
        return CountingTrainer(
            model=model, processing_class=tokenizer, train_dataset=rows,
            eval_dataset=evaluation.rows if evaluation.count else None,
            args=_config(context, arguments, packing, with_eval=bool(evaluation.count)),
        )  # fmt: skip

    trainer = build(arguments["packing"])
    if arguments["packing"] and "packed_seq_lengths" not in next(iter(trainer.get_train_dataloader())):
        # Without these lengths attention would cross from one packed example into the next.
        context.event("warning", "not_packed", "The backend cannot keep packed examples apart here; training unpacked.")
        trainer = build(False)
    return trainer


def _config(context: JobContext, arguments: Arguments, packing: bool, *, with_eval: bool) -> SFTConfig:
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return SFTConfig(
        output_dir=str(checkpoints.folder(context.folder)),
        # The rows come encoded and packed (examples.py); trl must not do it again.
        dataset_kwargs={"skip_prepare_dataset": True}, max_length=arguments["max_seq_length"], packing=packing,
        eval_packing=False,
        per_device_train_batch_size=arguments["batch_size"], per_device_eval_batch_size=arguments["batch_size"],
        gradient_accumulation_steps=arguments["gradient_accumulation"],
        num_train_epochs=arguments["epochs"], max_steps=arguments["max_steps"] or -1,
        learning_rate=arguments["learning_rate"], weight_decay=arguments["weight_decay"],
        lr_scheduler_type=arguments["lr_scheduler"],
        # Below 1 transformers reads these as shares of all steps.
        warmup_steps=arguments["warmup_ratio"], save_steps=arguments["save_steps"] or 0.1,
        eval_steps=arguments["eval_steps"] or 0.1, eval_strategy="steps" if with_eval else "no",
        save_strategy="steps", save_total_limit=2, logging_steps=arguments["logging_steps"], logging_first_step=True,
        optim="adamw_8bit" if torch.cuda.is_available() else "adamw_torch",
        bf16=bf16, fp16=torch.cuda.is_available() and not bf16,
        seed=arguments["seed"], data_seed=arguments["seed"], dataloader_num_workers=0, report_to="none",
        disable_tqdm=True,
    )  # fmt: skip


def _figures(context: JobContext, trainer: CountingTrainer, train: Examples) -> dict[str, Any]:
    """The run in numbers; the final evaluation is made unless the last step had one."""
    store, steps = context.workspace.store, trainer.state.global_step
    evaluated = {row["step"] for row in store.metrics(context.job_id, "eval")}
    if trainer.eval_dataset is not None and steps not in evaluated:
        context.progress("evaluating")
        trainer.evaluate()
    losses = [row["numbers"] for row in store.metrics(context.job_id, "train") if "loss" in row["numbers"]]
    if not losses:
        raise InvalidInput(
            "training_diverged", "The loss was not finite at any step.", allowed="Lower learning_rate.",
            done="No adapter was stored.",
        )  # fmt: skip
    evals = [row["numbers"]["loss"] for row in store.metrics(context.job_id, "eval")]
    return {
        "steps": steps,
        "train_loss_first": losses[0]["loss"],
        "train_loss_last": losses[-1]["loss"],
        "eval_loss": evals[-1] if evals else None,
        "tokens_per_s": losses[-1].get("tokens_per_s"),
        "peak_gib": peak_gib(),
        "train_tokens": train.tokens,
    }

"""The fine-tuning job: encode, load the base model, attach what is trained, train, evaluate, save. Runs in a worker.

Guarantees: goes on from the last whole checkpoint after a kill; tries every rung of `ladder` before it fails for want
of memory; the adapter appears only when it is complete.
"""

from types import ModuleType
from typing import Any

from tunewright.pipeline.backend import on_gpu

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as TransformersArguments
from transformers.integrations.integration_utils import TensorBoardCallback

from tunewright.pipeline import toy
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import Cancelled, InvalidInput, Unavailable, call
from tunewright.pipeline.toy import weights
from tunewright.pipeline.training import adapter, checkpoints, ladder, loading, memory
from tunewright.pipeline.training.reporting import Counting, Reporter, peak_gib
from tunewright.pipeline.training.run import Data, Run


def run(context: JobContext) -> dict[str, Any]:
    """Trains and stores an adapter; returns its id with the run's figures.

    Raises Cancelled, InvalidInput (nothing to train, diverged) and Unavailable (out of memory on the lowest rung).
    """
    made = adapter.made_before(context)
    if made:
        return made
    this = Run.of(context)
    if this.base.kind == "toy" and not toy.is_trained(context.workspace.home):
        context.event("info", "toy", "Bringing up the built-in toy model, once per data home.")
        weights.ensure(context.workspace.home, lambda done, total: _toy_progress(context, done, total))
    if context.died_of_memory:
        this = _step_down(this, "The last try was killed for want of host memory")
    context.progress("encoding the dataset")
    method = _method(this.method)
    data = method.encode(this)
    memory.limit(this)
    while True:
        memory.release()
        result = _attempt(this, method, data)
        if isinstance(result, dict):
            return result
        this = _step_down(this, result)


def _toy_progress(context: JobContext, done: int, total: int) -> None:
    context.check_cancelled()
    if done % 10 == 0 or done == total:
        context.progress("bringing up the toy model", done, total)


def _method(name: str) -> ModuleType:
    """The module with `encode` and `build` of a method. Imports it."""
    match name:
        case "sft" | "cpt":
            from tunewright.pipeline.training import supervised as module
        case "dpo" | "orpo":
            from tunewright.pipeline.training import preference as module
        case "kto":
            from tunewright.pipeline.training import kto as module
        case "grpo":
            from tunewright.pipeline.training import grpo as module
        case _:
            raise ValueError(f"unknown method: {name}")
    return module


def _attempt(this: Run, method: ModuleType, data: Data) -> dict[str, Any] | str:
    """The job's result, or what ran out of memory: as text, so that nothing of the try stays referred to."""
    try:
        return _train(this, method, data)
    except (MemoryError, RuntimeError) as error:
        if not memory.ran_out(error):
            raise
        return f"Out of memory ({(str(error).strip().splitlines() or [type(error).__name__])[0][:200]})"


def _step_down(this: Run, why: str) -> Run:
    """The run one rung lower, said in the job's events. Raises Unavailable at the bottom."""
    rung = ladder.next_rung(this.arguments, this.method, on_gpu=on_gpu())
    if rung is None:
        raise Unavailable(
            "out_of_memory",
            f"{why}, with batch_size={this.arguments['batch_size']}, "
            f"gradient_checkpointing={this.arguments['gradient_checkpointing']} and everything else tried.",
            allowed="A shorter max_seq_length, a smaller lora_rank or a smaller model.",
            next=call("plan_finetune", dataset_id=this.context.spec["dataset_id"], model=this.base.name),
            done="No adapter was stored; checkpoints are kept.",
        )
    changes, words = rung
    this.context.event("warning", "out_of_memory", f"{why}. Going on with less: {words}.")
    return this.lower(changes)


def _train(this: Run, method: ModuleType, data: Data) -> dict[str, Any]:
    context = this.context
    context.progress("loading the model")
    loaded = loading.load(this)
    context.check_cancelled()
    trainer = method.build(this, loaded, data)
    if this.method != "grpo":  # whose batches are not known before they are generated
        # Before the reporter, which counts tokens and seconds from the run's own beginning.
        trainer.add_callback(memory.Rehearsal(this, trainer))
    reporter = Reporter(context, trainer, data)
    trainer.add_callback(reporter)
    _keep_tensorboard(context, trainer)
    if trainer.eval_dataset is not None:
        trainer.add_callback(SaveTheBest())
    patience = this.arguments["early_stopping_patience"]
    if patience and trainer.eval_dataset is not None:
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=patience))

    checkpoint = checkpoints.newest(context.folder)
    if checkpoint:
        context.event("info", "resumed_from", f"Going on from {checkpoint.name}.")
    context.progress("training", 0, 0)
    checkpoints.train(trainer, checkpoint)
    if reporter.cancelled:
        raise Cancelled(context.job_id)
    figures = _figures(this, trainer, reporter, data)
    return adapter.save(this, loaded.model, figures | _keep_the_best(this, trainer, reporter))


class SaveTheBest(TrainerCallback):
    """Saves at every evaluation that is better than all before, whatever `save_steps` says: a run can only go back to
    what was saved.
    """

    def on_evaluate(
        self, args: TransformersArguments, state: TrainerState, control: TrainerControl,
        metrics: dict[str, float] | None = None, **_: Any,
    ) -> None:  # fmt: skip
        value, best = (metrics or {})[str(args.metric_for_best_model)], state.best_metric
        if best is None or (value > best if args.greater_is_better else value < best):
            control.should_save = True


def _keep_tensorboard(context: JobContext, trainer: Counting) -> None:
    """Puts what TensorBoard writes beside the checkpoints, among which it would go when the run has ended."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(context.folder / "tensorboard")
            context.event("info", "tensorboard", f"tensorboard --logdir {callback.logging_dir} shows the run.")


def _figures(this: Run, trainer: Counting, reporter: Reporter, data: Data) -> dict[str, Any]:
    """The run in numbers; a last evaluation is made unless the last step had one."""
    context, steps = this.context, trainer.state.global_step
    store = context.workspace.store
    evaluated = {row["step"] for row in store.metrics(context.job_id, "eval")}
    if trainer.eval_dataset is not None and steps not in evaluated and not reporter.diverged:
        context.progress("evaluating")
        trainer.evaluate()
    losses = [row["numbers"] for row in store.metrics(context.job_id, "train") if "loss" in row["numbers"]]
    evals = [row["numbers"]["loss"] for row in store.metrics(context.job_id, "eval")]
    speeds = sorted(numbers["tokens_per_s"] for numbers in losses if numbers.get("tokens_per_s"))
    return {
        "steps": steps,
        "train_loss_first": losses[0]["loss"] if losses else None,
        "train_loss_last": losses[-1]["loss"] if losses else None,
        "eval_loss": evals[-1] if evals else None,
        "tokens_per_s": speeds[len(speeds) // 2] if speeds else None,
        "peak_gib": peak_gib(),
        "train_tokens": data.tokens,
    }


def _keep_the_best(this: Run, trainer: Counting, reporter: Reporter) -> dict[str, Any]:
    """Goes back to the checkpoint that did best on the eval rows, where the run watches them or has diverged.

    Returns `best_step`, None where the last weights stay. Raises InvalidInput where it has diverged and there is none.
    """
    state, context = trainer.state, this.context
    if state.best_model_checkpoint and (reporter.diverged or _has_fallen_behind(this, state)):
        trainer._load_best_model()  # pyright: ignore[reportPrivateUsage]
        measure = str(trainer.args.metric_for_best_model)
        context.event(
            "info", "best_kept",
            f"The adapter is that of step {state.best_global_step}, whose {measure} of {state.best_metric:.4f} is the "
            f"best; the run ended at step {state.global_step}.",
        )  # fmt: skip
        return {"best_step": state.best_global_step, measure: state.best_metric}
    if reporter.diverged:
        raise InvalidInput(
            "training_diverged", f"{reporter.diverged}.", allowed="Lower learning_rate, to a half or a tenth.",
            next=call("get_status", job_id=context.job_id, detail="detailed"), done="No adapter was stored.",
        )  # fmt: skip
    return {"best_step": None}


def _has_fallen_behind(this: Run, state: TrainerState) -> bool:
    """Whether the run watches its evaluations and the last was not its best. GRPO's are judged by the reward."""
    evaluations = this.context.workspace.store.metrics(this.context.job_id, "eval")
    if not this.arguments["early_stopping_patience"] or not evaluations or state.best_global_step == state.global_step:
        return False
    last = evaluations[-1]["numbers"]
    return last["reward"] < state.best_metric if this.method == "grpo" else last["loss"] > state.best_metric

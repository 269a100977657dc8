"""The trainer's voice and ear: metrics, progress, ETA and alerts into the store, cancels and divergence heard. Heavy.

Guarantees: at every logging step a row of finite numbers; a run whose loss or gradient is lost stops at that step and
saves nothing of it. Does not bring back the best weights: whoever called `train` looks at `diverged` and does.
"""

import math
import time
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as TransformersArguments

from tunewright.pipeline import host
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.store import Row
from tunewright.pipeline.training import alerts
from tunewright.pipeline.training.alerts import HEAD, TAIL, Alert, Seen
from tunewright.pipeline.training.pace import Pace
from tunewright.pipeline.training.run import Data

GIB = 2**30
# transformers' and TRL's names, and ours. A reward function's own mean, rewards/NAME/mean, becomes reward_NAME.
NAMES = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "epoch": "epoch",
    "entropy": "entropy",
    "mean_token_accuracy": "token_accuracy",
    "aux_loss": "aux_loss",
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "logps/chosen": "logp_chosen",
    "logps/rejected": "logp_rejected",
    "nll_loss": "nll",
    "log_odds_chosen": "log_odds",
    "kl": "kl",
    "reward": "reward",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "same_reward_share",
    "completions/mean_length": "completion_length",
    "completions/clipped_ratio": "clipped_share",
}
# An alert near its threshold comes and goes; it counts as over after so many logging steps without it.
QUIET_STEPS = 5
# exp of more is no perplexity that anybody compares.
MAX_EXPONENT = 50

if TYPE_CHECKING:
    _Trainer = Trainer
else:
    _Trainer = object


def peak_gib() -> float:
    """Highest device memory that torch has held in this process, GiB; 0 on a CPU."""
    return round(torch.cuda.max_memory_allocated() / GIB, 2) if torch.cuda.is_available() else 0.0


class Counting(_Trainer):
    """Goes before a TRL trainer: `class X(Counting, SFTTrainer)`. Counts the tokens that this process has trained on.

    TRL's own `num_tokens` stays at zero under Unsloth's packing. The counts stay on the device: reading them at every
    micro-batch would wait for it. Counted where the loss is made, because GRPO's batches have their answers only there.
    """

    _seen: Any = 0
    _with_loss: Any = 0

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if model.training:
            self._seen = self._seen + _real_tokens(inputs)
            self._with_loss = self._with_loss + _loss_tokens(inputs)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    @property
    def tokens_seen(self) -> int:
        """Tokens that the model has read in training, padding not included, those of rejected answers too."""
        return int(self._seen)

    @property
    def tokens_with_loss(self) -> int:
        """Of these, the ones whose prediction was trained."""
        return int(self._with_loss)


def _real_tokens(inputs: dict[str, Any]) -> torch.Tensor:
    # SFT, DPO and KTO; then ORPO, whose pairs each hold the prompt; then GRPO. KTO's KL rows are not trained on.
    for names in (
        ("attention_mask",), ("chosen_attention_mask", "rejected_attention_mask"), ("prompt_mask", "completion_mask"),
    ):  # fmt: skip
        if all(inputs.get(name) is not None for name in names):
            return sum((inputs[name].sum() for name in names), torch.tensor(0))
    # Packed rows lie end to end without padding, and have no mask.
    return torch.tensor(inputs["input_ids"].numel())


def _loss_tokens(inputs: dict[str, Any]) -> torch.Tensor:
    if inputs.get("completion_mask") is not None:
        return inputs["completion_mask"].sum()
    names = [name for name in ("labels", "chosen_labels", "rejected_labels") if inputs.get(name) is not None]
    return sum(((inputs[name] != -100).sum() for name in names), torch.tensor(0))


class Reporter(TrainerCallback):
    """Writes what the trainer logs into the job's metrics; stops it once a cancel was asked for or it has diverged.

    After `train`: `cancelled`; `diverged`, the reason, if it stopped itself; `stopped_early`, if early stopping did.
    """

    def __init__(self, context: JobContext, trainer: Counting, data: Data) -> None:
        self._context, self._trainer, self._data = context, trainer, data
        # transformers would put the average of the earlier losses in the place of one that is not finite.
        trainer.args.logging_nan_inf_filter = False
        self._began = False
        self._pace = Pace(time.monotonic(), 0, 1)
        self._counted = (0, 0)
        # The first HEAD and the newest rows: what alerts.py looks at.
        self._train: list[Row] = []
        self._evaluation: list[Row] = []
        self._facts: dict[str, float] = {}
        # By code, the logging steps since an alert was last seen to hold.
        self._standing: dict[str, int] = {}
        self.cancelled = False
        self.diverged: str | None = None
        self.stopped_early = False

    def on_train_begin(
        self, args: TransformersArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        store, job_id = self._context.workspace.store, self._context.job_id
        # After a resume: the steps after the checkpoint are done again and replace their rows.
        self._train, self._evaluation = (
            [row for row in store.metrics(job_id, split) if row["step"] <= state.global_step]
            for split in ("train", "eval")
        )
        self._facts = facts(self._data, state.max_steps)
        self._context.metric("run", 0, self._facts)
        if self._train:
            self._standing = {alert.code: 0 for alert in alerts.find(self._seen())}
        else:
            self._raise_alerts()

    def on_step_begin(
        self, args: TransformersArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        # Not sooner: what other callbacks tried out before the first step is not counted.
        if not self._began:
            self._began = True
            self._counted = (self._trainer.tokens_seen, self._trainer.tokens_with_loss)
            self._pace = Pace(time.monotonic(), self._counted[0], int(state.logging_steps))

    def on_step_end(self, args: TransformersArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._pace.step_ended(time.monotonic())
        wish = self._context.cancel_wish
        if wish:
            self.cancelled = True
            control.should_training_stop = True
            control.should_save = wish == "keep"
            control.should_evaluate = False

    def on_log(
        self, args: TransformersArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, Any] | None = None, **_: Any,
    ) -> None:  # fmt: skip
        logs = logs or {}
        if "loss" in logs:
            self._log_step(args, state, logs)
            self._stop_if_diverged(state, control)
            if self.diverged is None:
                self._raise_alerts()
        elif "eval_loss" in logs:
            self._log_evaluation(state, logs)

    def on_evaluate(self, args: TransformersArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._pace.evaluated(time.monotonic())
        self._raise_alerts()

    def on_save(self, args: TransformersArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._pace.saved(time.monotonic())

    def on_train_end(self, args: TransformersArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.stopped_early = state.global_step < state.max_steps and not self.cancelled and self.diverged is None
        if self.stopped_early and state.best_metric is not None:
            stop = f"Stopped at step {state.global_step} of {state.max_steps}"
            best = f"the {state.best_metric:.4f} of step {state.best_global_step}"
            why = f"{args.metric_for_best_model} has got no better than {best}"
            self._context.event("info", "stopped_early", f"{stop}: {why}.")

    def _log_step(self, args: TransformersArguments, state: TrainerState, logs: dict[str, Any]) -> None:
        numbers = named(logs)
        seen, with_loss = self._trainer.tokens_seen, self._trainer.tokens_with_loss
        self._pace.logged(time.monotonic(), seen)
        if seen > self._counted[0]:
            numbers["loss_share"] = round((with_loss - self._counted[1]) / (seen - self._counted[0]), 4)
        self._counted = (seen, with_loss)
        numbers |= {"tokens_per_s": round(self._pace.tokens_per_s, 1), "peak_gib": peak_gib()}
        if torch.cuda.is_available():
            numbers["vram_gib"] = round(torch.cuda.memory_reserved() / GIB, 2)
        numbers["host_free_gib"] = host.memory_gib()[0]
        self._context.metric("train", state.global_step, numbers)
        eta_s = round(self._eta_s(args, state), 1)
        self._context.progress("training", state.global_step, state.max_steps, eta_s=eta_s, **numbers)
        self._train.append({"step": state.global_step, "numbers": numbers})
        if len(self._train) > HEAD + 3 * TAIL:
            del self._train[HEAD : -2 * TAIL]

    def _log_evaluation(self, state: TrainerState, logs: dict[str, Any]) -> None:
        numbers = named({key.removeprefix("eval_"): value for key, value in logs.items() if key.startswith("eval_")})
        if "loss" not in numbers:
            self._context.event(
                "warning", "eval_not_finite", f"The eval loss is not a finite number at step {state.global_step}."
            )
            return
        if self._context.spec["method"] == "cpt" and numbers["loss"] < MAX_EXPONENT:
            numbers["perplexity"] = round(math.exp(numbers["loss"]), 4)
        self._context.metric("eval", state.global_step, numbers)
        self._evaluation.append({"step": state.global_step, "numbers": numbers})

    def _seen(self) -> Seen:
        return Seen.of(self._context.spec, self._train, self._evaluation, self._facts)

    def _raise_alerts(self) -> None:
        """Writes an event for each alert that is new, and for each that has been over for QUIET_STEPS."""
        found: dict[str, Alert] = {alert.code: alert for alert in alerts.find(self._seen())}
        for code, alert in found.items():
            if code not in self._standing:
                self._context.event("warning", code, f"{alert.message} {alert.advice}")
            self._standing[code] = 0
        for code in self._standing.keys() - found.keys():
            self._standing[code] += 1
            if self._standing[code] >= QUIET_STEPS:
                del self._standing[code]
                self._context.event("info", "alert_over", f"{code} no longer holds.")

    def _stop_if_diverged(self, state: TrainerState, control: TrainerControl) -> None:
        reason = alerts.divergence(self._seen())
        if reason is None:
            return
        self.diverged = reason
        control.should_training_stop = True
        # The weights are lost: neither a checkpoint nor an evaluation of them is worth anything.
        control.should_save = control.should_evaluate = False
        advice = alerts.divergence_advice(self._seen())
        self._context.event(
            "error", "diverged", f"{reason}. Stopped at step {state.global_step} of {state.max_steps}. {advice}"
        )

    def _eta_s(self, args: TransformersArguments, state: TrainerState) -> float:
        rows_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
        return self._pace.eta_s(
            state.global_step, state.max_steps,
            eval_every=int(state.eval_steps) if args.eval_strategy != "no" else None,
            save_every=int(state.save_steps) if args.save_strategy == "steps" else None,
            eval_steps_worth=len(self._data.evaluation) / rows_per_step,
        )  # fmt: skip


def named(logs: dict[str, Any]) -> dict[str, float]:
    """What is kept of a trainer's logs, by our names. JSON has no NaN: a loss or gradient norm that is not finite is
    left out and `not_finite` is 1; of the other numbers GRPO and KTO leave out themselves what a batch did not have.
    """
    numbers: dict[str, float] = {}
    for key, value in logs.items():
        name = NAMES.get(key)
        if name is None and key.startswith("rewards/") and key.endswith("/mean"):
            name = f"reward_{key.split('/')[1]}"
        if name is None or value is None:
            continue
        if math.isfinite(float(value)):
            numbers[name] = round(float(value), 8)
        elif name in ("loss", "grad_norm"):
            numbers["not_finite"] = 1
    return numbers


def facts(data: Data, max_steps: int) -> dict[str, float]:
    """The numbers of a run that alerts.py compares with."""
    found: dict[str, float] = {"max_steps": max_steps, "host_total_gib": host.memory_gib()[1]}
    if data.count + data.left_out:
        found["truncated_share"] = round(data.truncated / (data.count + data.left_out), 4)
    if torch.cuda.is_available():
        total_gib = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / GIB
        # Below 1 where the run was given a vram_limit_gib.
        found["limit_gib"] = round(total_gib * torch.cuda.get_per_process_memory_fraction(), 2)
    return found

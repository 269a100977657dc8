"""The trainer's voice: metrics, progress and ETA into the store at every logging step, and the ear for a cancel."""

import math
import time
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as TransformersArguments
from trl.trainer.sft_trainer import SFTTrainer

from tunewright.pipeline.context import JobContext

KEPT = ("loss", "grad_norm", "learning_rate", "epoch")
# Steps over which the speed is averaged for the ETA.
WINDOW_STEPS = 20


def peak_gib() -> float:
    """Highest device memory that torch has held in this process, GiB; 0 on a CPU."""
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else 0.0


class CountingTrainer(SFTTrainer):
    """SFTTrainer that counts the real tokens, padding not included, that it has trained on in this process.

    TRL's own `num_tokens` stays at zero under Unsloth's packing.
    """

    tokens_seen = 0

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> torch.Tensor:
        mask = inputs.get("attention_mask")
        self.tokens_seen += int(inputs["input_ids"].numel() if mask is None else mask.sum())
        return super().training_step(model, inputs, *rest, **named)


class Reporter(TrainerCallback):
    """Writes what the trainer logs into the job's metrics and stops it at the next step once a cancel was asked for."""

    def __init__(self, context: JobContext, trainer: CountingTrainer) -> None:
        self._context, self._trainer = context, trainer
        # Of the last steps: when each ended and how many tokens had been seen by then.
        self._ends: list[tuple[float, int]] = []
        self.cancelled = False
        self._diverged = False

    def on_step_end(self, args: TransformersArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._ends = [*self._ends, (time.monotonic(), self._trainer.tokens_seen)][-WINDOW_STEPS - 1 :]
        wish = self._context.cancel_wish
        if wish:
            self.cancelled = True
            control.should_training_stop = True
            control.should_save = wish == "keep"
            control.should_evaluate = False

    def on_log(
        self, args: TransformersArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, float] | None = None, **_: Any,
    ) -> None:  # fmt: skip
        logs = logs or {}
        if "loss" in logs:
            # JSON has no NaN: a number that is not finite is left out, and said.
            finite = {key: float(logs[key]) for key in KEPT if key in logs and math.isfinite(float(logs[key]))}
            numbers = {key: round(value, 8) for key, value in finite.items()}
            if "loss" not in numbers and not self._diverged:
                self._diverged = True
                self._context.event(
                    "warning", "loss_not_finite",
                    f"The loss is {logs['loss']} at step {state.global_step}: the run has diverged. "
                    "Cancel it and lower learning_rate.",
                )  # fmt: skip
            numbers |= {"tokens_per_s": self._tokens_per_s(), "peak_gib": peak_gib()}
            self._context.metric("train", state.global_step, numbers)
            self._context.progress("training", state.global_step, state.max_steps, eta_s=self._eta_s(state), **numbers)
        elif math.isfinite(float(logs.get("eval_loss", math.nan))):
            self._context.metric("eval", state.global_step, {"loss": round(float(logs["eval_loss"]), 8)})

    def _window(self) -> tuple[float, int, int]:
        """Seconds, tokens and steps from the first to the last step that is remembered; zeros before the second."""
        if len(self._ends) < 2:
            return 0.0, 0, 0
        (began, before), (ended, after) = self._ends[0], self._ends[-1]
        return ended - began, after - before, len(self._ends) - 1

    def _eta_s(self, state: TrainerState) -> float:
        seconds, _, steps = self._window()
        return round((state.max_steps - state.global_step) * seconds / steps, 1) if steps else 0.0

    def _tokens_per_s(self) -> float:
        seconds, tokens, _ = self._window()
        return round(tokens / seconds, 1) if seconds else 0.0

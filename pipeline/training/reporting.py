"""The trainer's voice: metrics, progress and ETA into the store at every logging step, and the ear for a cancel."""

import time
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as TransformersArguments

from tunewright.pipeline.context import JobContext

KEPT = ("loss", "grad_norm", "learning_rate", "epoch", "num_tokens")
# Steps over which the speed is averaged for the ETA.
WINDOW_STEPS = 20


def peak_gib() -> float:
    """Highest device memory that torch has held in this process, GiB; 0 on a CPU."""
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else 0.0


class Reporter(TrainerCallback):
    """Writes what the trainer logs into the job's metrics and stops it at the next step once a cancel was asked for."""

    def __init__(self, context: JobContext) -> None:
        self._context = context
        self._ends: list[float] = []
        self._tokens: list[float] = []
        self.cancelled = False

    def on_step_end(self, args: TransformersArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._ends = [*self._ends, time.monotonic()][-WINDOW_STEPS - 1 :]
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
            numbers = {key: round(float(logs[key]), 8) for key in KEPT if key in logs}
            numbers |= self._speed(state, float(logs.get("num_tokens", 0)), args.logging_steps)
            self._context.metric("train", state.global_step, numbers)
            self._context.progress("training", state.global_step, state.max_steps, eta_s=self._eta_s(state), **numbers)
        elif "eval_loss" in logs:
            self._context.metric("eval", state.global_step, {"loss": round(float(logs["eval_loss"]), 8)})

    def _step_s(self) -> float:
        return (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1) if len(self._ends) > 1 else 0.0

    def _eta_s(self, state: TrainerState) -> float:
        return round((state.max_steps - state.global_step) * self._step_s(), 1)

    def _speed(self, state: TrainerState, total_tokens: float, logging_steps: float) -> dict[str, float]:
        """Tokens per second of real tokens, padding not counted, over the window."""
        self._tokens = [*self._tokens, total_tokens][-int(WINDOW_STEPS // max(1, logging_steps)) - 1 :]
        steps = (len(self._tokens) - 1) * max(1, logging_steps)
        seconds = self._step_s() * steps
        speed = (self._tokens[-1] - self._tokens[0]) / seconds if seconds else 0.0
        return {"tokens_per_s": round(speed, 1), "peak_gib": peak_gib()}

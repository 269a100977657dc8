"""Device and host memory of a run in its worker: what it may take, how much it took, and whether it ran out. Heavy."""

import gc
import random
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from tunewright.pipeline.backend import on_gpu

import numpy as np
import torch
from bitsandbytes.optim.optimizer import GlobalOptimManager
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as TransformersArguments
from unsloth_zoo import gradient_checkpointing

from tunewright.pipeline.planning.machine import CUDA_CONTEXT_GIB
from tunewright.pipeline.training.reporting import peak_gib
from tunewright.pipeline.training.run import Run

GIB = 2**30
# How torch, cuBLAS and bitsandbytes say it where they raise no OutOfMemoryError.
PHRASES = ("out of memory", "not enough memory", "can't allocate memory", "cublas_status_alloc_failed")


def limit(run: Run) -> None:
    """Holds this process to the run's `vram_limit_gib`: beyond it torch raises OutOfMemoryError.

    The CUDA context, which torch does not count, is within the limit.
    """
    if not on_gpu():
        return
    wanted_gib, total = run.arguments["vram_limit_gib"], torch.cuda.get_device_properties(0).total_memory
    share = max(0.0, wanted_gib - CUDA_CONTEXT_GIB) * GIB / total if wanted_gib else 1.0
    # Also without a limit: run in the server's process, an earlier job may have set one.
    torch.cuda.set_per_process_memory_fraction(min(1.0, share))


def ran_out(error: BaseException) -> bool:
    """Whether `error` means that device or host memory was not enough."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in PHRASES)


def release() -> None:
    """Gives back what the failed try held, once nobody refers to it."""
    # transformers tells it of every embedding whose optimizer has 8-bit states, and it never forgets one.
    GlobalOptimManager.get_instance().initialize()
    gc.collect()
    if on_gpu():
        # Names its buffers only once something was offloaded.
        if hasattr(gradient_checkpointing, "GPU_BUFFERS"):
            gradient_checkpointing.reset_unsloth_gradient_checkpointing_buffers()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@contextmanager
def same_chance() -> Generator[None]:
    """Leaves every random state after the block as it was before."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state() if on_gpu() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)


class Rehearsal(TrainerCallback):
    """Runs the micro-batch of the longest rows, forward and backward, before the first step: a run that cannot hold it
    runs out of memory in its first seconds, not in its ninth hour. Changes nothing that training sees.
    """

    def __init__(self, run: Run, trainer: Any) -> None:
        self._run, self._trainer = run, trainer

    def on_train_begin(
        self, args: TransformersArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        trainer = self._trainer
        batch = longest(trainer.train_dataset, trainer.args.per_device_train_batch_size)
        # The trainer's loop sets it before every step.
        trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps
        with same_chance():
            inputs = trainer.data_collator([trainer.train_dataset[row] for row in batch])
            trainer.training_step(trainer.model_wrapped, inputs)
        trainer.model.zero_grad(set_to_none=True)
        for numbers in trainer._metrics.values():
            numbers.clear()
        if on_gpu():
            planned = (self._run.context.spec.get("plan") or {}).get("peak_gib")
            against = f"; planned were {planned} GiB" if planned else ""
            self._run.context.event(
                "info", "rehearsed", f"The longest micro-batch takes {peak_gib()} GiB of VRAM{against}."
            )


def longest(rows: Any, count: int) -> list[int]:
    """Numbers of the `count` rows that hold most tokens, over all their columns of ids."""
    columns = [name for name in rows.column_names if name.endswith("_ids")]
    lengths = np.zeros(len(rows), dtype=np.int64)
    for name in columns:
        lengths += np.fromiter((len(ids) for ids in rows[name]), np.int64, len(rows))
    return np.argsort(-lengths, kind="stable")[:count].tolist()

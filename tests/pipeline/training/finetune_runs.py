"""Fine-tunes the toy as jobs do, some with a planted fault, and writes down what came of it.

Run as `python finetune_runs.py HOME OUT`, a process of its own for Unsloth's sake: HOME is a data home with the trained
toy, OUT becomes JSON by name of the run.
"""

import json
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

# Before transformers.
import tunewright.pipeline.backend  # noqa: F401

import torch
from bitsandbytes.optim.optimizer import GlobalOptimManager

from tunewright.pipeline import files, jobs, worker
from tunewright.pipeline.data import splits
from tunewright.pipeline.data.rows import Kind, Record
from tunewright.pipeline.ids import new_id
from tunewright.pipeline.training import adapter, memory
from tunewright.pipeline.training.arguments import TARGET_MODULES, TrainingArguments
from tunewright.pipeline.training.run import LOWERED
from tunewright.pipeline.training.supervised import SupervisedTrainer
from tunewright.pipeline.workspace import Workspace

ANSWERS = {
    "What does the shop sell?": "We sell tea, cups and pots.",
    "When is the shop open?": "We open at nine and close at six.",
    "Who runs the shop?": "Mina and Tom run the shop.",
    "Where is the shop?": "The shop is in Oslo, by the river.",
}
CHOSEN: dict[str, Any] = {
    "load_in_4bit": False, "max_seq_length": 96, "packing": False, "batch_size": 4, "gradient_accumulation": 1,
    "gradient_checkpointing": "none", "precision": "fp32", "learning_rate": 3e-3, "epochs": 1.0, "lora_rank": 8,
    "lr_scheduler": "linear", "warmup_ratio": 0.05,
    "lora_alpha": 16, "optimizer": "adamw_torch", "target_modules": TARGET_MODULES, "early_stopping_patience": 0,
    "max_steps": 8, "save_steps": 2, "eval_steps": 100,
}  # fmt: skip
STEPS = CHOSEN["max_steps"]


def conversations() -> list[Record]:
    forms = ("{}", "Please tell me: {}", "Hello! {}")
    return [
        Record("sft", [{"role": "user", "content": form.format(question)}, {"role": "assistant", "content": answer}])
        for question, answer in ANSWERS.items()
        for form in forms
    ]


def texts(first: int, count: int) -> list[Record]:
    """A small language of its own: numbered entries of a log. Some are longer than the sequence."""
    return [
        Record("text", text=" ".join(f"Entry {n}: the kiln was lit at {n % 7 + 5} and held." for n in range(i, i + 9)))
        for i in range(first, first + count)
    ]


def add(workspace: Workspace, kind: Kind, train: list[Record], evaluation: list[Record]) -> str:
    folder = workspace.home.datasets / new_id("dataset", kind)
    folder.mkdir()
    splits.write(folder / "train.parquet", kind, train)
    splits.write(folder / "eval.parquet", kind, evaluation)
    document = {"path": str(folder), "kind": kind, "sha256": "0" * 64}
    workspace.store.add_artifact(folder.name, "dataset", kind, document, parents=[])
    return folder.name


def run(
    workspace: Workspace, dataset_id: str, method: str = "sft", *, died_of: str | None = None, **changed: Any
) -> dict[str, Any]:
    """A job's end: its state, result, error, events, losses and what its adapter holds. Its last worker `died_of`."""
    arguments = TrainingArguments(**(CHOSEN | changed)).model_dump()
    spec = {
        "dataset_id": dataset_id, "model": "toy", "method": method, "name": "x", "arguments": arguments,
        "continue_from": None,
    }  # fmt: skip
    job_id = new_id("job", "x")
    with files.new_folder(jobs.folder(workspace, job_id)) as new:
        files.write_json(new / "spec.json", spec)
    workspace.store.execute(
        "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at) VALUES (?,?,?,?,?,?)",
        job_id, "finetune", "queued", True, json.dumps(spec), time.time(),
    )  # fmt: skip
    if died_of:
        workspace.store.add_event(job_id, "warning", died_of, "The worker died.")
    state = worker.run_job(workspace, job_id)
    row, store = workspace.store.job(job_id), workspace.store
    result: dict[str, Any] = row["result"] or {}
    lowered = jobs.folder(workspace, job_id) / LOWERED
    return {
        "job_id": job_id,
        "state": state,
        "result": result,
        "error": row["error"],
        "events": [[event["code"], event["message"]] for event in store.events(job_id, 100)],
        "train": [[m["step"], m["numbers"].get("loss")] for m in store.metrics(job_id, "train")],
        "eval": [[m["step"], m["numbers"].get("loss")] for m in store.metrics(job_id, "eval")],
        "loss_share": [m["numbers"].get("loss_share") for m in store.metrics(job_id, "train")],
        "lowered": files.read_json(lowered) if lowered.is_file() else None,
        "weights_sum": _weights_sum(workspace, result.get("adapter_id")),
        "adapters": [a["id"] for a in store.artifacts("adapter") if a["job_id"] == job_id],
        "folder": sorted(entry.name for entry in jobs.folder(workspace, job_id).iterdir()),
    }


def _weights_sum(workspace: Workspace, adapter_id: str | None) -> float | None:
    if adapter_id is None:
        return None
    from safetensors.torch import load_file

    tensors = load_file(workspace.home.adapters / adapter_id / "adapter_model.safetensors")
    return sum(float(tensor.double().abs().sum()) for tensor in tensors.values())


@contextmanager
def step_that(act: Any) -> Iterator[None]:
    """`act(trainer, inputs, loss)` stands between every micro-batch's backward pass and its loss; returns a loss."""
    usual = SupervisedTrainer.training_step

    def training_step(self: Any, model: Any, inputs: Any, *rest: Any, **named: Any) -> torch.Tensor:
        return act(self, inputs, usual(self, model, inputs, *rest, **named))

    with mock.patch.object(SupervisedTrainer, "training_step", training_step):
        yield


def too_large_for(rows: int, from_step: int) -> Any:
    def act(trainer: Any, inputs: Any, loss: torch.Tensor) -> torch.Tensor:
        if trainer.state.global_step >= from_step and len(inputs["input_ids"]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss

    return act


class Writer:
    """In the place of TensorBoard's: what it is told goes into a file."""

    def __init__(self, log_dir: str) -> None:
        Path(log_dir).mkdir(parents=True)
        self._file = Path(log_dir) / "told"

    def add_scalar(self, name: str, value: float, step: int) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(f"{name} {value} {step}\n")

    def add_text(self, name: str, text: str) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


@contextmanager
def tensorboard() -> Iterator[None]:
    there = mock.patch("transformers.integrations.integration_utils.is_tensorboard_available", lambda: True)
    with there, mock.patch.dict(sys.modules, tensorboardX=SimpleNamespace(SummaryWriter=Writer)):
        yield


def lost_at(step: int) -> Any:
    def act(trainer: Any, inputs: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss * float("nan") if trainer.state.global_step >= step else loss

    return act


def embeddings_are_forgotten() -> bool:
    """Whether `release` lets go of what transformers registers for 8-bit optimizers."""
    embedding = torch.nn.Embedding(2, 2)
    GlobalOptimManager.get_instance().register_module_override(embedding, "weight", {"optim_bits": 32})
    held = weakref.ref(embedding)
    del embedding
    was_held = held() is not None
    memory.release()
    return was_held and held() is None


def stopped_early_and_killed(workspace: Workspace, dataset_id: str, **changed: Any) -> dict[str, Any]:
    """A run that ends before its adapter is stored, and what it does when it is taken up again."""
    with mock.patch.object(adapter, "save", side_effect=ConnectionError("killed here")):
        first = run(workspace, dataset_id, **changed)
    jobs.move(workspace, first["job_id"], (jobs.State.FAILED,), jobs.State.QUEUED)
    state, store = worker.run_job(workspace, first["job_id"]), workspace.store
    row = store.job(first["job_id"])
    return {
        "first": first, "state": state, "result": row["result"], "error": row["error"],
        "steps": [m["step"] for m in store.metrics(row["id"], "train")],
    }  # fmt: skip


def main(home: str, out: str) -> None:
    workspace = Workspace.open(home)
    rows = conversations()
    chats = add(workspace, "sft", rows, [])
    watched = add(workspace, "sft", rows[:8], rows[8:])
    # The answers of the held-out rows are other ones: what is learnt from the rest makes them less likely.
    odd = [Record("sft", [row.messages[0], {"role": "assistant", "content": "no " * 9}]) for row in rows[:4]]
    misled = add(workspace, "sft", rows, odd)
    raw = add(workspace, "text", texts(0, 24), texts(100, 4))
    facts: dict[str, Any] = {"plain": run(workspace, chats, lora_dropout=0.1)}
    with mock.patch.object(memory.Rehearsal, "on_train_begin", lambda *_, **__: None):
        facts["without rehearsal"] = run(workspace, chats, lora_dropout=0.1)
    with step_that(too_large_for(rows=1, from_step=5)):
        facts["out of memory"] = run(workspace, chats)
    with step_that(too_large_for(rows=2, from_step=0)):
        facts["too large from the start"] = run(workspace, chats, max_steps=2)
    with step_that(too_large_for(rows=0, from_step=0)):
        facts["never fits"] = run(workspace, chats)
    with step_that(lost_at(5)):
        facts["diverged"] = run(workspace, chats)
        facts["diverged with a best"] = run(workspace, watched, eval_steps=2)
    facts["watched"] = run(workspace, misled, early_stopping_patience=2, eval_steps=2, max_steps=40, save_steps=99)
    facts["killed"] = stopped_early_and_killed(
        workspace, misled, early_stopping_patience=2, eval_steps=2, max_steps=40, save_steps=2
    )
    with tensorboard():
        facts["tensorboard"] = run(workspace, chats, max_steps=1, report_to=["tensorboard"])
    newer = ("precision", "optimizer", "gradient_checkpointing", "early_stopping_patience")
    facts["of an older version"] = run(workspace, chats, max_steps=2, **dict.fromkeys(newer))
    facts["tiny rate"] = run(workspace, chats, max_steps=2, learning_rate=1e-8, lr_scheduler="polynomial")
    facts["all tokens"] = run(workspace, chats, train_on="all", max_steps=2)
    facts["noisy"] = run(workspace, chats, neftune_alpha=10, lora_dropout=0.1)
    facts["packed"] = run(workspace, chats, packing=True, max_steps=2)
    facts["texts"] = run(workspace, raw, "cpt", max_steps=24, eval_steps=8, save_steps=8, embedding_learning_rate=3e-4)
    facts["killed for host memory"] = run(workspace, chats, max_steps=2, died_of=jobs.HOST_MEMORY_OUT)
    facts["killed otherwise"] = run(workspace, chats, max_steps=2, died_of=jobs.INTERRUPTED)
    facts["embeddings"] = {"forgotten": embeddings_are_forgotten()}
    Path(out).write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A job's checkpoints: which is the newest whole one, and going on from it.

A kill while one is written leaves a torn one, to be removed: a checkpoint is whole when every file of it is there and
none is cut short. Does not guarantee the bytes inside: a power cut can leave a file of the right length with holes.
"""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

STATE = "trainer_state.json"
# torch.save writes zip files, whose directory comes last: one that was cut short has none.
TORCH_FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
# An adapter's, or where all weights or whole layers are trained, the model's.
WEIGHTS = ("adapter_model.safetensors", "model.safetensors")
SHARDS = "model.safetensors.index.json"


def folder(job_folder: Path) -> Path:
    return job_folder / "checkpoints"


def newest(job_folder: Path) -> Path | None:
    """The whole checkpoint with the most steps, or None; torn ones are deleted. For the job's own worker alone."""
    for checkpoint in _by_steps(job_folder):
        if _is_whole(checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint, ignore_errors=True)
    return None


def last(job_folder: Path) -> Path | None:
    """As `newest`, but deletes nothing: also for who looks on while a worker writes."""
    return next(filter(_is_whole, _by_steps(job_folder)), None)


def steps(checkpoint: Path) -> int:
    """Optimizer steps done, by the folder's name."""
    tail = checkpoint.name.rpartition("-")[2]
    return int(tail) if tail.isdigit() else -1


def written_at(checkpoint: Path) -> float:
    """When it was complete, seconds since the epoch."""
    return (checkpoint / STATE).stat().st_mtime


def train(trainer: Any, checkpoint: Path | None) -> None:
    """`trainer.train`, from `checkpoint` where there is one.

    Where the checkpoint is of the run's last step (the job died afterwards), it is only loaded: transformers would
    train one step more than asked for, unless that step ends an epoch, and on past where early stopping had stopped.
    """
    if checkpoint is None:
        trainer.train()
        return
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    if state["global_step"] < state["max_steps"] and not _has_stopped_early(state):
        trainer.train(resume_from_checkpoint=str(checkpoint))
        return
    from transformers import TrainerState

    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = TrainerState.load_from_json(str(checkpoint / STATE))


def _has_stopped_early(state: dict[str, Any]) -> bool:
    stopping = state.get("stateful_callbacks", {}).get("EarlyStoppingCallback")
    if not stopping:
        return False
    return stopping["attributes"]["early_stopping_patience_counter"] >= stopping["args"]["early_stopping_patience"]


def _by_steps(job_folder: Path) -> list[Path]:
    return sorted(folder(job_folder).glob("checkpoint-*"), key=steps, reverse=True)


def _is_whole(checkpoint: Path) -> bool:
    try:
        # The trainer writes it last.
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        return (
            state.get("global_step") == steps(checkpoint)
            and all(zipfile.is_zipfile(checkpoint / name) for name in TORCH_FILES)
            and _has_whole_weights(checkpoint)
        )
    except (OSError, ValueError):
        return False


def _has_whole_weights(checkpoint: Path) -> bool:
    shards = checkpoint / SHARDS
    if shards.is_file():
        names = set(json.loads(shards.read_text(encoding="utf-8"))["weight_map"].values())
    else:
        names = {name for name in WEIGHTS if (checkpoint / name).is_file()}
    return bool(names) and all(_is_whole_safetensors(checkpoint / name) for name in names)


def _is_whole_safetensors(file: Path) -> bool:
    """Whether the file is as long as its header says: 8 bytes with the header's length, the header, the tensors."""
    size = file.stat().st_size
    with file.open("rb") as data:
        length = int.from_bytes(data.read(8), "little")
        if not 0 < length <= size - 8:
            return False
        header: dict[str, Any] = json.loads(data.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return size == 8 + length + max(ends, default=0)

"""A job's checkpoints: which is the newest whole one. A kill while one is written leaves a torn one, to be removed."""

import json
import shutil
from pathlib import Path

# The trainer writes trainer_state.json last.
NEEDED = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")


def folder(job_folder: Path) -> Path:
    return job_folder / "checkpoints"


def newest(job_folder: Path) -> Path | None:
    """The whole checkpoint with the most steps, or None; torn ones are deleted."""
    found = sorted(folder(job_folder).glob("checkpoint-*"), key=_steps, reverse=True)
    for checkpoint in found:
        if _is_whole(checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint, ignore_errors=True)
    return None


def _steps(checkpoint: Path) -> int:
    tail = checkpoint.name.rpartition("-")[2]
    return int(tail) if tail.isdigit() else -1


def _is_whole(checkpoint: Path) -> bool:
    if not all((checkpoint / name).is_file() for name in NEEDED):
        return False
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except ValueError:
        return False
    return state.get("global_step") == _steps(checkpoint)

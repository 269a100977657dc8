"""Checkpoints as the trainer leaves them, with little in them: real safetensors and archives like torch.save's."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from tunewright.pipeline.training import checkpoints

ADAPTER = "adapter_model.safetensors"


def write_checkpoint(job_folder: Path, steps: int, weights: tuple[str, ...] = (ADAPTER,)) -> Path:
    """Writes a whole checkpoint after so many steps; returns its folder."""
    folder = checkpoints.folder(job_folder) / f"checkpoint-{steps}"
    folder.mkdir(parents=True)
    for name in weights:
        (folder / name).write_bytes(save({"a": np.ones((4, 4), np.float32), "b": np.zeros(3, np.int8)}))
    for name in checkpoints.TORCH_FILES:
        (folder / name).write_bytes(_archive())
    (folder / checkpoints.STATE).write_text(json.dumps({"global_step": steps}), encoding="utf-8")
    return folder


def _archive() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as written:
        written.writestr("archive/data.pkl", b"x" * 100)
    return data.getvalue()

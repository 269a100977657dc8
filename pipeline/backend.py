"""Unsloth, imported the way it must be: before transformers, trl and peft, once per process, with its switches set.

Every heavy module imports this one first. Importing it takes 12 to 22 s, prints banners on stdout and rewrites the
trainers of trl in place, so the server never does.
"""

import gc
import os
import sys
from pathlib import Path

from tunewright.pipeline import gpu

# Compiling costs more than it gives on a CPU: a 30-step toy run went from 47 to 12 s without it.
if not gpu.indexes():
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # OpenMP's threads spin while they wait for each other. Two trainings on the same two cores then reached 430
    # tokens/s each; with waiting threads asleep 2,600, and alone no less than before.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Unsloth writes its generated trainers into the current folder unless told otherwise.
os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(Path.home() / ".cache" / "tunewright" / "unsloth_compiled"))
# Unsloth would fetch and install llama.cpp by itself; ours is pinned (pipeline/exporting/toolchain.py).
os.environ.setdefault("UNSLOTH_AUTO_INSTALL", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

if "transformers" in sys.modules and "unsloth" not in sys.modules:
    raise ImportError("tunewright.pipeline.backend must be imported before transformers")

# Half a million objects are made by these imports and live as long as the process. Collecting garbage among them, while
# they are made and ever after, took a third of a toy fine-tune's CPU time (54 s, 34 without; the same bits).
gc.disable()
import torch
import unsloth
from unsloth import FastLanguageModel

gc.freeze()
gc.enable()

__all__ = ["FastLanguageModel", "on_gpu", "unsloth"]


def on_gpu() -> bool:
    """Whether this process trains on a GPU."""
    return torch.cuda.is_available()

"""Unsloth, imported the way it must be: before transformers, trl and peft, once per process, with its switches set.

Every heavy module imports this one first. Importing it takes 12 to 22 s, prints banners on stdout and rewrites the
trainers of trl in place, so the server never does.
"""

import os
import sys
from pathlib import Path

from tunewright.pipeline import heavy

# Unsloth writes its generated trainers into the current folder unless told otherwise.
os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(Path.home() / ".cache" / "tunewright" / "unsloth_compiled"))
# Unsloth would fetch and install llama.cpp by itself; ours is pinned (pipeline/exporting/toolchain.py).
os.environ.setdefault("UNSLOTH_AUTO_INSTALL", "0")

if "transformers" in sys.modules and "unsloth" not in sys.modules:
    raise ImportError("tunewright.pipeline.backend must be imported before transformers")

with heavy.imports():
    import torch
    import unsloth
    from unsloth import FastLanguageModel

__all__ = ["FastLanguageModel", "on_gpu", "unsloth"]


def on_gpu() -> bool:
    """Whether this process trains on a GPU."""
    return torch.cuda.is_available()

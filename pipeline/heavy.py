"""Imported before PyTorch, and before the libraries on it, by what imports them: what they read as they are imported.

Light itself. Sets variables that the caller left open; `imports` is the block to import in.
"""

import gc
import os
from collections.abc import Generator
from contextlib import contextmanager

from tunewright.pipeline import gpu

if not gpu.indexes():
    # Compiling costs more than it gives on a CPU: a 30-step toy run went from 47 to 12 s without it. And bitsandbytes,
    # which peft imports, would load the compiler at once: 3 s of a processor for every answer's or export's process.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # OpenMP's threads spin while they wait for each other. Two trainings on the same two cores then reached 430
    # tokens/s each; with waiting threads asleep 2,600, and alone no less than before. Answers: 10 tokens/s, not 100.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@contextmanager
def imports() -> Generator[None]:
    """What is imported in the block is never searched for garbage.

    These imports make half a million objects that live as long as the process. Collecting garbage among them, while
    they are made and ever after, took a third of a toy fine-tune's CPU time (54 s, 34 without; the same bits).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()

"""What a process that runs models must set before it imports torch. Light."""

import os

from tunewright.pipeline import gpu


def prepare() -> None:
    """Sets environment variables that are not set yet; without effect once torch or tokenizers are imported."""
    if not gpu.indexes():
        # Waiting threads that spin take the cores from whatever else runs: 10 tokens/s came instead of 100.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

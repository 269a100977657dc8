"""What the NVIDIA driver says of the GPUs, without torch: through NVML, so the light server can ask.

pynvml is imported when first asked: it takes 50 ms, a twentieth of the server's start.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

BF16_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Gpu:
    index: int
    name: str
    total_gib: float
    free_gib: float
    compute_capability: tuple[int, int]
    driver: str

    @property
    def has_bf16(self) -> bool:
        """Ampere and newer; T4 and V100 train in fp16."""
        return self.compute_capability >= BF16_CAPABILITY


@contextmanager
def _nvml() -> Generator[bool]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield False
        return
    try:
        yield True
    finally:
        pynvml.nvmlShutdown()


def indexes() -> list[int]:
    """Numbers of the GPUs that this process may use: all, or those that `CUDA_VISIBLE_DEVICES` lists by number."""
    import pynvml

    with _nvml() as present:
        count = pynvml.nvmlDeviceGetCount() if present else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return list(range(count))
    return [int(part) for part in visible.split(",") if part.strip().isdigit() and int(part) < count]


def find() -> list[Gpu]:
    """The usable GPUs with their free memory now."""
    wanted = indexes()
    if not wanted:
        return []
    import pynvml

    with _nvml() as present:
        if not present:
            return []
        driver = pynvml.nvmlSystemGetDriverVersion()
        found: list[Gpu] = []
        for index in wanted:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            found.append(
                Gpu(
                    index,
                    pynvml.nvmlDeviceGetName(handle),
                    round(int(memory.total) / 2**30, 2),
                    round(int(memory.free) / 2**30, 2),
                    pynvml.nvmlDeviceGetCudaComputeCapability(handle),
                    driver,
                )
            )
        return found

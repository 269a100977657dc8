"""What a fine-tune may use of this machine: one GPU, or the CPU with its memory. Light (NVML)."""

import os
from dataclasses import dataclass

import psutil

from tunewright.pipeline import gpu, host

GIB = 2**30
# The CUDA context, its libraries and kernels take about half a GiB that no allocator shows.
CUDA_CONTEXT_GIB = 0.6
# Of the free host memory; the rest is for the trainer's own libraries and everybody else.
HOST_SHARE = 0.8


@dataclass(frozen=True)
class Machine:
    """`limit_gib` is what a plan may use: of the GPU, or without one of the host's memory.

    `compute_capability` is (0, 0) without a GPU.
    """

    name: str
    is_gpu: bool
    limit_gib: float
    total_gib: float
    compute_capability: tuple[int, int]
    host_free_gib: float
    cores: int

    @property
    def has_bf16(self) -> bool:
        return self.compute_capability >= gpu.BF16_CAPABILITY


def this_machine(vram_limit_gib: float | None) -> Machine:
    """The GPU that has least to offer (a job takes the first that is free), or the CPU.

    What Tunewright's own processes hold counts as free: they leave, or a new job waits for them.
    """
    free_gib, total_gib = host.memory_gib()
    cores = os.cpu_count() or 1
    cards = gpu.find()
    if not cards:
        limit = min(HOST_SHARE * free_gib, vram_limit_gib or free_gib)
        return Machine("cpu", False, round(limit, 2), total_gib, (0, 0), free_gib, cores)
    own = _held_by_tunewright()
    card = min(cards, key=lambda card: card.free_gib + own.get(card.index, 0.0))
    free = min(card.total_gib, card.free_gib + own.get(card.index, 0.0)) - CUDA_CONTEXT_GIB
    limit = max(0.0, min(free, vram_limit_gib - CUDA_CONTEXT_GIB if vram_limit_gib else free))
    return Machine(card.name, True, round(limit, 2), card.total_gib, card.compute_capability, free_gib, cores)


def _held_by_tunewright() -> dict[int, float]:
    """GiB by GPU that this user's workers and chat host hold, where the driver tells."""
    import pynvml

    held: dict[int, float] = {}
    pynvml.nvmlInit()
    try:
        for index in gpu.indexes():
            try:
                processes = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(index))
            except pynvml.NVMLError:  # WSL and virtual GPUs do not list them, nor does a GPU in MIG mode to everybody
                continue
            for process in processes:
                # None where the driver does not tell it (in containers, on Windows).
                if process.usedGpuMemory and _is_tunewright(process.pid):
                    held[index] = held.get(index, 0.0) + process.usedGpuMemory / GIB
    finally:
        pynvml.nvmlShutdown()
    return held


def _is_tunewright(pid: int) -> bool:
    try:
        return any(part.startswith("tunewright.pipeline.") for part in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False

"""The device lease: one job, or the chat host, per GPU at a time; the CPU counts as one device where there is no GPU.

A lease is a file lock that the kernel frees when its holder dies. Waiting workers stand in submission order and have
imported nothing heavy, so waiting costs little memory.
"""

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from filelock import FileLock, Timeout

from tunewright.pipeline import gpu, jobs
from tunewright.pipeline.workspace import Workspace

POLL_S = 0.25


@dataclass(frozen=True)
class Device:
    """A device of this machine; `index` is the GPU's number as the driver counts, None for the CPU, and `mig` the UUID
    of the instance where the device is a part of that GPU.
    """

    index: int | None
    mig: str | None = None

    @property
    def name(self) -> str:
        if self.index is None:
            return "cpu"
        return f"gpu-{self.index}-{self.mig}" if self.mig else f"gpu-{self.index}"

    def make_visible(self) -> None:
        """Lets this process see only this device. Before torch is imported, else without effect."""
        if self.index is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.mig or str(self.index)
            # CUDA itself would count the fastest card first, the driver and nvidia-smi by the slot.
            os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"


def devices() -> list[Device]:
    """The devices that jobs may take: every visible GPU, else the CPU."""
    return [Device(index, mig) for index, mig in gpu.visible()] or [Device(None)]


def try_take(workspace: Workspace, device: Device) -> FileLock | None:
    """The lock of `device`, held, or None where another process holds it. Release it with `.release()`."""
    lock = FileLock(workspace.home.root / f"{device.name}.lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def is_wanted(workspace: Workspace) -> bool:
    """Whether a job waits for a device: the chat host then makes room."""
    return bool(workspace.store.rows("SELECT 1 FROM jobs WHERE state='queued' AND needs_device=1 LIMIT 1"))


def _is_first(workspace: Workspace, job_id: str) -> bool:
    waiting = workspace.store.rows("SELECT * FROM jobs WHERE state='queued' AND needs_device=1 ORDER BY seq")
    for row in waiting:
        if row["id"] == job_id:
            return True
        if jobs.is_worker_alive(row):
            return False
    return True


@contextmanager
def hold_device(workspace: Workspace, job_id: str, check_cancelled: Callable[[], None]) -> Generator[Device]:
    """Waits until it is this job's turn and a device is free, then holds it for the block.

    `check_cancelled` is called while waiting; what it raises ends the wait.
    """
    candidates = devices()
    told = False
    while True:
        check_cancelled()
        if _is_first(workspace, job_id):
            for device in candidates:
                lock = try_take(workspace, device)
                if lock is not None:
                    try:
                        yield device
                    finally:
                        lock.release()
                    return
        if not told:
            workspace.store.add_event(job_id, "info", "waiting", "Waiting for the device; jobs run in order.")
            told = True
        time.sleep(POLL_S)

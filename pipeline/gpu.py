"""What the NVIDIA driver says of the GPUs, without torch: through NVML, so the light server can ask.

Numbers are the driver's (by PCI slot, as nvidia-smi shows them). A GPU in MIG mode is used through those of its
instances that `CUDA_VISIBLE_DEVICES` lists. pynvml is imported when first asked: it takes 50 ms, a twentieth of the
server's start.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

BF16_CAPABILITY = (8, 0)
# A GPU's number and, where only one of its MIG instances is meant, that one's UUID.
Visible = tuple[int, str | None]


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
    """Numbers of the GPUs that this process may use; empty where there is none."""
    return [index for index, _ in visible()]


def visible() -> list[Visible]:
    """The GPUs, or parts of them, that this process may use: all, or those that `CUDA_VISIBLE_DEVICES` lists."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    with _nvml() as present:
        if not present:
            return []
        import pynvml

        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        if listed is None:
            return [(index, None) for index in range(len(handles))]
        by_uuid: dict[str, Visible] = {}
        for index, handle in enumerate(handles):
            by_uuid[pynvml.nvmlDeviceGetUUID(handle)] = (index, None)
            by_uuid |= {uuid: (index, uuid) for uuid in _mig_uuids(handle)}
    return select(listed, len(handles), by_uuid)


def _mig_uuids(handle: Any) -> list[str]:
    import pynvml

    try:
        count = pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except pynvml.NVMLError:  # a card or a driver that knows no MIG
        return []
    uuids: list[str] = []
    for number in range(count):
        try:
            uuids.append(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)))
        except pynvml.NVMLError:  # no instance of this number; there may be one of a higher
            continue
    return uuids


def select(listed: str, count: int, by_uuid: dict[str, Visible]) -> list[Visible]:
    """What a list in `CUDA_VISIBLE_DEVICES` means, by CUDA's rule: numbers, or UUIDs of GPUs and MIG instances, which
    may be shortened while they stay unique. The first entry that is neither ends the list; one that comes twice empties
    it.
    """
    found: list[Visible] = []
    for entry in listed.split(","):
        named = entry.strip()
        if named.isdecimal() and int(named) < count:
            meant: list[Visible] = [(int(named), None)]
        else:
            meant = [visible for uuid, visible in by_uuid.items() if named and uuid.startswith(named)]
        if len(meant) != 1:
            break
        if meant[0] in found:
            return []
        found += meant
    return found


def find() -> list[Gpu]:
    """The usable GPUs with their free memory now; of a MIG instance its own."""
    wanted = visible()
    if not wanted:
        return []
    import pynvml

    with _nvml() as present:
        if not present:
            return []
        driver = pynvml.nvmlSystemGetDriverVersion()
        found: list[Gpu] = []
        for index, mig in wanted:
            card = pynvml.nvmlDeviceGetHandleByIndex(index)
            handle = pynvml.nvmlDeviceGetHandleByUUID(mig) if mig else card
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            found.append(
                Gpu(
                    index,
                    pynvml.nvmlDeviceGetName(handle),
                    round(int(memory.total) / 2**30, 2),
                    round(int(memory.free) / 2**30, 2),
                    pynvml.nvmlDeviceGetCudaComputeCapability(card),
                    driver,
                )
            )
        return found

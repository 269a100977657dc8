import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from tunewright.pipeline import gpu, lease
from tunewright.pipeline.lease import Device
from tunewright.pipeline.workspace import Workspace

HOLDER = """
import signal, sys
from tunewright.pipeline import lease
from tunewright.pipeline.workspace import Workspace
lock = lease.try_take(Workspace.open(sys.argv[1]), lease.Device(None))
print("held" if lock else "refused", flush=True)
signal.pause()
"""
CPU = Device(None)


def test_a_device_is_held_once_at_a_time(workspace: Workspace) -> None:
    lock = lease.try_take(workspace, CPU)
    assert lock is not None
    other = Workspace.open(workspace.home.root)
    assert lease.try_take(other, CPU) is None
    another_card = lease.try_take(other, Device(1))
    assert another_card is not None
    another_card.release()
    lock.release()
    again = lease.try_take(other, CPU)
    assert again is not None
    again.release()
    other.store.close()


def test_a_device_is_free_again_when_its_holder_is_killed(
    workspace: Workspace, eventually: Callable[..., None]
) -> None:
    command = [sys.executable, "-P", "-c", HOLDER, str(workspace.home.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        assert lease.try_take(workspace, CPU) is None
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
    lock = lease.try_take(workspace, CPU)
    assert lock is not None
    lock.release()


def test_the_lease_ends_with_its_block_also_when_that_raises(workspace: Workspace) -> None:
    with pytest.raises(RuntimeError, match="stage"), lease.hold_device(workspace, "job-none", lambda: None):
        assert lease.try_take(workspace, CPU) is None
        raise RuntimeError("stage")
    lock = lease.try_take(workspace, CPU)
    assert lock is not None
    lock.release()


def test_a_second_card_or_part_of_one_runs_a_second_job(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "visible", lambda: [(0, None), (3, "MIG-b"), (3, "MIG-c")])
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    with (
        lease.hold_device(workspace, "job-1", lambda: None) as first,
        lease.hold_device(workspace, "job-2", lambda: None) as second,
        lease.hold_device(workspace, "job-3", lambda: None) as third,
    ):
        assert (first, second, third) == (Device(0), Device(3, "MIG-b"), Device(3, "MIG-c"))
        for device, seen in ((first, "0"), (second, "MIG-b")):
            device.make_visible()
            # The driver's numbers mean to CUDA what they mean here.
            assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["CUDA_DEVICE_ORDER"]) == (seen, "PCI_BUS_ID")


def test_without_a_gpu_the_cpu_is_the_one_device() -> None:
    assert lease.devices() == [CPU]
    assert [device.name for device in (CPU, Device(2), Device(2, "MIG-b"))] == ["cpu", "gpu-2", "gpu-2-MIG-b"]


FIRST, SECOND = "GPU-8932f937-d72c-4106", "GPU-8a5e1b04-0000-4106"
PART, OTHER_PART = "MIG-c7384736-a75d-5afc", "MIG-28c2d3a2-1111-5afc"
BY_UUID: dict[str, gpu.Visible] = {FIRST: (0, None), SECOND: (1, None), PART: (1, PART), OTHER_PART: (1, OTHER_PART)}


@pytest.mark.parametrize(
    ("listed", "meant"),
    [
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1", [(1, None)]),
        (" 1 , 0 ", [(1, None), (0, None)]),
        # Everything after an invalid entry is ignored.
        ("0,-1,1", [(0, None)]),
        ("0,2,1", [(0, None)]),
        ("2,0", []),
        ("0,,1", [(0, None)]),
        (FIRST, [(0, None)]),
        (f"{SECOND},{FIRST}", [(1, None), (0, None)]),
        ("GPU-89", [(0, None)]),
        # Short for two of them, or for one that is not here.
        ("GPU-8", []),
        ("GPU-77777777,0", []),
        (PART, [(1, PART)]),
        ("MIG-28", [(1, OTHER_PART)]),
        # A device that comes twice empties the list, however it is called.
        ("1,0,1", []),
        (f"0,{FIRST}", []),
    ],
)
def test_visible_devices_are_read_by_cudas_rule(listed: str, meant: list[gpu.Visible]) -> None:
    assert gpu.select(listed, 2, BY_UUID) == meant


def test_without_a_driver_no_list_makes_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    def absent() -> None:
        raise pynvml.NVMLError_LibraryNotFound()

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    for listed in ("0", FIRST):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
        assert (gpu.visible(), gpu.indexes(), gpu.find()) == ([], [], [])


@pytest.mark.parametrize(
    ("state", "needs_device", "wanted"), [("queued", 1, True), ("queued", 0, False), ("running", 1, False)]
)
def test_a_device_is_wanted_while_a_job_waits_for_one(
    workspace: Workspace, state: str, needs_device: int, wanted: bool
) -> None:
    workspace.store.execute(
        "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at) VALUES ('job-1','finetune',?,?,'{}',0)",
        state, needs_device,
    )  # fmt: skip
    assert lease.is_wanted(workspace) == wanted

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


def test_a_second_card_runs_a_second_job(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "indexes", lambda: [0, 3])
    with (
        lease.hold_device(workspace, "job-1", lambda: None) as first,
        lease.hold_device(workspace, "job-2", lambda: None) as second,
    ):
        assert (first, second) == (Device(0), Device(3))
        second.make_visible()
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_without_a_gpu_the_cpu_is_the_one_device() -> None:
    assert lease.devices() == [CPU]
    assert [device.name for device in (CPU, Device(2))] == ["cpu", "gpu-2"]


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

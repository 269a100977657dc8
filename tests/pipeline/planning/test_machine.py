"""What a plan may use: the driver's figures, a limit, and what Tunewright's own processes hold."""

import os
import subprocess
import sys
from typing import Any

import pynvml
import pytest

from tunewright.pipeline import gpu
from tunewright.pipeline.gpu import Gpu
from tunewright.pipeline.planning import machine


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> list[Gpu]:
    """The driver's answer; `held` GiB of the first card are Tunewright's own."""
    found = [Gpu(0, "NVIDIA H200", 139.8, 100.0, (9, 0), "580"), Gpu(1, "NVIDIA H200", 139.8, 139.0, (9, 0), "580")]
    monkeypatch.setattr(gpu, "find", lambda: found)
    monkeypatch.setattr(machine, "_held_by_tunewright", lambda: {})
    return found


def test_without_a_gpu_the_hosts_memory_is_the_limit() -> None:
    found = machine.this_machine(None)
    assert not found.is_gpu and not found.has_bf16
    assert 0 < found.limit_gib < found.host_free_gib <= found.total_gib
    assert found.cores == os.cpu_count()


def test_what_others_hold_and_the_context_are_left_out(cards: list[Gpu]) -> None:
    found = machine.this_machine(None)
    assert found.is_gpu and found.has_bf16
    assert found.limit_gib == pytest.approx(100.0 - 0.6)


def test_what_tunewright_holds_is_free_for_the_next_job(cards: list[Gpu], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_held_by_tunewright", lambda: {0: 30.0})
    assert machine.this_machine(None).limit_gib == pytest.approx(130.0 - 0.6)


def test_a_driver_that_lists_no_processes_is_taken_at_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(handle: Any) -> Any:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    card = Gpu(0, "NVIDIA GeForce RTX 4090", 24.0, 20.0, (8, 9), "580")
    monkeypatch.setattr(gpu, "find", lambda: [card])
    monkeypatch.setattr(gpu, "indexes", lambda: [0])
    for name in ("nvmlInit", "nvmlShutdown"):
        monkeypatch.setattr(pynvml, name, lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", refuses)
    assert machine.this_machine(None).limit_gib == pytest.approx(20.0 - 0.6)


def test_a_limit_binds_where_it_is_lower(cards: list[Gpu]) -> None:
    assert machine.this_machine(16).limit_gib == pytest.approx(16 - 0.6), "the CUDA context is within the limit"
    assert machine.this_machine(1000).limit_gib == pytest.approx(99.4)


def test_our_own_processes_are_known_by_their_command(tmp_path: object) -> None:
    code = "import sys; print(flush=True); sys.stdin.read()"
    ours = [sys.executable, "-c", code, "tunewright.pipeline.worker"]
    for command, is_ours in ((ours, True), (ours[:3], False)):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            # Until it runs, the system knows no command of it.
            assert process.stdout is not None and process.stdout.readline()
            assert machine._is_tunewright(process.pid) is is_ours
        finally:
            process.communicate(timeout=20)
    assert not machine._is_tunewright(process.pid)

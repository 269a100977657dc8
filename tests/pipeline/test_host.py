"""Memory that may be used: the machine's, or the container's where that is less."""

from pathlib import Path

import psutil
import pytest

from tunewright.pipeline import host

GIB = 2**30


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process's control group, of 4 GiB of which 3 are used, one of them by files that were read."""
    monkeypatch.setattr(host, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(host, "MEMBERSHIP", tmp_path / "membership")
    (tmp_path / "membership").write_text("3:cpu:/x\n0::/user.slice/job\n", encoding="utf-8")
    folder = tmp_path / "cgroup" / "user.slice" / "job"
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text(f"{4 * GIB}\n", encoding="utf-8")
    (folder / "memory.current").write_text(f"{3 * GIB}\n", encoding="utf-8")
    (folder / "memory.stat").write_text(f"anon 7\ninactive_file {GIB}\nfile 9\n", encoding="utf-8")
    return folder


def machine() -> float:
    return round(psutil.virtual_memory().total / GIB, 2)


def test_a_container_bounds_what_may_be_used(group: Path) -> None:
    free, total = host.memory_gib()
    assert total == min(4, machine())
    assert free == pytest.approx(2) or free < 2  # where the machine itself has less


def test_a_group_without_a_limit_leaves_the_machine(group: Path) -> None:
    (group / "memory.max").write_text("max\n", encoding="utf-8")
    assert host.memory_gib()[1] == machine()


def test_a_full_container_has_nothing_free(group: Path) -> None:
    (group / "memory.current").write_text(f"{6 * GIB}\n", encoding="utf-8")
    assert host.memory_gib()[0] == 0


def test_without_control_groups_it_is_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host, "CGROUPS", tmp_path / "none")
    monkeypatch.setattr(host, "MEMBERSHIP", tmp_path / "none")
    free, total = host.memory_gib()
    assert 0 < free < total == machine()

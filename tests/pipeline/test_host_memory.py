from pathlib import Path

import pytest

from tunewright.pipeline import files, host_memory

EVENTS = "low 0\nhigh 0\nmax 7\noom 2\noom_kill {}\noom_group_kill 0\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
VMSTAT = "nr_free_pages 5\noom_kill {}\n"
# What stands in /proc/self/cgroup, and the file that then counts, among others that must not be taken.
PLACES = {
    "a systemd session": ("0::/user.slice/session-2.scope\n", "sys/fs/cgroup/user.slice/session-2.scope/memory.events"),
    "a container": ("0::/\n", "sys/fs/cgroup/memory.events"),
    "a container that sees the host's path": ("0::/../docker-1\n", "sys/fs/cgroup/memory.events"),
    "version 1": ("5:devices:/\n4:memory:/a/b\n0::/\n", "sys/fs/cgroup/memory/a/b/memory.oom_control"),
    "version 1 in a container": ("4:cpu,memory:/a/b\n", "sys/fs/cgroup/memory/memory.oom_control"),
    "nothing but the machine": ("1:cpu:/\n", "proc/vmstat"),
    "no groups": (None, "proc/vmstat"),
}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("place", PLACES)
def test_the_counter_of_the_workers_own_group_tells_that_the_kernel_killed(tmp_path: Path, place: str) -> None:
    groups, counting = PLACES[place]
    root, job = tmp_path / "root", tmp_path / "job"
    job.mkdir()
    if groups:
        write(root / "proc/self/cgroup", groups)
    write(root / "proc/vmstat", VMSTAT.format(40))
    text = {"memory.events": EVENTS, "memory.oom_control": CONTROL, "vmstat": VMSTAT}[Path(counting).name]
    counter = write(root / counting, text.format(3))
    host_memory.remember(job, root)
    assert not host_memory.has_killed(job)
    if counting != "proc/vmstat":
        write(root / "proc/vmstat", VMSTAT.format(41))
        assert not host_memory.has_killed(job), "a process elsewhere on the machine"
    counter.write_text(text.format(4), encoding="utf-8")
    assert host_memory.has_killed(job)
    host_memory.remember(job, root)
    assert not host_memory.has_killed(job), "the next worker begins anew"
    counter.write_text(text.format(0), encoding="utf-8")
    assert not host_memory.has_killed(job), "the machine has restarted"
    counter.unlink()
    assert not host_memory.has_killed(job), "the group is gone"


def test_a_job_without_a_counter_was_not_killed_for_memory(tmp_path: Path) -> None:
    assert not host_memory.has_killed(tmp_path)
    host_memory.remember(tmp_path, tmp_path / "nothing")
    assert not host_memory.has_killed(tmp_path)


def test_this_machine_counts(tmp_path: Path) -> None:
    host_memory.remember(tmp_path)
    assert files.read_json(tmp_path / host_memory.REMEMBERED)["kills"] >= 0
    assert not host_memory.has_killed(tmp_path)

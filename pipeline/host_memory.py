"""Whether the kernel killed a process for want of host memory since a worker began: its counters, read as any user.

A counter is of the worker's control group (its container, its systemd unit), or where none can be read, of the whole
machine: it says that a process there was killed, not which. What kills outside the kernel (systemd-oomd, earlyoom) is
not counted.
"""

from pathlib import Path

from tunewright.pipeline import files

REMEMBERED = "oom_kills.json"
ROOT = Path("/")


def remember(job_folder: Path, root: Path = ROOT) -> None:
    """Writes down where this process's counter stands, which a worker that it is about to start shares."""
    for counter in _counters(root):
        kills = _read(counter)
        if kills is not None:
            files.write_json(job_folder / REMEMBERED, {"counter": str(counter), "kills": kills})
            return


def has_killed(job_folder: Path) -> bool:
    """Whether the counter has risen since `remember`; False where it is gone or was never there."""
    try:
        remembered = files.read_json(job_folder / REMEMBERED)
    except FileNotFoundError:
        return False
    kills = _read(Path(remembered["counter"]))
    # After a reboot it begins anew, below.
    return kills is not None and kills > remembered["kills"]


def _counters(root: Path) -> list[Path]:
    """Where this process's counter may be, the narrowest first; within a container the group's own path is hidden."""
    places: list[Path] = []
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        groups = []
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            places += [root / "sys/fs/cgroup" / part / "memory.events" for part in (path.strip("/"), "")]
        elif "memory" in controllers.split(","):
            places += [root / "sys/fs/cgroup/memory" / part / "memory.oom_control" for part in (path.strip("/"), "")]
    return [*places, root / "proc/vmstat"]


def _read(counter: Path) -> int | None:
    try:
        lines = counter.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    counts = [line.split()[1] for line in lines if line.startswith("oom_kill ")]
    return int(counts[0]) if counts else None

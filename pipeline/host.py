"""The memory of the machine that this process may use: the machine's, or its container's where that is less. Light.

Reads control groups of version 2, which today's containers have; with version 1 the machine's own figures are given.
"""

from pathlib import Path

import psutil

GIB = 2**30
CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def memory_gib() -> tuple[float, float]:
    """Free (without swapping) and total GiB."""
    machine = psutil.virtual_memory()
    free, total = machine.available, machine.total
    group = _group()
    limit = _number(group / "memory.max")
    used = _number(group / "memory.current")
    if limit is not None and used is not None and limit < total:
        # Files that were read count as used until somebody needs the room.
        free, total = min(free, limit - used + _inactive_file(group / "memory.stat")), limit
    return round(max(0, free) / GIB, 2), round(total / GIB, 2)


def _group() -> Path:
    """This process's own group: the root of the tree inside a container, a slice of it elsewhere."""
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return CGROUPS
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    return CGROUPS / own


def _number(path: Path) -> int | None:
    """What the file holds; None where it is missing or says `max`."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _inactive_file(path: Path) -> int:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)

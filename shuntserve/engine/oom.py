"""How often the kernel has killed for want of memory: tells an out-of-memory SIGKILL from one sent by somebody."""

from __future__ import annotations

from pathlib import Path

_CGROUP_ROOT = Path("/sys/fs/cgroup")


def oom_kills(proc: Path = Path("/proc"), cgroup_root: Path = _CGROUP_ROOT) -> int:
    """The counter of this process's control group (version 2), else the whole machine's, else 0. Only a rise means
    something."""
    for path in (_own_cgroup(proc, cgroup_root), cgroup_root):
        if path is not None and (count := _counter(path / "memory.events", "oom_kill")) is not None:
            return count
    return _counter(proc / "vmstat", "oom_kill") or 0


def _own_cgroup(proc: Path, cgroup_root: Path) -> Path | None:
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        hierarchy, _, path = line.split(":", 2)
        if hierarchy == "0":
            return cgroup_root / path.lstrip("/")
    return None


def _counter(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return None

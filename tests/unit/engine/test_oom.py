"""Reading the kernel's out-of-memory counters."""

from __future__ import annotations

from pathlib import Path

from shuntserve.engine.oom import oom_kills


def machine(root: Path, *, cgroup: str | None, events: dict[str, str], vmstat: str | None) -> tuple[Path, Path]:
    proc, cgroups = root / "proc", root / "cgroup"
    (proc / "self").mkdir(parents=True)
    cgroups.mkdir()
    if cgroup is not None:
        (proc / "self" / "cgroup").write_text(cgroup)
    if vmstat is not None:
        (proc / "vmstat").write_text(vmstat)
    for path, text in events.items():
        (cgroups / path).mkdir(parents=True, exist_ok=True)
        (cgroups / path / "memory.events").write_text(text)
    return proc, cgroups


def test_the_own_control_group_is_preferred(tmp_path: Path) -> None:
    """Kills elsewhere on the machine say nothing about this engine."""
    proc, cgroups = machine(
        tmp_path, cgroup="0::/a/b\n", events={"a/b": "low 0\noom_kill 3\n", ".": "oom_kill 9\n"}, vmstat="oom_kill 50\n"
    )

    assert oom_kills(proc, cgroups) == 3


def test_inside_a_container_the_root_group_is_read(tmp_path: Path) -> None:
    """A container sees its own group at the root of the file system, whatever /proc says its name is."""
    proc, cgroups = machine(tmp_path, cgroup="0::/docker/xyz\n", events={".": "oom_kill 2\n"}, vmstat="oom_kill 50\n")

    assert oom_kills(proc, cgroups) == 2


def test_without_control_groups_the_machine_is_read(tmp_path: Path) -> None:
    """Version 1 hierarchies have no such counter; the machine's is better than none."""
    proc, cgroups = machine(tmp_path, cgroup="4:memory:/x\n", events={}, vmstat="nr_free 5\noom_kill 50\n")

    assert oom_kills(proc, cgroups) == 50


def test_nothing_readable_counts_as_no_kill(tmp_path: Path) -> None:
    """Elsewhere than on Linux nothing can be known."""
    proc, cgroups = machine(tmp_path, cgroup=None, events={}, vmstat=None)

    assert oom_kills(proc, cgroups) == 0

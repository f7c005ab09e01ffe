"""Which machine this is: its name among others, its devices, and whether a process started on it still runs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from typing import Any

import psutil

_CLOCK_SLACK_S = 2.0
"""A process notes its start a little after the kernel does; clocks are read to hundredths of a second."""


def place() -> str:
    """Where process ids of this process mean something: host, boot and process namespace."""
    return "/".join((socket.gethostname(), _read("/proc/sys/kernel/random/boot_id"), _link("/proc/self/ns/pid")))


def is_gone(facts: Mapping[str, Any]) -> bool:
    """True only when the facts are of a process of this very place that has certainly ended.

    `facts` has `place`, `pid` and `started_unix_s`, as a worker publishes them. A process that took over the same id
    was created later.
    """
    if facts.get("place") != place():
        return False
    try:
        process = psutil.Process(int(facts["pid"]))
        if process.status() == psutil.STATUS_ZOMBIE:  # ended, and nobody has asked how
            return True
        created_unix_s = process.create_time()
    except (psutil.NoSuchProcess, KeyError, ValueError):
        return "pid" in facts
    except psutil.AccessDenied:
        return False
    return bool(created_unix_s > float(facts["started_unix_s"]) + _CLOCK_SLACK_S)


def cores() -> int:
    """Processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory_bytes() -> int:
    """Memory that new processes can take without pushing others out."""
    return int(psutil.virtual_memory().available)


def gpus(visible: str | None) -> tuple[str, ...]:
    """NVIDIA devices this process may use, in CUDA's names. `visible`: the value of CUDA_VISIBLE_DEVICES, if set."""
    if visible is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip() and name.strip() != "-1")
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [program, "--query-gpu=index", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()  # a driver tool that does not work: there is no device to use either
    return tuple(line.strip() for line in listed.stdout.splitlines() if line.strip())


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "?"


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return "?"

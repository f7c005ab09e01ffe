"""Machines of a local fleet with scripted agents: real processes, none of which outlives its test."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

AGENT = """
import os, pathlib, signal, sys, time
directory, behaviour = pathlib.Path(sys.argv[1]), sys.argv[2]
def note(text):
    with (directory / "diary").open("a") as file:
        file.write(f"{text} {os.getpid()}\\n")
def drain(number, frame):
    note("drained")
    sys.exit(0)
if behaviour == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, drain)
note("began")
if behaviour == "crash":
    sys.exit(3)
if behaviour == "leave":
    sys.exit(0)
time.sleep(120)
"""


class Room:
    """The directory of one machine, its agent's behaviour, and what the agent wrote down."""

    def __init__(self, directory: Path, behaviour: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        script = directory / "agent.py"
        script.write_text(AGENT)
        command = [sys.executable, "-S", "-E", str(script), str(directory), behaviour]
        (directory / "config.json").write_text(json.dumps({"command": command, "environment": {}}))

    def diary(self) -> list[str]:
        """What agents did, in order."""
        try:
            return [line.split()[0] for line in (self.directory / "diary").read_text().splitlines()]
        except FileNotFoundError:
            return []

    def processes(self) -> list[psutil.Process]:
        """What runs of all that ever told of itself: the machine and its agents."""
        pids = []
        with contextlib.suppress(FileNotFoundError):
            pids += [int(line.split()[1]) for line in (self.directory / "diary").read_text().splitlines()]
        with contextlib.suppress(FileNotFoundError, ValueError):
            pids.append(int(json.loads((self.directory / "machine.json").read_text())["pid"]))
        found = []
        for pid in dict.fromkeys(pids):
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if str(self.directory) in process.cmdline():
                    found.append(process)
        return found


def eventually(so: Callable[[], object], limit_s: float = 30.0) -> None:
    """Wait until it is so."""
    end_s = time.monotonic() + limit_s
    while not so():
        assert time.monotonic() < end_s, "never came true"
        time.sleep(0.02)

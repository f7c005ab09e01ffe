"""Every process of one session, found by session id: what is left of a process tree when its root is gone.

Processes whose parent died keep their session; a list of children does not find them. Linux only, through /proc.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Sequence
from pathlib import Path

_PROC = Path("/proc")
_TRACKER_GRACE_S = 1.0
_LOOK_AGAIN_S = 0.2


class Session:
    """The session led by `leader_pid` (a process started with `start_new_session`)."""

    def __init__(self, leader_pid: int) -> None:
        self._leader_pid = leader_pid
        self._kill_all_after_s: float | None = None

    def members(self) -> tuple[int, ...]:
        """Live processes, the leader first; those that only wait to be reaped do not count."""
        found = [pid for pid in _process_ids() if _session_of(pid) == self._leader_pid and _state(pid) not in "ZX"]
        return tuple(sorted(found, key=lambda pid: (pid != self._leader_pid, pid)))

    def stopped(self) -> bool:
        """Whether some member is stopped (SIGSTOP, a debugger)."""
        return any(_state(pid) in "Tt" for pid in self.members())

    def kill(self) -> None:
        """SIGKILL the members. Python's resource trackers are spared for a second: they end by themselves when the rest
        is gone, and remove the shared memory that the dead can no longer remove."""
        now_s = time.monotonic()
        if self._kill_all_after_s is None:
            self._kill_all_after_s = now_s + _TRACKER_GRACE_S
        for pid in self.members():
            if now_s >= self._kill_all_after_s or not _is_resource_tracker(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def end(self, timeout_s: float) -> bool:
        """Kill until nobody is left, for at most `timeout_s`; True when nobody is left."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            self.kill()
            left = self.members()
            if not left:
                return True
            remaining_s = deadline_s - time.monotonic()
            if remaining_s <= 0:
                return False
            _wait_for_a_death(left, min(_LOOK_AGAIN_S, remaining_s))


def kill_below() -> None:
    """SIGKILL everybody else in the session that this process leads; nobody when it leads none, for then they are not
    its own."""
    if os.getsid(0) != os.getpid():
        return
    for pid in Session(os.getpid()).members():
        if pid != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _wait_for_a_death(pids: Sequence[int], timeout_s: float) -> None:
    with contextlib.ExitStack() as opened, selectors.DefaultSelector() as selector:
        for pid in pids:
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                return
            opened.callback(os.close, descriptor)
            selector.register(descriptor, selectors.EVENT_READ)
        selector.select(timeout_s)


def _process_ids() -> list[int]:
    return [int(name) for name in os.listdir(_PROC) if name.isdigit()]


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _state(pid: int) -> str:
    """One letter as in proc(5); "X" when the process is gone."""
    try:
        stat = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return "X"
    return chr(stat[stat.rindex(b")") + 2])


def _is_resource_tracker(pid: int) -> bool:
    try:
        return b"multiprocessing.resource_tracker" in (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return False

"""Ties a process's life to its parent's, by the kernel: nothing below a dead worker keeps computing."""

from __future__ import annotations

import ctypes
import os
import signal
import socket

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int | None = None) -> None:
    """Ask the kernel to SIGKILL this process when the thread that started it ends.

    `parent_pid` is the parent the caller expects: when it is gone already the process ends at once, because the
    kernel only reports deaths from now on. Linux only; elsewhere a no-op, and the socket's end of stream is what
    remains.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "prctl"):
        return
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if parent_pid is not None and os.getppid() != parent_pid:
        os._exit(0)


def die_with_parent_in_children(connection: socket.socket) -> None:
    """Every process this one forks (from its main thread) dies with it, and does not hold the worker's socket open."""

    def in_child() -> None:
        connection.close()
        signal.set_wakeup_fd(-1)  # the parent's event loop must not hear this child's signals
        die_with_parent()

    os.register_at_fork(after_in_child=in_child)

"""vLLM's executor for several worker processes, made to say how a worker died.

vLLM notices at once, but then waits for the other workers, for seconds, and ends its core with an exception:
outside, a worker killed by somebody and one that crashed would look the same. So the core notes the worker's exit
status in the pulse page.
"""

from __future__ import annotations

from multiprocessing import connection
from threading import Thread
from typing import Any

from vllm.v1.executor.multiproc_executor import MultiprocExecutor

from shuntserve.engine.pulse import note_worker_exit

_STATUS_TRIES = 100
_STATUS_RETRY_S = 0.01


class WatchedExecutor(MultiprocExecutor):
    """Workers on this machine, watched."""

    def start_worker_monitor(self, inline: bool = False) -> None:
        Thread(target=self._note_first_death, daemon=True, name="shuntserve-worker-watch").start()
        super().start_worker_monitor(inline=inline)

    def _note_first_death(self) -> None:
        workers = {handle.proc.sentinel: handle.proc for handle in self.workers}
        died = connection.wait(list(workers))
        if getattr(self, "shutting_down", False) and not self.is_failed:
            return  # told to end
        status = _exit_status(workers[died[0]])
        if status is not None:
            note_worker_exit(status)


def _exit_status(process: Any) -> int | None:
    """vLLM's own monitor waits for the same process, so its status may be known a moment later."""
    for _ in range(_STATUS_TRIES):
        if process.exitcode is not None:
            status: int = process.exitcode
            return status
        process.join(_STATUS_RETRY_S)
    return None

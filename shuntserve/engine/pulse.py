"""The pulse of an engine core, in a page of memory shared with the engine process: which step it is in, since when.

The core's scheduler writes, the host reads; nobody waits for anybody. So a core that hangs in the middle of a step is
seen although it can say nothing.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections import deque
from dataclasses import dataclass

PULSE_VARIABLE = "SHUNTSERVE_ENGINE_PULSE"
"""Set by the engine process for its descendants: where the shared page can be opened."""

_LAYOUT = struct.Struct("<Qd")
_WORKER_EXIT = struct.Struct("<?i")
_WORKER_EXIT_AT = 64
_PATIENCE = 5.0
"""How many times longer than anything like it a step may take before it looks like a hang."""
_FADING = 0.99
"""The longest times seen fade with every step, so that one stall of the machine does not blunt the watch for good."""
_LARGE_STEP_TOKENS = 64
_GRAMMAR_PATIENCE_S = 120.0
"""Compiling a large JSON schema blocks no step, but a request that waits for it makes no progress either."""
_FIRST_TIME_PATIENCE_S = 60.0
"""The first use of a feature (log probabilities, a penalty, …) may compile kernels in the middle of a step."""


@dataclass(frozen=True, slots=True)
class Beat:
    """`steps` finished so far; `patience_s` is how long the present one may take (0: nothing known)."""

    steps: int
    patience_s: float


class PulsePage:
    """The shared page, made by the engine process before it starts the core."""

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("shuntserve-pulse")
        os.ftruncate(self._descriptor, mmap.PAGESIZE)
        self._page = mmap.mmap(self._descriptor, mmap.PAGESIZE)

    @property
    def page(self) -> mmap.mmap:
        """The memory itself, for a writer in this process."""
        return self._page

    @property
    def path(self) -> str:
        """Where a descendant opens it; it vanishes with this process."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def read(self) -> Beat:
        return Beat(*_LAYOUT.unpack_from(self._page))

    def worker_exit(self) -> int | None:
        """Exit status of the first worker process of the core that died; None while all live."""
        noted, status = _WORKER_EXIT.unpack_from(self._page, _WORKER_EXIT_AT)
        return status if noted else None


def note_worker_exit(status: int) -> None:
    """Called in the core when one of its worker processes has died unexpectedly."""
    if (page := _page_of_environment()) is not None:
        _WORKER_EXIT.pack_into(page, _WORKER_EXIT_AT, True, status)


def _page_of_environment() -> mmap.mmap | None:
    path = os.environ.get(PULSE_VARIABLE)
    if not path:
        return None
    descriptor = os.open(path, os.O_RDWR)
    try:
        return mmap.mmap(descriptor, mmap.PAGESIZE)
    finally:
        os.close(descriptor)


class StepClock:
    """Times steps and writes the pulse. Steps may overlap (async scheduling, pipelines); they finish in order."""

    def __init__(self, page: mmap.mmap | None) -> None:
        self._page = page
        self._steps = 0
        self._open: deque[int] = deque()
        self._oldest_started_s = 0.0
        self._small_step_s = 0.0
        self._per_token_s = 0.0

    @staticmethod
    def from_environment() -> StepClock:
        """Of the engine process this process belongs to; without one it keeps its times to itself."""
        return StepClock(_page_of_environment())

    def begin(self, tokens: int, now_s: float, *, first_time: bool = False) -> None:
        """A step over `tokens` tokens starts; `first_time` when it does something this engine has not done before."""
        if not self._open:
            self._oldest_started_s = now_s
        self._open.append(tokens)
        self._write(_FIRST_TIME_PATIENCE_S if first_time else 0.0)

    def end(self, now_s: float) -> None:
        """The oldest step has finished."""
        tokens = self._open.popleft()
        took_s = now_s - self._oldest_started_s
        self._small_step_s *= _FADING
        self._per_token_s *= _FADING
        if tokens < _LARGE_STEP_TOKENS:
            self._small_step_s = max(self._small_step_s, took_s)
        else:
            self._per_token_s = max(self._per_token_s, took_s / tokens)
        self._oldest_started_s = now_s
        self._steps += 1
        self._write()

    def wait_for_grammar(self) -> None:
        """Nothing could be scheduled because grammars are still being compiled."""
        self._write(_GRAMMAR_PATIENCE_S)

    def _write(self, at_least_s: float = 0.0) -> None:
        if self._page is not None:
            expected_s = self._small_step_s + self._per_token_s * sum(self._open)
            _LAYOUT.pack_into(self._page, 0, self._steps, max(at_least_s, _PATIENCE * expected_s))

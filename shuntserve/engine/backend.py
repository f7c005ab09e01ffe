"""What an engine must offer to be hosted in an engine process.

`shuntserve.engine.host` builds the backend named in its first frame as `Class(options, emit)` and drives it from one
asyncio loop; a backend never meets sockets, frames, signals or the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shuntserve.engine.port import Delta, EngineLost, EngineReady, Refused, SequenceRequest

Emit = Callable[[Delta | Refused], None]
"""Hands one event to the worker. Cheap: events of one turn of the loop travel in one frame."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a backend is: `steps` finished so far (never decreases), and how long the present one may take."""

    steps: int
    patience_s: float = 0.0
    """At least this long, unchanged `steps` are no hang. 0: the supervisor's own threshold applies."""


class BackendLost(Exception):
    """The engine was lost before it was ready, and it is known how. Raised by `Backend.start`."""

    def __init__(self, lost: EngineLost) -> None:
        super().__init__(lost.detail)
        self.lost = lost


class Backend(Protocol):
    """An engine inside the engine process. Every method is called on the host's event loop.

    Life: `start` → (`submit`, `abort`, `progress`)* → `stop`, or `lost` completes. `submit` comes only after `start`
    returned.
    """

    def __init__(self, options: Mapping[str, Any], emit: Emit) -> None: ...

    async def start(self) -> EngineReady:
        """Bring the engine up. Raises `InvalidInput` when these options can never work (no such model, unknown option,
        unsupported engine version), `BackendLost` when it knows what happened; any other exception is a crash."""
        ...

    def submit(self, request: SequenceRequest) -> None:
        """Begin or continue one sequence; returns at once. What it yields comes through `emit`: deltas of which the
        last has a `finish_reason`, or one `Refused`."""
        ...

    def abort(self, seq_ids: Sequence[str]) -> None:
        """Stop these sequences; unknown ids are ignored."""
        ...

    def progress(self) -> Progress:
        """Read every half second by the host."""
        ...

    async def lost(self) -> EngineLost:
        """Waits until the engine behind the backend is dead and says why; forever while it lives."""
        ...

    async def stop(self) -> None:
        """End the engine and its processes. Called at most once, also after `lost`, also when `start` failed."""
        ...

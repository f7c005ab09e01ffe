"""The engine port in virtual time, over the stand-in model."""

from __future__ import annotations

from collections.abc import Sequence

from shuntserve.engine.port import EngineEvent, EngineLost, EngineReady, LossKind, SequenceRequest
from shuntserve.sim.clock import Clock
from shuntserve.sim.tokens import EOS, PoisonError, StandinBatch


class SimEngine:
    """Steps every `step_s` of virtual time; the cluster kills and hangs it."""

    def __init__(
        self, clock: Clock, *, seats: int, step_s: float, start_s: float, poison: int | None, hang_s: float = 10.0
    ) -> None:
        self._clock = clock
        self._seats = seats
        self._step_s = step_s
        self._start_s = start_s
        self._hang_s = hang_s
        self._batch = StandinBatch(seats, poison=poison)
        self._events: list[EngineEvent] = []
        self._alive = False
        self._hung = False

    def start(self) -> None:
        self._alive = True
        self._clock.after(self._start_s, self._become_ready)

    def _become_ready(self) -> None:
        if self._alive:
            self._events.append(EngineReady(1 << 20, self._seats, (EOS,), {"engine": "sim"}))
            self._clock.after(self._step_s, self._step)

    def _step(self) -> None:
        if not self._alive or self._hung:
            return
        try:
            self._events.extend(self._batch.step())
        except PoisonError:
            self._lose(LossKind.CRASHED, "poison row")
            return
        self._clock.after(self._step_s, self._step)

    def _lose(self, kind: LossKind, detail: str) -> None:
        if self._alive:
            self._alive = False
            self._events.append(EngineLost(kind, detail))

    def kill(self) -> None:
        """SIGKILL from outside."""
        self._lose(LossKind.KILLED, "killed by the simulation")

    def crash(self) -> None:
        """A crash that is no row's fault."""
        self._lose(LossKind.CRASHED, "transient crash")

    def hang(self) -> None:
        """No further progress; noticed `hang_s` later."""
        self._hung = True
        self._clock.after(self._hang_s, lambda: self._lose(LossKind.HUNG, "no progress"))

    def submit(self, requests: Sequence[SequenceRequest]) -> None:
        if self._alive:
            for request in requests:
                self._batch.submit(request)

    def abort(self, seq_ids: Sequence[str]) -> None:
        self._batch.abort(seq_ids)

    def poll(self, timeout_s: float) -> list[EngineEvent]:
        events, self._events = self._events, []
        return events

    def stop(self) -> None:
        self._alive = False
        self._events.clear()

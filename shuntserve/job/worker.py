"""The worker loop: claim, generate, checkpoint, commit; all decisions of one worker, in ticks.

The loop does no I/O itself. Bucket work runs as procedures (`ops.Procedure`) on whatever `Spawner` it is given:
threads in the worker process, virtual time in the simulator. The engine is reached through its port. Everything the
loop knows changes only inside `tick`, so there are no locks.

    Search: survey a page ─► Held: acquire (claim, read chunk, checkpoints) ─► admit to the engine ─► deltas
                                   ▲                                             │  every interval, or at once
    Lease: renew, fence       release ◄── engine lost, drain                checkpoint ─► … ─► commit
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shuntserve import telemetry
from shuntserve.core.ledger import SequenceKey
from shuntserve.core.states import StopCode
from shuntserve.engine.port import (
    Delta,
    Engine,
    EngineEvent,
    EngineLost,
    EngineReady,
    LossKind,
    Refused,
    SequenceRequest,
)
from shuntserve.errors import InvalidInput, ShuntServeError, Unavailable
from shuntserve.job import procedures
from shuntserve.job.held import Held
from shuntserve.job.lease import Lease
from shuntserve.job.search import Search
from shuntserve.job.tenure import Tenure
from shuntserve.job.worker_config import Counters, Spawner, WorkerConfig

CANCELLED_AT_ONCE = 4
"""Chunks held at a time while a stopped job's remaining rows are committed; they need no engine."""


class WorkerLoop:
    """One worker. `tick` until `outcome` is set."""

    def __init__(
        self,
        config: WorkerConfig,
        spawner: Spawner,
        engine_factory: Callable[[], Engine] | None,
        new_incarnation: Callable[[], str],
        rng: random.Random,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.rules = config.rules
        self.engine: Engine | None = None
        self.outcome: str | None = None
        """Set once: `done` (every chunk is committed), `drained`, or `failed`."""
        self.failure: ShuntServeError | None = None
        self.counters = Counters()
        self._spawner = spawner
        self._engine_factory = engine_factory
        self._facts = dict(facts or {})
        self._now_s = 0.0
        # the engine
        self._ready: EngineReady | None = None
        self._by_seq: dict[str, tuple[Tenure, SequenceKey]] = {}
        self._failed_starts = 0
        self._start_engine_at_s = 0.0
        # what is asked of us from outside
        self._draining: str | None = None
        self._drain_noted = False
        self._flush_now = False
        self._stopped: StopCode | None = None
        self._control_seen: str | None = None
        self._reading_control = False
        self._next_control_s = 0.0
        # the bucket's side
        self.lease = Lease(config, spawner, new_incarnation, self.report, self._tolerate)
        self.held = Held(config, spawner, self.counters, self._tolerate, self._me, lambda: self.search.look_again())
        self.search = Search(config, spawner, rng, self._tolerate, self._me, lambda: self.held.tenures)

    def _me(self) -> str:
        return self.lease.incarnation

    # -- outside events (called from signal handlers too, in the middle of a tick) -----------------------------------

    def drain(self, reason: str) -> None:
        """Stop taking work, make everything durable, give all claims back, and end as `drained`."""
        if self._draining is None:
            self._draining = reason

    def flush(self) -> None:
        """Checkpoint everything at once (an interruption notice), without stopping."""
        self._flush_now = True

    # -- the tick --------------------------------------------------------------------------------------------------

    def tick(self, now_s: float, events: Sequence[EngineEvent] = ()) -> float:
        """Take in what happened, start what is due; returns the seconds until something is due again."""
        self._now_s = now_s
        if self.lease.check(now_s):
            self._drop_all()
        self._spawner.deliver()
        for event in events:
            self._on_engine(event)
        self.lease.renew()
        self._read_control()
        self._obey()
        if self._draining is None:
            self._keep_engine()
            self._look_for_work()
            self._admit()
        self.held.go_on(now_s)
        self._conclude()
        return 0.02 if self.held.busy or self.search.busy else 0.1

    def _obey(self) -> None:
        if self._flush_now:
            self._flush_now = False
            self.held.flush()
        if self._stopped is not None:
            for tenure in self.held.runnable():
                if not tenure.complete:
                    self._leave_engine(tenure)
                    tenure.cancel(self._stopped)
        if self._draining is not None:
            if not self._drain_noted:
                self._drain_noted = True
                telemetry.emit(telemetry.Event.DRAIN_STARTED, worker=self._me(), reason=self._draining)
            for tenure in self.held.runnable():
                if not tenure.complete:
                    self._release(tenure, "drained")

    def _conclude(self) -> None:
        if self.held or self.outcome is not None:
            return
        if self._draining is not None:
            self.outcome = "failed" if self.failure is not None else "drained"
        elif self.search.finished:
            self.outcome = "done"

    def report(self) -> dict[str, Any]:
        """What this worker tells of itself beside its progress counter."""
        counters = self.counters
        return {
            **self._facts,
            "state": self.state,
            "chunks": sorted(self.held.tenures),
            "in_engine": len(self._by_seq),
            "waiting": self.held.rows_waiting(),
            "rows_finished_open": sum(tenure.rows_finished for tenure in self.held.tenures.values()),
            **{name: getattr(counters, name) for name in counters.__slots__},
        }

    @property
    def state(self) -> str:
        """One word for what this worker is doing."""
        if self._draining is not None:
            return "draining"
        if self._stopped is not None:
            return "stopping"
        if self._engine_factory is not None and self._ready is None:
            return "starting"
        return "running" if self.held.tenures else "standby"

    def _drop_all(self) -> None:
        """Others may hold us dead: drop every claim without a word and go on as somebody new."""
        if self.held:
            telemetry.emit(telemetry.Event.WORKER_FENCED, worker=self._me(), chunks=len(self.held.tenures))
        self._abort(list(self._by_seq))
        self.held.drop_all()
        self.search.start_over()

    def _tolerate(self, error: ShuntServeError | None, what: str) -> None:
        """Unavailable passes (whoever calls this tries again); anything else ends this worker with its reason."""
        if error is None:
            return
        telemetry.emit(telemetry.Event.STORE_UNAVAILABLE, worker=self._me(), what=what, error=str(error))
        if not isinstance(error, Unavailable):
            self._fail(error)
            self._drop_all()

    def _fail(self, error: ShuntServeError) -> None:
        if self.failure is None:
            self.failure = error
            self.drain("failed")

    # -- control ---------------------------------------------------------------------------------------------------

    def _read_control(self) -> None:
        if self._reading_control or self._now_s < self._next_control_s:
            return
        self._reading_control = True

        def done(entries: list[tuple[str, dict[str, Any]]] | None, error: ShuntServeError | None) -> None:
            self._reading_control = False
            self._next_control_s = self._now_s + self.config.control_interval_s
            self._tolerate(error, "control")
            paused = False
            for key, entry in entries or ():
                self._control_seen = key
                match entry["action"]:
                    case "cancel":
                        self._stopped = self._stopped or StopCode(entry["code"])
                    case "pause":
                        paused = True
                    case "resume":
                        paused = False
            # A pause that was taken back before we looked is no pause, nor is one of a job that is being closed.
            if paused and self._stopped is None:
                self.drain("paused")

        self._spawner.spawn(procedures.read_control(self.config.job_id, self._control_seen), done)

    # -- work ------------------------------------------------------------------------------------------------------

    def _wants_work(self) -> bool:
        if self._stopped is not None:
            return len(self.held.tenures) < CANCELLED_AT_ONCE
        if self._ready is None or any(tenure.suspects() for tenure in self.held.tenures.values()):
            return False
        waiting = self.held.rows_waiting()
        return waiting == 0 or waiting + len(self._by_seq) < self._window() // 2

    def _look_for_work(self) -> None:
        wants = self.lease.visible and not self.held.acquiring and self._wants_work()
        found = self.search.take() if wants else None
        if found is not None:
            ref, epoch = found
            self.held.acquire(ref, epoch, failed=lambda: self.search.put_back(ref.chunk, epoch))
        idle = not self.held.tenures
        self.search.go_on(self._now_s, survey=wants or idle, watch=(wants and found is None) or self._ready is None)

    def _window(self) -> int:
        """How many sequences the engine is given: half as many again as it seats, so that it never waits for a tick."""
        seats = self._ready.max_num_seqs if self._ready is not None else 0
        return seats + max(4, seats // 2)

    def _admit(self) -> None:
        if self._ready is None or self._stopped is not None:
            return
        runnable = self.held.runnable()
        for tenure in runnable:
            suspects = tenure.suspects()
            if suspects:
                if not self._by_seq:
                    self._submit(tenure, tenure.take(0, only_rows=frozenset(self.rules.trial(suspects))))
                return
        for tenure in runnable:
            room = self._window() - len(self._by_seq)
            if room <= 0:
                return
            self._submit(tenure, tenure.take(room))

    def _release(self, tenure: Tenure, reason: str, crash: Any = None) -> None:
        self._leave_engine(tenure)
        self.held.release(tenure, reason, crash)

    # -- engine ----------------------------------------------------------------------------------------------------

    def _keep_engine(self) -> None:
        if self.engine is not None or self._engine_factory is None or self._now_s < self._start_engine_at_s:
            return
        if self._stopped is None and not self.search.finished:
            telemetry.emit(telemetry.Event.ENGINE_STARTING, worker=self._me(), attempt=self._failed_starts + 1)
            self.engine = self._engine_factory()
            self.engine.start()

    def _submit(self, tenure: Tenure, requests: Sequence[SequenceRequest]) -> None:
        if not requests or self.engine is None:
            return
        for request in requests:
            row, sample = request.seq_id.rsplit(".", 2)[1:]
            self._by_seq[request.seq_id] = (tenure, (int(row), int(sample)))
        self.engine.submit(requests)

    def _abort(self, seq_ids: Sequence[str]) -> None:
        for seq_id in seq_ids:
            self._by_seq.pop(seq_id, None)
        if self.engine is not None and seq_ids:
            self.engine.abort(seq_ids)

    def _leave_engine(self, tenure: Tenure) -> None:
        self._abort([seq_id for seq_id, (owner, _) in self._by_seq.items() if owner is tenure])

    def _on_engine(self, event: EngineEvent) -> None:
        match event:
            case Delta():
                held = self._by_seq.get(event.seq_id)
                if held is None:
                    return
                tenure, key = held
                self.counters.tokens_generated += tenure.apply(key, event)
                if event.finish_reason is not None:
                    del self._by_seq[event.seq_id]
            case Refused(seq_id, code, message):
                held = self._by_seq.pop(seq_id, None)
                if held is not None:
                    self._abort(held[0].refuse(held[1], code, message))
            case EngineReady():
                self._ready = event
                self._failed_starts = 0
                self.search.look_again()
                fingerprint = dict(event.fingerprint)
                telemetry.emit(telemetry.Event.ENGINE_READY, worker=self._me(), fingerprint=fingerprint)
            case EngineLost():
                self._on_loss(event)

    def _on_loss(self, loss: EngineLost) -> None:
        """Give every claim back, with a crash report where rows were in the engine; another engine starts by itself."""
        chunks = {tenure.chunk: tenure.epoch for tenure in self.held.tenures.values()}
        telemetry.emit(
            telemetry.Event.ENGINE_LOST, worker=self._me(), kind=str(loss.kind), detail=loss.detail, chunks=chunks
        )
        was_ready = self._ready is not None
        self.engine, self._ready = None, None
        if was_ready:
            setattr(self.counters, str(loss.kind), getattr(self.counters, str(loss.kind)) + 1)
        else:
            self._count_failed_start(loss)
        counts = was_ready and loss.kind in (LossKind.CRASHED, LossKind.HUNG)
        in_flight = [tenure for tenure in self.held.tenures.values() if tenure.admitted]
        self._by_seq.clear()
        for tenure in self.held.runnable():
            if not tenure.complete:
                crash = tenure.crash_report(others_in_flight=len(in_flight) > 1) if counts else None
                self.held.release(tenure, f"engine {loss.kind}", crash)

    def _count_failed_start(self, loss: EngineLost) -> None:
        delays = self.config.engine_restart_delays_s
        self._start_engine_at_s = self._now_s + delays[min(self._failed_starts, len(delays) - 1)]
        self._failed_starts += 1
        if loss.kind is LossKind.INVALID or self._failed_starts >= self.config.engine_start_attempts:
            next_step = "" if loss.kind is LossKind.INVALID else "see the engine's log"  # the detail says what to do
            self._fail(InvalidInput("engine", f"does not start: {loss.detail}", next_step))

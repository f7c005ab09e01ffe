"""The worker loop: claim, generate, checkpoint, commit; all decisions of one worker, in ticks.

The loop does no I/O itself. Bucket work runs as procedures (`ops.Procedure`) on whatever `Spawner` it is given:
threads in the worker process, virtual time in the simulator. The engine is reached through its port. Everything the
loop knows changes only inside `tick`, so there are no locks.

    survey a page ─► acquire (claim, read chunk, checkpoints) ─► admit to the engine ─► deltas
                          ▲                                             │  every interval, or at once
                     release ◄── engine lost, drain                checkpoint ─► … ─► commit
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shuntserve import telemetry
from shuntserve.core.ledger import Claim, Rules, SequenceKey, Watch
from shuntserve.core.manifest import ChunkRef
from shuntserve.core.states import StopCode
from shuntserve.engine.port import Delta, Engine, EngineEvent, EngineLost, EngineReady, LossKind, Refused
from shuntserve.errors import Corrupt, InvalidInput, ShuntServeError, Unavailable
from shuntserve.job import claims, procedures
from shuntserve.job.ops import Procedure
from shuntserve.job.tenure import Tenure
from shuntserve.store import keys

DEFAULT_RULES = Rules()


class Spawner(Protocol):
    """Runs procedures beside the loop. Their outcomes are collected by the loop, in its own tick."""

    def spawn(self, procedure: Procedure[Any], done: Callable[[Any, ShuntServeError | None], None]) -> None:
        """Start a procedure; `done(value, error)` is called inside a later `deliver`."""
        ...

    def deliver(self) -> None:
        """Call `done` of every procedure that has ended."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What one worker needs to know of its job."""

    job_id: str
    pages: Mapping[str, str]
    """Page → sha256-checked manifest page key."""
    page_sha256: Mapping[str, str]
    rules: Rules = DEFAULT_RULES
    checkpoint_interval_s: float = 10.0
    renew_interval_s: float = 3.0
    survey_interval_s: float = 2.0
    control_interval_s: float = 3.0
    watched_workers: int = 16
    engine_restart_delays_s: tuple[float, ...] = (2.0, 10.0)
    """Waits before the next attempt after an engine that did not start; the last one repeats."""
    engine_start_attempts: int = 3


@dataclass(slots=True)
class Counters:
    """What this incarnation did; written with its progress."""

    rows_finished: int = 0
    rows_rejected: int = 0
    sequences_out: int = 0
    length_finishes: int = 0
    """Of `sequences_out`, those cut off by max_tokens."""
    chunks_committed: int = 0
    tokens_generated: int = 0
    tokens_durable: int = 0
    tokens_kept: int = 0
    resumed: int = 0
    crashed: int = 0
    hung: int = 0
    killed: int = 0
    checkpoints: int = 0


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
        self._new_incarnation = new_incarnation
        self._rng = rng
        self._facts = dict(facts or {})
        # this incarnation and its lease
        self.incarnation = new_incarnation()
        self._progress = 0
        self._renewed_from_s: float | None = None
        self._acknowledged_from_s: float | None = None
        self._renewing = False
        self._next_renewal_s = 0.0
        # the job as last seen
        self._order = list(config.pages)
        rng.shuffle(self._order)
        self._refs: dict[str, dict[str, ChunkRef]] = {}
        self._closed: set[str] = set()
        self._view: claims.PageView | None = None
        self._candidates: list[tuple[str, int]] = []
        self._surveying = False
        self._next_survey_s = 0.0
        self._holders: dict[str, str] = {}
        self._watches: dict[str, Watch | None] = {}
        self._watching = False
        self._next_watch_s = 0.0
        self._control_seen: str | None = None
        self._reading_control = False
        self._next_control_s = 0.0
        self._cancelling: StopCode | None = None
        # what is held
        self.tenures: dict[str, Tenure] = {}
        self._writing: set[str] = set()
        """Chunks with a checkpoint, commit or release under way: one write at a time each."""
        self._releasing: dict[str, tuple[Tenure, bytes]] = {}
        self._acquiring = False
        self._next_acquire_s = 0.0
        self._next_checkpoint_s: dict[str, float] = {}
        self._by_seq: dict[str, tuple[Tenure, SequenceKey]] = {}
        # the engine
        self._ready: EngineReady | None = None
        self._failed_starts = 0
        self._start_engine_at_s = 0.0
        self._draining: str | None = None
        self._drain_noted = False
        self._flush_now = False
        self._now_s = 0.0

    # -- outside events (called from signal handlers too, in the middle of a tick) -----------------------------------

    def drain(self, reason: str) -> None:
        """Stop taking work, make everything durable, give all claims back, and end as `drained`."""
        if self._draining is None:
            self._draining = reason

    def flush(self) -> None:
        """Checkpoint everything at once (an interruption notice), without stopping."""
        self._flush_now = True

    def _note_drain(self) -> None:
        if not self._drain_noted:
            self._drain_noted = True
            telemetry.emit(telemetry.Event.DRAIN_STARTED, worker=self.incarnation, reason=self._draining)

    # -- the tick --------------------------------------------------------------------------------------------------

    def tick(self, now_s: float, events: Sequence[EngineEvent] = ()) -> float:
        """Take in what happened, start what is due; returns the seconds until something is due again."""
        self._now_s = now_s
        self._keep_lease()
        self._spawner.deliver()
        for event in events:
            self._on_engine(event)
        self._keep_renewed()
        self._read_control()
        if self._cancelling is not None:
            self._cancel_held()
        self._finish_tenures()
        if self._draining is not None:
            self._note_drain()
            self._give_back_all("drained")
        else:
            self._keep_engine()
            self._look_for_work()
            self._admit()
        self._checkpoint_due()
        self._conclude()
        return self._delay()

    def _delay(self) -> float:
        if self._writing or self._acquiring or self._surveying or self._releasing:
            return 0.02
        return 0.1

    # -- lease -----------------------------------------------------------------------------------------------------

    def _keep_renewed(self) -> None:
        if self._renewing or self._now_s < self._next_renewal_s:
            return
        began_s = self._now_s
        incarnation = self.incarnation
        self._progress += 1
        self._renewing = True
        body = claims.worker_body(incarnation, self._progress, facts=self.report())

        def done(_: None, error: ShuntServeError | None) -> None:
            self._renewing = False
            if incarnation != self.incarnation:
                return
            if error is None:
                # counts from the next tick on: its clock says whether the old lease was still running by now
                self._acknowledged_from_s = began_s
                self._next_renewal_s = began_s + self.config.renew_interval_s
            else:
                self._tolerate(error, "renewal")
                self._next_renewal_s = self._now_s + self.config.renew_interval_s / 3

        self._spawner.spawn(procedures.put(keys.worker(self.config.job_id, incarnation), body), done)

    def report(self) -> dict[str, Any]:
        """What this worker tells of itself beside its progress counter."""
        counters = self.counters
        return {
            **self._facts,
            "state": self.state,
            "chunks": sorted(self.tenures),
            "in_engine": len(self._by_seq),
            "waiting": sum(len(tenure.waiting) for tenure in self.tenures.values()),
            "rows_finished_open": sum(tenure.rows_finished for tenure in self.tenures.values()),
            **{name: getattr(counters, name) for name in counters.__slots__},
        }

    @property
    def state(self) -> str:
        """One word for what this worker is doing."""
        if self._draining is not None:
            return "draining"
        if self._cancelling is not None:
            return "cancelling"
        if self._engine_factory is not None and self._ready is None:
            return "starting"
        return "running" if self.tenures else "standby"

    def _keep_lease(self) -> None:
        """Fence when the lease has run out; only while it has not does an acknowledged renewal extend it."""
        if self._fence_due():
            self._fence()
        if self._acknowledged_from_s is not None:
            self._renewed_from_s, self._acknowledged_from_s = self._acknowledged_from_s, None
            if self._fence_due():
                self._fence()

    def _fence_due(self) -> bool:
        return self._renewed_from_s is not None and self.rules.must_fence(self._renewed_from_s, self._now_s)

    def _fence(self) -> None:
        """Others may hold us dead: drop every claim without a word and go on as somebody new."""
        if self.tenures or self._releasing:
            telemetry.emit(telemetry.Event.WORKER_FENCED, worker=self.incarnation, chunks=len(self.tenures))
        self._abort(list(self._by_seq))
        self.tenures.clear()
        self._by_seq.clear()
        self._releasing.clear()
        self._writing.clear()
        self._next_checkpoint_s.clear()
        self._candidates.clear()
        self._watches.clear()
        self._acquiring = False
        self.incarnation = self._new_incarnation()
        self._renewed_from_s = self._acknowledged_from_s = None
        self._renewing = False
        self._next_renewal_s = self._now_s

    @property
    def _may_act(self) -> bool:
        """Whether this incarnation has a lease others can see."""
        return self._renewed_from_s is not None

    # -- control ---------------------------------------------------------------------------------------------------

    def _read_control(self) -> None:
        if self._reading_control or self._now_s < self._next_control_s:
            return
        self._reading_control = True

        def done(entries: list[tuple[str, dict[str, Any]]] | None, error: ShuntServeError | None) -> None:
            self._reading_control = False
            self._next_control_s = self._now_s + self.config.control_interval_s
            if error is not None:
                self._tolerate(error, "control")
                return
            paused = False
            for key, entry in entries or ():
                self._control_seen = key
                match entry["action"]:
                    case "cancel":
                        self._cancelling = StopCode(entry["code"])
                    case "pause":
                        paused = True
                    case "resume":
                        paused = False
            if paused:  # a pause that was taken back before we looked is no pause
                self.drain("paused")

        self._spawner.spawn(procedures.read_control(self.config.job_id, self._control_seen), done)

    def _cancel_held(self) -> None:
        for tenure in self.tenures.values():
            if not tenure.complete:
                self._leave_engine(tenure)
                tenure.cancel(self._cancelling or StopCode.CANCELLED)

    # -- finding work ----------------------------------------------------------------------------------------------

    def _wants_work(self) -> bool:
        if self._cancelling is not None:
            return len(self.tenures) < 4
        if self._ready is None or any(tenure.suspects() for tenure in self.tenures.values()):
            return False
        waiting = sum(len(tenure.waiting) for tenure in self.tenures.values())
        return waiting + self._room() < self._window() // 2 or waiting == 0

    def _look_for_work(self) -> None:
        if not self._may_act or self._acquiring:
            return
        hungry = self._wants_work()
        if hungry and self._candidates and self._now_s >= self._next_acquire_s:
            # among the first few, so that workers with the same view seldom reach for the same chunk
            self._acquire(*self._candidates.pop(self._rng.randrange(min(len(self._candidates), 8))))
        elif not self._surveying and self._now_s >= self._next_survey_s and (hungry or not self.tenures):
            self._survey()
        if self._ready is None or (hungry and not self._candidates):
            self._watch_holders()

    def _current_page(self) -> str | None:
        return next((page for page in self._order if page not in self._closed), None)

    def _survey(self) -> None:
        page = self._current_page()
        if page is None:
            return
        self._surveying = True

        def done(found: tuple[claims.PageView, dict[str, ChunkRef]] | None, error: ShuntServeError | None) -> None:
            self._surveying = False
            self._next_survey_s = self._now_s + self.config.survey_interval_s
            if error is not None or found is None:
                self._tolerate(error, "survey")
                return
            self._view, self._refs[page] = found
            if len(self._view.committed) >= len(self._refs[page]):
                self._closed.add(page)
                self._refs.pop(page)
                self._view = None
                self._next_survey_s = self._now_s
                return
            self._choose_candidates()
            if not self._candidates and len(self._order) - len(self._closed) > 1:
                self._order.append(self._order.pop(self._order.index(page)))

        self._spawner.spawn(
            procedures.survey_page(
                self.config.job_id,
                page,
                self.config.pages[page],
                self.config.page_sha256[page],
                self._refs.get(page),
                self._holders,
            ),
            done,
        )

    def _choose_candidates(self) -> None:
        """Chunks of the surveyed page that the rules let us claim now, in manifest order from a place of our own."""
        view = self._view
        if view is None:
            return
        dead = {worker for worker, watch in self._watches.items() if self.rules.is_dead(watch)}
        found: list[tuple[str, int]] = []
        for chunk in self._refs.get(view.page, ()):
            if chunk in view.committed or chunk in self.tenures or chunk in self._releasing:
                continue
            history = view.claims.get(chunk, ())
            if history and history[-1].worker == self.incarnation and not history[-1].released:
                epoch: int | None = history[-1].epoch  # ours, but the reply was lost; `acquire` looks again
            else:
                epoch = self.rules.next_epoch(history, dead)
            if epoch is not None:
                found.append((chunk, epoch))
        self._candidates = found

    def _foreign_holders(self) -> list[str]:
        view = self._view
        if view is None:
            return []
        newest: list[Claim] = [history[-1] for history in view.claims.values() if history]
        workers = sorted({claim.worker for claim in newest if not claim.released and claim.worker != self.incarnation})
        if len(workers) > self.config.watched_workers:
            offset = int(self.incarnation[:8], 16) % len(workers)
            workers = (workers[offset:] + workers[:offset])[: self.config.watched_workers]
        return workers

    def _watch_holders(self) -> None:
        if self._watching or self._now_s < self._next_watch_s:
            return
        workers = tuple(self._foreign_holders())
        for gone in [worker for worker in self._watches if worker not in workers]:
            del self._watches[gone]
        if not workers:
            return
        self._watching = True
        asked_s = self._now_s

        def done(readings: dict[str, Any] | None, error: ShuntServeError | None) -> None:
            self._watching = False
            self._next_watch_s = self._now_s + self.rules.lease_s / 4
            if error is not None:
                self._tolerate(error, "watch")
            for worker in workers:
                reading = None if readings is None else readings[worker]
                self._watches[worker] = self.rules.observe(self._watches.get(worker), reading, asked_s)
            self._choose_candidates()

        self._spawner.spawn(claims.read_workers(self.config.job_id, workers), done)

    def _acquire(self, chunk: str, epoch: int) -> None:
        view = self._view
        ref = self._refs[view.page].get(chunk) if view is not None and view.page in self._refs else None
        if ref is None or chunk in self.tenures:
            return
        incarnation = self.incarnation
        self._acquiring = True

        def done(found: procedures.Acquired | None, error: ShuntServeError | None) -> None:
            if incarnation != self.incarnation:
                return
            self._acquiring = False
            if error is not None:
                self._tolerate(error, "acquire")
                self._candidates.insert(0, (chunk, epoch))
                self._next_acquire_s = self._now_s + self.config.survey_interval_s / 2
                return
            if found is None:
                return
            tenure = Tenure(ref, epoch, found.table, found.priors, found.history, self.rules)
            self.tenures[chunk] = tenure
            self.counters.tokens_kept += tenure.tokens_kept
            self.counters.resumed += tenure.resumed
            self._next_checkpoint_s[chunk] = self._now_s + self.config.checkpoint_interval_s
            telemetry.emit(
                telemetry.Event.CHUNK_CLAIMED, chunk=chunk, epoch=epoch, rows=ref.rows, resumed=tenure.resumed
            )

        self._spawner.spawn(procedures.acquire(self.config.job_id, ref, epoch, incarnation, self.rules), done)

    # -- engine ----------------------------------------------------------------------------------------------------

    def _keep_engine(self) -> None:
        if self.engine is not None or self._engine_factory is None or self._now_s < self._start_engine_at_s:
            return
        if self._cancelling is not None or self._current_page() is None:
            return
        self.engine = self._engine_factory()
        self.engine.start()

    def _window(self) -> int:
        """How many sequences the engine is given: its seats and half as many again, so that it never waits for a
        tick.
        """
        seats = self._ready.max_num_seqs if self._ready is not None else 0
        return seats + max(4, seats // 2)

    def _room(self) -> int:
        return len(self._by_seq)

    def _admit(self) -> None:
        if self._ready is None or self.engine is None or self._cancelling is not None:
            return
        suspected = next(((t, s) for t in self.tenures.values() if (s := t.suspects())), None)
        if suspected is not None:
            tenure, suspects = suspected
            if not self._by_seq and tenure.chunk not in self._releasing:
                self._submit(tenure, tenure.take(0, only_rows=frozenset(self.rules.trial(suspects))))
            return
        for tenure in self.tenures.values():
            room = self._window() - len(self._by_seq)
            if room <= 0:
                return
            if tenure.chunk not in self._releasing:
                self._submit(tenure, tenure.take(room))

    def _submit(self, tenure: Tenure, requests: Sequence[Any]) -> None:
        if not requests or self.engine is None:
            return
        for request in requests:
            row, sample = request.seq_id.rsplit(".", 2)[1:]
            self._by_seq[request.seq_id] = (tenure, (int(row), int(sample)))
        self.engine.submit(requests)

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
                self._next_survey_s = self._now_s
                fingerprint = dict(event.fingerprint)
                telemetry.emit(telemetry.Event.ENGINE_READY, worker=self.incarnation, fingerprint=fingerprint)
            case EngineLost():
                self._on_loss(event)

    def _abort(self, seq_ids: Sequence[str]) -> None:
        for seq_id in seq_ids:
            self._by_seq.pop(seq_id, None)
        if self.engine is not None and seq_ids:
            self.engine.abort(seq_ids)

    def _leave_engine(self, tenure: Tenure) -> None:
        self._abort([seq_id for seq_id, (owner, _) in self._by_seq.items() if owner is tenure])

    def _on_loss(self, loss: EngineLost) -> None:
        """Give every claim back at once, with a crash report where rows were in the engine; then start another
        engine.
        """
        telemetry.emit(telemetry.Event.ENGINE_LOST, worker=self.incarnation, kind=str(loss.kind), detail=loss.detail)
        was_ready = self._ready is not None
        self.engine, self._ready = None, None
        counts = was_ready and loss.kind in (LossKind.CRASHED, LossKind.HUNG)
        if was_ready:
            setattr(self.counters, str(loss.kind), getattr(self.counters, str(loss.kind)) + 1)
        else:
            delays = self.config.engine_restart_delays_s
            self._start_engine_at_s = self._now_s + delays[min(self._failed_starts, len(delays) - 1)]
            self._failed_starts += 1
            if loss.kind is LossKind.INVALID or self._failed_starts >= self.config.engine_start_attempts:
                self._fail(InvalidInput("engine", f"does not start: {loss.detail}", "see the engine's log"))
        in_flight = [tenure for tenure in self.tenures.values() if tenure.admitted]
        self._by_seq.clear()
        for tenure in list(self.tenures.values()):
            if tenure.complete:
                continue
            crash = tenure.crash_report(others_in_flight=len(in_flight) > 1) if counts else None
            self._release(tenure, f"engine {loss.kind}", crash)

    def _fail(self, error: ShuntServeError) -> None:
        if self.failure is None:
            self.failure = error
            self.drain("failed")

    # -- making durable --------------------------------------------------------------------------------------------

    def _checkpoint_due(self) -> None:
        if self._flush_now:
            self._flush_now = False
            self._next_checkpoint_s = dict.fromkeys(self._next_checkpoint_s, self._now_s)
        for chunk, tenure in self.tenures.items():
            if chunk in self._writing or chunk in self._releasing or tenure.complete:
                continue
            if self._now_s >= self._next_checkpoint_s[chunk]:
                self._next_checkpoint_s[chunk] = self._now_s + self.config.checkpoint_interval_s
                self._checkpoint(tenure)

    def _checkpoint(self, tenure: Tenure) -> bool:
        """Start writing what is not durable yet; False when there is nothing."""
        entries = tenure.gains()
        if not entries:
            return False
        tenure.snapshot_written()
        key = keys.checkpoint(self.config.job_id, tenure.chunk, tenure.epoch, tenure.next_checkpoint)
        tenure.next_checkpoint += 1
        new_tokens = tenure.take_unwritten()

        def written(won: bool) -> None:
            if not won:
                raise Corrupt(key, "was written by somebody else in our own epoch", "report this; no result is lost")
            self.counters.checkpoints += 1
            self.counters.tokens_durable += new_tokens

        self._write(tenure, lambda: procedures.checkpoint(key, entries, self.incarnation), written)
        return True

    def _write(
        self, tenure: Tenure, make: Callable[[], Procedure[bool]], then: Callable[[bool], None], *, tries: int = 0
    ) -> None:
        """One write of a tenure, repeated until its outcome is known or the tenure is gone."""
        chunk, incarnation = tenure.chunk, self.incarnation
        self._writing.add(chunk)

        def done(won: bool | None, error: ShuntServeError | None) -> None:
            if incarnation != self.incarnation:
                return
            if isinstance(error, Unavailable):
                self._tolerate(error, "write")
                self._write(tenure, make, then, tries=tries + 1)
                return
            self._writing.discard(chunk)
            if error is not None:
                self._tolerate(error, "write")
            else:
                then(bool(won))

        self._spawner.spawn(procedures.after_pause(make, tries), done)

    def _finish_tenures(self) -> None:
        for chunk, tenure in list(self.tenures.items()):
            if tenure.complete and chunk not in self._writing and chunk not in self._releasing:
                self._commit(tenure)

    def _commit(self, tenure: Tenure) -> None:
        key = keys.result(self.config.job_id, tenure.chunk)
        new_tokens = tenure.take_unwritten()

        def written(won: bool) -> None:
            self.tenures.pop(tenure.chunk, None)
            self._next_checkpoint_s.pop(tenure.chunk, None)
            self._next_survey_s = min(self._next_survey_s, self._now_s)
            if won:
                self.counters.chunks_committed += 1
                self.counters.rows_finished += tenure.ref.rows
                self.counters.rows_rejected += tenure.rows_rejected
                self.counters.sequences_out += tenure.sequences_out
                self.counters.length_finishes += tenure.length_finishes
                self.counters.tokens_durable += new_tokens
            telemetry.emit(telemetry.Event.CHUNK_COMMITTED, chunk=tenure.chunk, epoch=tenure.epoch, won=won)

        self._write(tenure, lambda: procedures.commit(key, tenure.table, tenure.sequences, self.incarnation), written)

    def _release(self, tenure: Tenure, reason: str, crash: Any = None) -> None:
        """Flush, then give the claim back; the tenure stays ours until the release is durable."""
        if tenure.chunk not in self._releasing:
            self._leave_engine(tenure)
            self._releasing[tenure.chunk] = (tenure, claims.release_body(self.incarnation, reason, crash))
        self._continue_release(tenure)

    def _continue_release(self, tenure: Tenure) -> None:
        chunk = tenure.chunk
        if chunk in self._writing or self._checkpoint(tenure):
            return
        body = self._releasing[chunk][1]
        key = keys.released(self.config.job_id, chunk, tenure.epoch)

        def written(_: bool) -> None:
            self.tenures.pop(chunk, None)
            self._releasing.pop(chunk, None)
            self._next_checkpoint_s.pop(chunk, None)
            self._next_survey_s = min(self._next_survey_s, self._now_s)
            telemetry.emit(telemetry.Event.CHUNK_RELEASED, chunk=chunk, epoch=tenure.epoch)

        self._write(tenure, lambda: procedures.create(key, body), written)

    def _give_back_all(self, reason: str) -> None:
        for tenure in list(self.tenures.values()):
            if not tenure.complete and tenure.chunk not in self._releasing:
                self._release(tenure, reason)

    # -- the end ---------------------------------------------------------------------------------------------------

    def _conclude(self) -> None:
        for tenure, _ in list(self._releasing.values()):
            self._continue_release(tenure)
        if self.tenures or self._acquiring or self.outcome is not None:
            return
        if self._draining is not None:
            self.outcome = "failed" if self.failure is not None else "drained"
        elif self._current_page() is None:
            self.outcome = "done"

    def _tolerate(self, error: ShuntServeError | None, what: str) -> None:
        """Unavailable passes (a retry is scheduled by the caller); anything else ends this worker with its reason."""
        if error is None:
            return
        telemetry.emit(telemetry.Event.STORE_UNAVAILABLE, worker=self.incarnation, what=what, error=str(error))
        if not isinstance(error, Unavailable):
            self._fail(error)

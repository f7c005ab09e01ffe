"""A whole job in one thread: the real worker loops over a simulated store, simulated engines and injected faults.

Nothing in here decides anything for a worker: loop, ledger rules, procedures, encodings and keys are the product's. A
run is a function of its `Scenario`, so a failing seed replays."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shuntserve.core.ledger import Rules
from shuntserve.errors import NotFound, ShuntServeError, Unavailable
from shuntserve.job import claims, ops
from shuntserve.job.ops import Procedure
from shuntserve.job.worker import WorkerLoop
from shuntserve.job.worker_config import WorkerConfig
from shuntserve.sim.clock import Clock
from shuntserve.sim.engine import SimEngine
from shuntserve.store import keys
from shuntserve.store.faults import NO_FAULT, Fault, FaultyBucket, Plan, RandomFaults
from shuntserve.store.port import Bucket
from shuntserve.store.verbs import Call

Done = Callable[[Any, ShuntServeError | None], None]


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything a run depends on. Rates are per second of virtual time and worker, until `calm_after_s`."""

    seed: int
    workers: int = 3
    calm_after_s: float = 120.0
    limit_s: float = 4000.0
    lease_s: float = 15.0
    checkpoint_interval_s: float = 4.0
    step_s: float = 0.25
    seats: int = 4
    engine_start_s: float = 5.0
    store_latency_s: float = 0.05
    lost_request: float = 0.03
    lost_reply: float = 0.03
    worker_kills: float = 0.01
    engine_kills: float = 0.01
    engine_crashes: float = 0.0
    engine_hangs: float = 0.004
    pauses: float = 0.008
    outages: float = 0.003
    drains: float = 0.004
    reaped: float = 0.5
    """Share of killed workers whose death somebody reports."""
    clock_drift: float = 0.01
    poison: int | None = None
    rules: type[Rules] = Rules


@dataclass(slots=True)
class Tally:
    """Faults that happened."""

    kills: int = 0
    engine_losses: int = 0
    pauses: int = 0
    outages: int = 0
    drains: int = 0
    lost_calls: int = 0
    late_writes: int = 0


class SimWorker:
    """One worker process: a loop, its procedures, its engine and its clock."""

    def __init__(self, cluster: Cluster, name: int) -> None:
        self.cluster = cluster
        self.name = name
        self.alive = True
        self.paused_until_s = 0.0
        self.cut_off_until_s = 0.0
        self.engine: SimEngine | None = None
        self.incarnations: list[str] = []
        self._ended: list[tuple[Done, Any, ShuntServeError | None]] = []
        rng = cluster.rng
        self._offset_s = rng.uniform(0, 1e6)
        self._rate = 1.0 + rng.uniform(-1, 1) * cluster.scenario.clock_drift
        self.loop = WorkerLoop(
            cluster.config, self, self._new_engine, self._new_incarnation, random.Random(rng.getrandbits(64))
        )
        cluster.clock.after(rng.uniform(0, 1), self._tick)

    def _new_incarnation(self) -> str:
        incarnation = f"{self.cluster.rng.getrandbits(128):032x}"
        self.incarnations.append(incarnation)
        return incarnation

    def _new_engine(self) -> SimEngine:
        scenario = self.cluster.scenario
        self.engine = SimEngine(
            self.cluster.clock,
            seats=scenario.seats,
            step_s=scenario.step_s,
            start_s=scenario.engine_start_s,
            poison=scenario.poison,
        )
        return self.engine

    def _tick(self) -> None:
        clock = self.cluster.clock
        if not self.alive:
            return
        if clock.now_s < self.paused_until_s:
            clock.after(self.paused_until_s - clock.now_s, self._tick)
            return
        events = self.loop.engine.poll(0) if self.loop.engine is not None else []
        delay_s = self.loop.tick(self._offset_s + clock.now_s * self._rate, events)
        if self.loop.outcome is not None:
            self.leave()
        else:
            clock.after(delay_s, self._tick)

    def leave(self) -> None:
        """The process ends in order: its engine with it, its last object says that it is gone."""
        self.alive = False
        if self.engine is not None:
            self.engine.stop()
        self.cluster.left(self)

    # -- Spawner ---------------------------------------------------------------------------------------------------

    def spawn(self, procedure: Procedure[Any], done: Done) -> None:
        self._advance(procedure, done, lambda: next(procedure))

    def deliver(self) -> None:
        ended, self._ended = self._ended, []
        for done, value, error in ended:
            done(value, error)

    def _advance(self, procedure: Procedure[Any], done: Done, resume: Callable[[], ops.Op]) -> None:
        if not self.alive:
            return
        try:
            op = resume()
        except StopIteration as stop:
            self._ended.append((done, stop.value, None))
        except ShuntServeError as error:
            self._ended.append((done, None, error))
        else:
            wait_s = op.seconds if isinstance(op, ops.Pause) else self.cluster.latency_s()
            self.cluster.clock.after(wait_s, lambda: self._arrive(procedure, done, op))

    def _arrive(self, procedure: Procedure[Any], done: Done, op: ops.Op) -> None:
        """The request reaches the store, even when its sender is dead or paused by now; the reply may not."""
        value, error = self.cluster.perform(self, op)
        if not self.alive:
            self.cluster.tally.late_writes += isinstance(op, ops.Create) and error is None
            return
        resume = (lambda: procedure.throw(error)) if error is not None else (lambda: procedure.send(value))
        asleep_s = max(0.0, self.paused_until_s - self.cluster.clock.now_s)
        self.cluster.clock.after(asleep_s, lambda: self._advance(procedure, done, resume))


@dataclass
class Cluster:
    """The job's bucket, its workers, and the one who breaks them."""

    scenario: Scenario
    bucket: Bucket
    job_id: str
    pages: dict[str, str]
    page_sha256: dict[str, str]
    chunks: int
    clock: Clock = field(default_factory=Clock)
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        scenario = self.scenario
        self.rng = random.Random(scenario.seed)
        self.config = WorkerConfig(
            job_id=self.job_id,
            pages=self.pages,
            page_sha256=self.page_sha256,
            rules=scenario.rules(lease_s=scenario.lease_s),
            checkpoint_interval_s=scenario.checkpoint_interval_s,
            renew_interval_s=scenario.lease_s / 5,
        )
        rates = RandomFaults(self.rng, self.scenario.lost_request, self.scenario.lost_reply)
        self._unrest: Plan = rates
        self._network = FaultyBucket(self.bucket, self._faults, create_tries=2)
        self._named = 0
        self.workers = [self._new_worker() for _ in range(scenario.workers)]
        self.clock.after(1.0, self._misfortune)

    def _new_worker(self) -> SimWorker:
        self._named += 1
        return SimWorker(self, self._named)

    def run(self) -> bool:
        """Run to the end; False when the job is not finished within the limit."""
        return self.clock.run_until(self.finished, self.scenario.limit_s)

    def finished(self) -> bool:
        """Every worker has left because every chunk is committed."""
        return all(worker.loop.outcome == "done" for worker in self.workers)

    # -- the store as seen through a bad network -------------------------------------------------------------------

    def latency_s(self) -> float:
        return self.rng.expovariate(1 / self.scenario.store_latency_s)

    def perform(self, worker: SimWorker, op: ops.Op) -> tuple[Any, ShuntServeError | None]:
        """Carry out one operation, or lose its request, or its reply."""
        if isinstance(op, ops.Pause):
            return None, None
        if self.clock.now_s < worker.cut_off_until_s:
            return None, Unavailable("the store", "is cut off by the simulation", "")
        try:
            return ops.perform(self._network, op), None
        except (NotFound, Unavailable) as error:
            self.tally.lost_calls += isinstance(error, Unavailable)
            return None, error

    def _faults(self, call: Call) -> Fault:
        return NO_FAULT if self.clock.now_s > self.scenario.calm_after_s else self._unrest(call)

    # -- misfortune ------------------------------------------------------------------------------------------------

    def _misfortune(self) -> None:
        """Once a second: something may befall each worker."""
        if self.clock.now_s > self.scenario.calm_after_s:
            return
        for worker in list(self.workers):
            if worker.alive:
                self._befall(worker)
        self.clock.after(1.0, self._misfortune)

    def _befall(self, worker: SimWorker) -> None:
        scenario, rng, now_s = self.scenario, self.rng, self.clock.now_s
        if rng.random() < scenario.worker_kills:
            self.tally.kills += 1
            self._kill(worker)
            return
        if rng.random() < scenario.drains:
            self.tally.drains += 1
            worker.loop.drain("simulated notice")
        if rng.random() < scenario.pauses:
            self.tally.pauses += 1
            worker.paused_until_s = now_s + rng.uniform(0, 4 * scenario.lease_s)
        if rng.random() < scenario.outages:
            self.tally.outages += 1
            victims = self.workers if rng.random() < 0.5 else [worker]
            until_s = now_s + rng.uniform(0, 4 * scenario.lease_s)
            for victim in victims:
                victim.cut_off_until_s = max(victim.cut_off_until_s, until_s)
        engine = worker.engine
        if engine is not None:
            for rate, harm in (
                (scenario.engine_kills, engine.kill),
                (scenario.engine_crashes, engine.crash),
                (scenario.engine_hangs, engine.hang),
            ):
                if rng.random() < rate:
                    self.tally.engine_losses += 1
                    harm()

    def _kill(self, worker: SimWorker) -> None:
        worker.alive = False
        if worker.engine is not None:
            worker.engine.stop()
        if self.rng.random() < self.scenario.reaped:
            self.mark_gone(worker)
        self._replace(worker)

    def mark_gone(self, worker: SimWorker) -> None:
        """What a parent does after it has reaped its child, or an orderly worker for itself."""
        for incarnation in worker.incarnations:
            self.bucket.put(keys.worker(self.job_id, incarnation), claims.worker_body(incarnation, -1, gone=True))

    def left(self, worker: SimWorker) -> None:
        """A worker's process has ended in order."""
        self.mark_gone(worker)
        if worker.loop.outcome != "done":
            self._replace(worker)

    def _replace(self, worker: SimWorker) -> None:
        def arrive() -> None:
            self.workers[self.workers.index(worker)] = self._new_worker()

        self.clock.after(self.rng.uniform(1, 30), arrive)

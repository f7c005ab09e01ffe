"""One worker loop on a virtual clock, with a bucket that answers at once: for tests of single decisions."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from shuntserve.core.ledger import Rules
from shuntserve.errors import ShuntServeError
from shuntserve.job import ops
from shuntserve.job.ops import Procedure
from shuntserve.job.worker import WorkerLoop
from shuntserve.job.worker_config import WorkerConfig
from shuntserve.sim.clock import Clock
from shuntserve.sim.engine import SimEngine
from shuntserve.sim.job import PutJob, SimRow, put_job
from shuntserve.store.open import open_bucket
from shuntserve.store.port import Bucket

Done = Callable[[Any, ShuntServeError | None], None]


class Bench:
    """Rows in a fresh memory bucket, and workers to be ticked by hand. `trouble` may raise before any operation."""

    def __init__(
        self, rows: Sequence[SimRow], *, rows_per_chunk: int = 4, interval_s: float = 2.0, lease_s: float = 15.0
    ):
        self.clock = Clock()
        self.bucket: Bucket = open_bucket(f"memory://bench-{random.getrandbits(64):x}")
        self.job: PutJob = put_job(self.bucket, "job", rows, rows_per_chunk)
        self.config = WorkerConfig(
            job_id="job",
            pages=self.job.pages,
            page_sha256=self.job.page_sha256,
            rules=Rules(lease_s=lease_s),
            checkpoint_interval_s=interval_s,
            renew_interval_s=lease_s / 5,
        )
        self.trouble: Callable[[ops.Op], None] = lambda op: None

    def worker(self, *, seats: int = 4, poison: int | None = None, step_s: float = 0.5) -> BenchWorker:
        return BenchWorker(self, seats, poison, step_s)


class BenchWorker:
    """A loop, its engine, and a spawner that runs procedures to their end at once."""

    def __init__(self, bench: Bench, seats: int, poison: int | None, step_s: float) -> None:
        self._bench = bench
        self._ended: list[tuple[Done, Any, ShuntServeError | None]] = []
        self.performed: list[ops.Op] = []
        self.engines: list[SimEngine] = []
        self.incarnations: list[str] = []

        def engine() -> SimEngine:
            made = SimEngine(bench.clock, seats=seats, step_s=step_s, start_s=1.0, poison=poison)
            self.engines.append(made)
            return made

        def incarnation() -> str:
            self.incarnations.append(f"{random.getrandbits(128):032x}")
            return self.incarnations[-1]

        self.loop = WorkerLoop(bench.config, self, engine, incarnation, random.Random(1))

    def spawn(self, procedure: Procedure[Any], done: Done) -> None:
        try:
            op = next(procedure)
            while True:
                self.performed.append(op)
                try:
                    self._bench.trouble(op)
                    value = None if isinstance(op, ops.Pause) else ops.perform(self._bench.bucket, op)
                except ShuntServeError as error:
                    op = procedure.throw(error)
                else:
                    op = procedure.send(value)
        except StopIteration as stop:
            self._ended.append((done, stop.value, None))
        except ShuntServeError as error:
            self._ended.append((done, None, error))

    def deliver(self) -> None:
        ended, self._ended = self._ended, []
        for done, value, error in ended:
            done(value, error)

    def tick(self) -> None:
        engine = self.loop.engine
        self.loop.tick(self._bench.clock.now_s, engine.poll(0) if engine is not None else [])

    def run(self, seconds: float, *, until: Callable[[], bool] | None = None, step_s: float = 0.1) -> None:
        """Tick for so much virtual time, or until something holds, or the loop ends."""
        clock = self._bench.clock
        end_s = clock.now_s + seconds
        while clock.now_s < end_s and self.loop.outcome is None and not (until is not None and until()):
            self.tick()
            wake = [False]
            clock.after(step_s, lambda wake=wake: wake.__setitem__(0, True))  # type: ignore[misc]
            while not wake[0]:
                clock.step()

"""Workers with engines for the state machine of rows that crash them: real tenures, reports, encodings, procedures.

The store behaves and leases hold, since other machines stir those. An `EngineWorker` does what the worker loop does:
admits a trial of suspects by itself or else everything, checkpoints and reports when its engine crashes, commits what
is complete. `EngineWorld` knows which rows are poison, which the rules never see, and judges.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil, log2

from shuntserve.core.ledger import Rules
from shuntserve.engine.port import Delta
from shuntserve.job import claims, ops, procedures
from shuntserve.job.tenure import ENGINE_CRASH, Tenure
from shuntserve.store import keys
from shuntserve.store.open import open_bucket
from tests.model.hands import JOB, put_plain_job
from tests.model.network import Broken
from tests.model.promises import APART, BOUND, FINISHES, GUILTY, LONELY

Row = tuple[str, int]
"""(chunk, row in the chunk)"""


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """How small the world is, and what may happen in it."""

    workers: int = 2
    chunks: int = 2
    rows: int = 4
    window: int = 6
    """Rows that one engine is given at once."""
    unlucky: int = 0
    """Crashes that no row is to blame for."""
    kills: int = 0
    kills_are_reported: bool = False
    """A broken loop: the loss of a killed engine is reported as a crash."""


@dataclass(eq=False)
class EngineWorker:
    """One worker and its engine."""

    number: int
    incarnation: str = ""
    held: dict[str, Tenure] = field(default_factory=dict)
    """In the order of their claims."""

    @property
    def running(self) -> list[Row]:
        """What is in the engine."""
        return [(chunk, row) for chunk, tenure in self.held.items() for row, _ in tenure.admitted]


class EngineWorld:
    """Bucket, workers, poison, and the promises. Everything raises `Broken` when one is not kept."""

    def __init__(self, profile: EngineProfile, rules: Rules, poison: frozenset[tuple[int, int]]) -> None:
        self.profile = profile
        self.rules = rules
        self.bucket = open_bucket("memory://engine-machine")
        for info in list(self.bucket.list("")):
            self.bucket.delete(info.key)
        self.job = put_plain_job(self.bucket, profile.chunks, profile.rows)
        self.page = next(iter(self.job.pages))
        self.poison = {(self.job.chunks[chunk % profile.chunks].chunk, row % profile.rows) for chunk, row in poison}
        self.workers = [EngineWorker(number) for number in range(profile.workers)]
        self.kills = 0
        self._unlucky = 0
        self._crashes = 0
        self._lonely: dict[Row, int] = {}
        """Row → crashes of engines in which it was alone."""
        self._newest: dict[str, frozenset[int]] = {}
        """Chunk → its rows in the engine when one last crashed with some."""
        self._named = 0
        for worker in self.workers:
            self._become_new(worker)

    def _become_new(self, worker: EngineWorker) -> None:
        self._named += 1
        worker.incarnation, worker.held = f"{self._named:032x}", {}

    # -- what workers do -------------------------------------------------------------------------------------------

    def candidates(self, worker: EngineWorker) -> Iterator[tuple[str, int]]:
        """What this worker may claim: a worker with suspects looks for no other work."""
        if any(tenure.suspects() for tenure in worker.held.values()):
            return
        view = ops.run(self.bucket, claims.survey(JOB, self.page, {}))
        alive = {other.incarnation for other in self.workers}
        for ref in self.job.chunks:
            history = view.claims.get(ref.chunk, ())
            epoch = self.rules.next_epoch(history, {claim.worker for claim in history} - alive)
            if ref.chunk not in view.committed and epoch is not None:
                yield ref.chunk, epoch

    def take(self, worker: EngineWorker, chunk: str, epoch: int) -> None:
        """Claim it, take over what is there, and run what may run."""
        ref = next(ref for ref in self.job.chunks if ref.chunk == chunk)
        found = ops.run(self.bucket, procedures.acquire(JOB, ref, epoch, worker.incarnation, self.rules))
        assert found is not None
        worker.held[chunk] = Tenure(ref, epoch, found.table, found.priors, found.history, self.rules)
        for (row, _), progress in worker.held[chunk].sequences.items():
            if progress.code == ENGINE_CRASH:
                self._judge_verdict((chunk, row))
        self._go_on(worker)

    def finish(self, worker: EngineWorker, row: Row) -> None:
        """The engine ends a row."""
        tenure = worker.held[row[0]]
        tenure.apply((row[1], 0), Delta(tenure.seq_id((row[1], 0)), [1], finish_reason="stop"))
        self._go_on(worker)

    def checkpoint(self, worker: EngineWorker, tenure: Tenure) -> None:
        entries = tenure.gains()
        if entries:
            tenure.snapshot_written()
            key = keys.checkpoint(JOB, tenure.chunk, tenure.epoch, tenure.next_checkpoint)
            ops.run(self.bucket, procedures.checkpoint(key, entries, worker.incarnation))
            tenure.next_checkpoint += 1

    def _go_on(self, worker: EngineWorker) -> None:
        """Commit what is complete, then give the engine what it may be given."""
        for chunk, tenure in list(worker.held.items()):
            if tenure.complete:
                key = keys.result(JOB, chunk)
                ops.run(self.bucket, procedures.commit(key, tenure.table, tenure.sequences, worker.incarnation))
                del worker.held[chunk]
        self._admit(worker)
        self._judge_company(worker)

    def _admit(self, worker: EngineWorker) -> None:
        for tenure in worker.held.values():
            suspects = tenure.suspects()
            if suspects:
                if not worker.running:
                    tenure.take(0, only_rows=frozenset(self.rules.trial(suspects)))
                return
        for tenure in worker.held.values():
            tenure.take(self.profile.window - len(worker.running))

    # -- misfortune ------------------------------------------------------------------------------------------------

    def may_crash(self, worker: EngineWorker) -> bool:
        """Whether this engine's crash is one that this world allows."""
        if not worker.running:
            return False
        return not self.poison.isdisjoint(worker.running) or self._unlucky < self.profile.unlucky

    def crash(self, worker: EngineWorker) -> None:
        """The engine crashes: by a poison row if there is one in it, else by bad luck."""
        running = worker.running
        self._crashes += 1
        self._unlucky += self.poison.isdisjoint(running)
        if len(running) == 1:
            self._lonely[running[0]] = self._lonely.get(running[0], 0) + 1
        for chunk in {chunk for chunk, _ in running}:
            self._newest[chunk] = frozenset(row for other, row in running if other == chunk)
        self._give_back(worker, reported=True)
        culprits = len(self.poison) + self._unlucky
        if self._crashes > culprits * (ceil(log2(self.profile.rows)) + 2):
            raise Broken(BOUND, f"{self._crashes} crashes by {culprits} culprits")

    def kill_engine(self, worker: EngineWorker) -> None:
        """The engine's process is killed; its worker sees that it was no crash."""
        self.kills += 1
        self._give_back(worker, reported=self.profile.kills_are_reported)

    def kill(self, worker: EngineWorker) -> None:
        """Worker and engine are gone, and another one starts in their place."""
        self.kills += 1
        self._become_new(worker)

    def _give_back(self, worker: EngineWorker, *, reported: bool) -> None:
        in_flight = [tenure for tenure in worker.held.values() if tenure.admitted]
        for chunk, tenure in worker.held.items():
            report = tenure.crash_report(others_in_flight=len(in_flight) > 1) if reported else None
            self.checkpoint(worker, tenure)
            body = claims.release_body(worker.incarnation, "engine lost", report)
            ops.run(self.bucket, procedures.create(keys.released(JOB, chunk, tenure.epoch), body))
        worker.held = {}

    # -- judging ---------------------------------------------------------------------------------------------------

    def _judge_verdict(self, row: Row) -> None:
        if self._lonely.get(row, 0) < 2:
            raise Broken(LONELY, f"row {row} is rejected after {self._lonely.get(row, 0)} lonely crashes")
        if self._unlucky == 0 and row not in self.poison:
            raise Broken(GUILTY, f"row {row} is rejected")

    def _judge_company(self, worker: EngineWorker) -> None:
        """Judged without the rules: a suspect is who was there at its chunk's newest crash and has not ended."""
        running = set(worker.running)
        for chunk, tenure in worker.held.items():
            suspects = {(chunk, row) for row in self._newest.get(chunk, ()) if (row, 0) in tenure.open}
            if running & suspects and running - suspects:
                raise Broken(APART, f"{sorted(running & suspects)} with {sorted(running - suspects)}")

    def run_calmly(self, rounds: int) -> None:
        """Engines crash by poison alone, and everybody does what a worker does, until all is committed."""
        for _ in range(rounds):
            if self.finished:
                return
            for worker in self.workers:
                for chunk, epoch in list(self.candidates(worker))[:1]:
                    self.take(worker, chunk, epoch)
                running = worker.running
                if self.poison.isdisjoint(running):
                    for row in running[:1]:
                        self.finish(worker, row)
                else:
                    self.crash(worker)
        raise Broken(FINISHES, "not every chunk is committed long after the last misfortune")

    @property
    def finished(self) -> bool:
        return all(self.bucket.head(keys.result(JOB, ref.chunk)) is not None for ref in self.job.chunks)

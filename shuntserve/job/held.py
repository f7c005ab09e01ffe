"""The chunks one worker holds, and the writes that make their rows durable: one write at a time for each chunk."""

from __future__ import annotations

import logging
from collections.abc import Callable

from shuntserve import telemetry
from shuntserve.core.ledger import CrashReport
from shuntserve.core.manifest import ChunkRef
from shuntserve.errors import Corrupt, ShuntServeError, Unavailable
from shuntserve.job import claims, procedures
from shuntserve.job.ops import Procedure
from shuntserve.job.tenure import Tenure
from shuntserve.job.worker_config import Counters, Spawner, Tolerate, WorkerConfig
from shuntserve.store import keys


class Held:
    """Tenures by chunk. A tenure leaves by commit, by release, or all at once by `drop_all`."""

    def __init__(
        self,
        config: WorkerConfig,
        spawner: Spawner,
        counters: Counters,
        tolerate: Tolerate,
        incarnation: Callable[[], str],
        changed: Callable[[], None],
    ) -> None:
        self._config = config
        self._spawner = spawner
        self._counters = counters
        self._tolerate = tolerate
        self._incarnation = incarnation
        self._changed = changed
        self.tenures: dict[str, Tenure] = {}
        self.acquiring = False
        self._writing: set[str] = set()
        self._releases: dict[str, bytes] = {}
        """Chunk → body of the release that follows its last checkpoint."""
        self._next_checkpoint_s: dict[str, float] = {}
        self._now_s = 0.0

    def __bool__(self) -> bool:
        return bool(self.tenures) or self.acquiring

    @property
    def busy(self) -> bool:
        """Something is being written or acquired."""
        return bool(self._writing or self._releases or self.acquiring)

    def runnable(self) -> list[Tenure]:
        """Tenures whose rows may go into an engine."""
        return [tenure for chunk, tenure in self.tenures.items() if chunk not in self._releases]

    def rows_waiting(self) -> int:
        """Sequences not yet given to the engine."""
        return sum(len(tenure.waiting) for tenure in self.runnable())

    def acquire(self, ref: ChunkRef, epoch: int, failed: Callable[[], None]) -> None:
        """Claim a chunk; it is in `tenures` when that has worked. `failed` is called when the answer was lost."""
        incarnation = self._incarnation()
        self.acquiring = True

        def done(found: procedures.Acquired | None, error: ShuntServeError | None) -> None:
            if incarnation != self._incarnation():
                return
            self.acquiring = False
            if error is not None:
                self._tolerate(error, "acquire")
                failed()
            elif found is not None:
                self._begin(Tenure(ref, epoch, found.table, found.priors, found.history, self._config.rules))

        self._spawner.spawn(procedures.acquire(self._config.job_id, ref, epoch, incarnation, self._config.rules), done)

    def _begin(self, tenure: Tenure) -> None:
        self.tenures[tenure.chunk] = tenure
        self._next_checkpoint_s[tenure.chunk] = self._now_s + self._config.checkpoint_interval_s
        self._counters.tokens_kept += tenure.tokens_kept
        self._counters.resumed += tenure.resumed
        telemetry.emit(
            telemetry.Event.CHUNK_CLAIMED,
            worker=self._incarnation(),
            chunk=tenure.chunk,
            epoch=tenure.epoch,
            rows=tenure.ref.rows,
            resumed=tenure.resumed,
        )
        for row in tenure.newly_condemned:
            telemetry.emit(
                telemetry.Event.ROW_POISONED,
                level=logging.WARNING,
                worker=self._incarnation(),
                chunk=tenure.chunk,
                epoch=tenure.epoch,
                row=row,
            )

    def drop_all(self) -> None:
        """Forget everything without a word: the lease is over, or the bucket refuses us."""
        self.tenures.clear()
        self._writing.clear()
        self._releases.clear()
        self._next_checkpoint_s.clear()
        self.acquiring = False

    def flush(self) -> None:
        """Checkpoint everything at the next opportunity."""
        self._next_checkpoint_s = dict.fromkeys(self._next_checkpoint_s, self._now_s)

    def release(self, tenure: Tenure, reason: str, crash: CrashReport | None = None) -> None:
        """Flush, then give the claim back; the tenure stays ours until the release is durable."""
        if tenure.chunk not in self._releases:
            self._releases[tenure.chunk] = claims.release_body(self._incarnation(), reason, crash)

    def go_on(self, now_s: float) -> None:
        """Start every write that is due: commits, last checkpoints and releases, checkpoints by the interval."""
        self._now_s = now_s
        for chunk, tenure in list(self.tenures.items()):
            if chunk in self._writing:
                continue
            if chunk in self._releases:
                if not self._checkpoint(tenure):
                    self._write_release(tenure)
            elif tenure.complete:
                self._commit(tenure)
            elif now_s >= self._next_checkpoint_s[chunk]:
                self._next_checkpoint_s[chunk] = now_s + self._config.checkpoint_interval_s
                self._checkpoint(tenure)

    def _checkpoint(self, tenure: Tenure) -> bool:
        """Start writing what is not durable yet; False when there is nothing."""
        entries = tenure.gains()
        if not entries:
            return False
        tenure.snapshot_written()
        incarnation = self._incarnation()
        key = keys.checkpoint(self._config.job_id, tenure.chunk, tenure.epoch, tenure.next_checkpoint)
        tenure.next_checkpoint += 1
        new_tokens = tenure.take_unwritten()

        def written(won: bool) -> None:
            if not won:
                raise Corrupt(key, "was written by somebody else in our own epoch", "report this; no result is lost")
            self._counters.checkpoints += 1
            self._counters.tokens_durable += new_tokens
            telemetry.emit(
                telemetry.Event.CHECKPOINT_WRITTEN,
                level=logging.DEBUG,
                worker=self._incarnation(),
                chunk=tenure.chunk,
                epoch=tenure.epoch,
                sequences=len(entries),
                tokens=new_tokens,
            )

        self._write(tenure, lambda: procedures.checkpoint(key, entries, incarnation), written)
        return True

    def _commit(self, tenure: Tenure) -> None:
        key = keys.result(self._config.job_id, tenure.chunk)
        incarnation = self._incarnation()
        new_tokens = tenure.take_unwritten()

        def written(won: bool) -> None:
            if won:
                self._counters.chunks_committed += 1
                self._counters.rows_finished += tenure.ref.rows
                self._counters.rows_rejected += tenure.rows_rejected
                self._counters.sequences_out += tenure.sequences_out
                self._counters.length_finishes += tenure.length_finishes
                self._counters.tokens_durable += new_tokens
            self._end(
                tenure, telemetry.Event.CHUNK_COMMITTED, won=won, rows=tenure.ref.rows, rejected=tenure.rows_rejected
            )

        self._write(tenure, lambda: procedures.commit(key, tenure.table, tenure.sequences, incarnation), written)

    def _write_release(self, tenure: Tenure) -> None:
        key = keys.released(self._config.job_id, tenure.chunk, tenure.epoch)
        body = self._releases[tenure.chunk]
        self._write(
            tenure,
            lambda: procedures.create(key, body),
            lambda _: self._end(tenure, telemetry.Event.CHUNK_RELEASED),
        )

    def _end(self, tenure: Tenure, event: telemetry.Event, **fields: int) -> None:
        del self.tenures[tenure.chunk], self._next_checkpoint_s[tenure.chunk]
        self._releases.pop(tenure.chunk, None)
        telemetry.emit(event, worker=self._incarnation(), chunk=tenure.chunk, epoch=tenure.epoch, **fields)
        self._changed()

    def _write(
        self, tenure: Tenure, make: Callable[[], Procedure[bool]], then: Callable[[bool], None], *, tries: int = 0
    ) -> None:
        """One write of a tenure, with the same bytes until its outcome is known or the tenure is gone."""
        incarnation = self._incarnation()
        self._writing.add(tenure.chunk)

        def done(won: bool | None, error: ShuntServeError | None) -> None:
            if incarnation != self._incarnation() or self.tenures.get(tenure.chunk) is not tenure:
                return
            if isinstance(error, Unavailable):
                self._tolerate(error, "write")
                self._write(tenure, make, then, tries=tries + 1)
                return
            self._writing.discard(tenure.chunk)
            if error is not None:
                self._tolerate(error, "write")
            else:
                then(bool(won))

        self._spawner.spawn(procedures.after_pause(make, tries), done)

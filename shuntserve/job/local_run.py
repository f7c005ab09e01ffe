"""One job run by workers of this machine, from its manifest to its last commit, as ticks."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from shuntserve import telemetry
from shuntserve.core.manifest import Manifest
from shuntserve.core.resolved import ResolvedJob
from shuntserve.core.states import Pause, StopCode, too_many_length_finishes, too_many_rejects
from shuntserve.errors import ShuntServeError, Unavailable
from shuntserve.job import control, machine, watch
from shuntserve.job.interruptions import InterruptionWatch
from shuntserve.job.local import LocalWorkers
from shuntserve.job.timeline import Sample, Timeline, read_timeline
from shuntserve.job.watch import Snapshot, Watcher
from shuntserve.store.port import Bucket

TICK_S = 0.05
_LOOK_INTERVAL_S = 1.0
_CHUNKS_A_LOOK = 10_000
"""Listing this many chunks at each look is cheap; with more, looks become rarer."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a run stops before its end."""

    max_reject_fraction: float
    max_length_finish_fraction: float
    deadline_unix_s: float | None

    @staticmethod
    def of(job: ResolvedJob) -> Limits:
        operations = job.operations
        return Limits(operations.max_reject_fraction, operations.max_length_finish_fraction, operations.deadline_unix_s)

    def exceeded(self, rows_in: int, rows_rejected: int, length_finishes: int, sequences_out: int) -> Pause | None:
        """The limit that calls for a pause now."""
        if too_many_rejects(rows_rejected, rows_in, self.max_reject_fraction):
            return Pause.REJECTS
        if too_many_length_finishes(length_finishes, sequences_out, self.max_length_finish_fraction):
            return Pause.LENGTH
        return None


def bury_the_dead(bucket: Bucket, job_id: str, snapshot: Snapshot) -> None:
    """Declare gone the workers of an earlier run on this machine whose processes are no more."""
    for worker in snapshot.live:
        if machine.is_gone(worker.facts):
            watch.bury(bucket, job_id, worker.incarnation)


class LocalRun:
    """Workers, watched until every chunk is committed or the run is paused. Advanced by `tick`; never waits."""

    def __init__(
        self, bucket: Bucket, job: ResolvedJob, manifest: Manifest, workers: LocalWorkers, timeline: Timeline
    ) -> None:
        self._bucket = bucket
        self._job = job
        self._manifest = manifest
        self._limits = Limits.of(job)
        self._workers = workers
        self._timeline = timeline
        self._interruptions: InterruptionWatch | None = None
        self._watcher = Watcher(bucket, job.job_id, manifest)
        self._writer = uuid.uuid4().hex
        self._next_look_s = 0.0
        self._stopping = False
        self.snapshot: Snapshot | None = None
        """The newest view of the job; None before the first."""
        self.pause: Pause | None = None
        """Why the run ends, or has ended, before its job."""
        self.over = False

    def tick(self, now_s: float, now_unix_s: float) -> float:
        """Advance; returns seconds until the next tick. Raises why, when no worker can work here.

        `now_s` is monotonic; `now_unix_s` is what a deadline is compared with.
        """
        if self.snapshot is None:
            self._begin(now_unix_s)
        if self.over:
            return 0.0
        self._workers.tick(now_s)
        finished = self._workers.finished
        if finished or now_s >= self._next_look_s:
            self._next_look_s = now_s + _LOOK_INTERVAL_S * max(1.0, self._manifest.chunks / _CHUNKS_A_LOOK)
            try:
                self._look(now_unix_s)
                if finished:
                    self._conclude()
            except Unavailable as error:  # the workers bear it too; the next look tells
                telemetry.emit(telemetry.Event.STORE_UNAVAILABLE, what="progress", error=str(error))
        return TICK_S

    def drain(self) -> None:
        """Let the workers make everything durable and leave; the job goes on when it is run again."""
        self._leave(Pause.DRAINED)

    def kill(self) -> None:
        """End everything at once."""
        self.pause = self.pause or Pause.DRAINED
        self._workers.kill()

    def end(self) -> None:
        """Leave no worker behind, whatever happened. Waits for killed ones to be gone."""
        self._workers.end()

    @property
    def failures(self) -> tuple[ShuntServeError, ...]:
        """Why workers of ours have given up; while one is left, the run goes on with it."""
        return self._workers.failures

    @property
    def workers_running(self) -> int:
        """Worker processes of ours that have not ended."""
        return self._workers.running

    # -- steps -----------------------------------------------------------------------------------------------------

    def _begin(self, now_unix_s: float) -> None:
        """Before the first worker starts: limits that ingest alone has broken, and workers of a run that was killed."""
        snapshot = self._watcher.snapshot()
        self.over = snapshot.complete
        self._interruptions = InterruptionWatch(read_timeline(self._bucket, self._job.job_id))
        if not self.over:
            bury_the_dead(self._bucket, self._job.job_id, snapshot)
            standing = control.standing(self._bucket, self._job.job_id)
            self._stopping = standing.stopped is not None
            if standing.stopped is not None:
                self._timeline.event(now_unix_s, "stop", code=str(standing.stopped))
            if standing.paused is not None:
                control.resume(self._bucket, self._job.job_id, self._writer)
                self._timeline.event(now_unix_s, "resume")
            self._check_limits(snapshot)
        self.snapshot = snapshot
        self._tell(now_unix_s)

    def _look(self, now_unix_s: float) -> None:
        """Take a snapshot, and decide by it whether to go on."""
        self.snapshot = self._watcher.snapshot()
        self._tell(now_unix_s)
        if self.snapshot.complete:
            self._workers.start_no_more()
        elif self.pause is None:
            self._keep_deadline(now_unix_s)
            self._check_limits(self.snapshot)

    def _tell(self, now_unix_s: float) -> None:
        """Put what the newest view shows on the job's timeline."""
        assert self.snapshot is not None
        assert self._interruptions is not None
        self._timeline.sample(now_unix_s, Sample.of(self.snapshot))
        self._interruptions.tell(now_unix_s, self.snapshot, self._timeline)
        self._timeline.flush(now_unix_s)

    def _check_limits(self, snapshot: Snapshot) -> None:
        pause = self._limits.exceeded(
            snapshot.rows_in,
            snapshot.rejected,
            snapshot.total("length_finishes"),
            snapshot.total("sequences_out"),
        )
        if pause is None or self._stopping:
            return
        if control.standing(self._bucket, self._job.job_id).stopped is not None:
            self._stopping = True  # rows that are rejected because the job was stopped break no limit
            return
        telemetry.emit(telemetry.Event.JOB_PAUSED, job=self._job.job_id, reason=str(pause))
        control.pause(self._bucket, self._job.job_id, self._writer, str(pause))
        self._leave(pause)

    def _keep_deadline(self, now_unix_s: float) -> None:
        deadline_unix_s = self._limits.deadline_unix_s
        if deadline_unix_s is None or now_unix_s < deadline_unix_s or self._stopping:
            return
        control.stop(self._bucket, self._job.job_id, self._writer, StopCode.DEADLINE)
        self._timeline.event(now_unix_s, "stop", code=str(StopCode.DEADLINE))
        self._stopping = True

    def _leave(self, pause: Pause) -> None:
        if self.pause is None:
            self.pause = pause
            self._workers.drain()

    def _conclude(self) -> None:
        """All workers have ended: no work is left, or we asked them to leave, or somebody else did."""
        assert self.snapshot is not None
        if self.snapshot.complete:
            self.pause = None
        elif self._workers.all_failed:
            raise self._workers.failures[0]
        elif self.pause is None:
            asked = control.standing(self._bucket, self._job.job_id).paused
            self.pause = Pause(asked) if asked in set(Pause) else Pause.REQUESTED
        self.over = True

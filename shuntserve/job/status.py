"""How a job stands: one look at its objects, in words a person uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from shuntserve.core.manifest import Manifest
from shuntserve.core.resolved import ResolvedJob
from shuntserve.job import control, machine
from shuntserve.job.control import Standing
from shuntserve.job.final import Final, load_final
from shuntserve.job.manifests import load_manifest
from shuntserve.job.submission import load_job
from shuntserve.job.watch import Snapshot, Watcher
from shuntserve.store.port import Bucket


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job at one moment. `manifest` and `snapshot` are None until its input has been ingested."""

    job: ResolvedJob
    standing: Standing
    manifest: Manifest | None = None
    snapshot: Snapshot | None = None
    final: Final | None = None

    @property
    def state(self) -> str:
        """One word: a terminal state, or what the job is doing."""
        if self.final is not None:
            return str(self.final.state)
        if self.snapshot is None:
            return "SUBMITTED"
        if self.snapshot.complete:
            return "GENERATED"
        if self.standing.stopped is not None:
            return "STOPPING"
        if self.standing.paused is not None:
            return "PAUSED"
        return "RUNNING" if self.live_workers else "WAITING"

    @property
    def live_workers(self) -> int:
        """Workers that have not ended, as far as can be seen from this machine."""
        live = self.snapshot.live if self.snapshot is not None else ()
        return sum(not machine.is_gone(worker.facts) for worker in live)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        snapshot, final = self.snapshot, self.final
        return {
            "job": self.job.job_id,
            "state": self.state,
            "paused_by": self.standing.paused,
            "stopped_by": None if self.standing.stopped is None else str(self.standing.stopped),
            "model": self.job.model,
            "output": self.job.operations.output,
            "rows_in": snapshot.rows_in if snapshot else None,
            "rows_ended": snapshot.rows_ended if snapshot else None,
            "rows_out": final.counts.rows_out if final else None,
            "rows_rejected": final.counts.rows_rejected if final else snapshot.rejected if snapshot else None,
            "chunks": snapshot.chunks if snapshot else None,
            "chunks_committed": snapshot.chunks_committed if snapshot else None,
            "interruptions": snapshot.interruptions if snapshot else None,
            "workers": [
                {"incarnation": worker.incarnation, "state": worker.state, **worker.facts}
                for worker in (snapshot.live if snapshot else ())
            ],
        }


def job_status(bucket: Bucket, job_id: str) -> JobStatus:
    """Look at one job. Raises NotFound when there is none."""
    job = load_job(bucket, job_id)
    standing = control.standing(bucket, job_id)
    manifest = load_manifest(bucket, job_id)
    if manifest is None:
        return JobStatus(job, standing)
    snapshot = Watcher(bucket, job_id, manifest).snapshot()
    return JobStatus(job, standing, manifest, snapshot, load_final(bucket, job_id))


def job_ids(bucket: Bucket) -> Sequence[str]:
    """All jobs in a store."""
    return bucket.list_dirs("jobs")


def all_jobs(bucket: Bucket) -> Iterator[JobStatus]:
    """Every job of a store, by id."""
    for job_id in job_ids(bucket):
        yield job_status(bucket, job_id)

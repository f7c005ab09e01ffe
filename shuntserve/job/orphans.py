"""Jobs that were left: they have not ended, nobody paused them, and their controller was lost without signing off."""

from __future__ import annotations

from shuntserve.job import control, fleet_records
from shuntserve.job.status import job_ids
from shuntserve.store import keys
from shuntserve.store.port import Bucket


def perhaps_orphans(bucket: Bucket) -> dict[str, tuple[int, int]]:
    """Jobs that may have been left, each with its controller's epoch and progress.

    An orphan is who is here twice with the same numbers, a controller's lease apart: a living controller's progress
    moves. One that signed off (a failure that a person must see, a stop) leaves no orphan, and neither does a job that
    never had one. Adopting a job that has a controller does no harm: the second one waits for the first one's lease.
    """
    found: dict[str, tuple[int, int]] = {}
    for job_id in job_ids(bucket):
        if bucket.head(keys.final(job_id)) is not None:
            continue
        controller = fleet_records.newest_controller(bucket, job_id)
        if controller is None or controller.gone:
            continue
        standing = control.standing(bucket, job_id)
        if standing.paused is None or standing.stopped is not None:
            found[job_id] = (controller.epoch, controller.progress)
    return found

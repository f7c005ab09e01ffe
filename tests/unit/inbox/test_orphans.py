"""Which jobs were left by a controller that is no more."""

from __future__ import annotations

import pytest

from shuntserve.core.states import StopCode
from shuntserve.job import claims, control, fleet_records
from shuntserve.job.orphans import perhaps_orphans
from shuntserve.store import keys
from shuntserve.store.open import open_bucket
from shuntserve.store.port import Bucket

WRITER = "a" * 32


@pytest.fixture
def bucket(tmp_path: object) -> Bucket:
    """One job, as far as its directory shows."""
    bucket = open_bucket(str(tmp_path))
    bucket.put(keys.spec("a-1"), b"{}")
    return bucket


def controller(bucket: Bucket, *, epoch: int = 0, progress: int, gone: bool = False) -> None:
    """A controller that acts in an epoch and has told of its progress."""
    bucket.put(keys.controller("a-1", epoch), fleet_records.body(WRITER))
    pulse = claims.worker_body(WRITER, progress, gone=gone, facts={})
    bucket.put(keys.controller_pulse("a-1", epoch), pulse)


def test_a_living_controller_s_progress_moves_and_a_dead_one_s_does_not(bucket: Bucket) -> None:
    """Two looks tell them apart by epoch and progress."""
    controller(bucket, progress=5)
    first = perhaps_orphans(bucket)
    dead = perhaps_orphans(bucket)
    controller(bucket, progress=6)
    alive = perhaps_orphans(bucket)
    controller(bucket, epoch=1, progress=6)
    another = perhaps_orphans(bucket)

    assert first == dead == {"a-1": (0, 5)}
    assert alive == {"a-1": (0, 6)}
    assert another == {"a-1": (1, 6)}


def test_jobs_that_nobody_lost_are_no_orphans(bucket: Bucket) -> None:
    """One that never had a controller, one whose controller signed off, one that is paused, one that has ended."""
    never = perhaps_orphans(bucket)
    controller(bucket, progress=5, gone=True)
    signed_off = perhaps_orphans(bucket)
    controller(bucket, epoch=1, progress=0)
    control.pause(bucket, "a-1", WRITER, "requested")
    paused = perhaps_orphans(bucket)
    control.resume(bucket, "a-1", WRITER)
    resumed = perhaps_orphans(bucket)
    bucket.put(keys.final("a-1"), b"{}")

    assert never == signed_off == paused == perhaps_orphans(bucket) == {}
    assert resumed == {"a-1": (1, 0)}


def test_a_job_that_was_cancelled_while_paused_still_needs_a_controller(bucket: Bucket) -> None:
    """Its rows are still to be committed and its output to be written."""
    controller(bucket, progress=5)
    control.pause(bucket, "a-1", WRITER, "requested")
    control.stop(bucket, "a-1", WRITER, StopCode.CANCELLED)

    assert perhaps_orphans(bucket) == {"a-1": (0, 5)}

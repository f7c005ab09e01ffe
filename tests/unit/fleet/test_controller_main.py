"""Around the controller: how it leaves and is found, what is told of its costs, and the brake for all jobs at once."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shuntserve.cli.app import build_app
from shuntserve.core.states import JobState, RowCounts, StopCode
from shuntserve.errors import Corrupt, InvalidInput, ShuntServeError
from shuntserve.fleet.controller import on_a_thread
from shuntserve.fleet.controller_main import _goes_on, command
from shuntserve.job import control, final
from shuntserve.job.final import Final, Totals
from shuntserve.job.fleet_records import LaunchRecord
from shuntserve.job.report import costs_of
from shuntserve.job.run import RunRequest
from shuntserve.job.submission import submit_resolved
from shuntserve.store import keys
from shuntserve.store.open import open_bucket
from shuntserve.store.port import Bucket
from tests.support.fleet_world import Door, memory_bucket
from tests.unit.outputs.builders import JOB


def end(bucket: Bucket, job_id: str) -> None:
    """The job has ended."""
    made = Final(job_id, JobState.COMPLETED, RowCounts(1, 1, 0), Totals(), "parquet", (), (), (), 0, 0, "", "w")
    bucket.create(keys.final(job_id), final.encode(made))


# -- leaving -----------------------------------------------------------------------------------------------------------


def test_a_controller_that_leaves_for_a_pause_goes_on_when_that_was_taken_back() -> None:
    """Asked after the sign-off: whoever resumed or cancelled before it may have seen this controller at work."""
    bucket = memory_bucket()
    control.pause(bucket, "job", "user", "requested")
    answers = [_goes_on(bucket, "job")]
    control.resume(bucket, "job", "user")
    answers.append(_goes_on(bucket, "job"))
    control.pause(bucket, "job", "user", "requested")
    answers.append(_goes_on(bucket, "job"))
    control.stop(bucket, "job", "user", StopCode.CANCELLED)
    answers.append(_goes_on(bucket, "job"))
    end(bucket, "job")
    answers.append(_goes_on(bucket, "job"))

    assert answers == [False, True, False, True, False]


def test_a_bucket_that_is_out_keeps_no_controller() -> None:
    """What cannot be asked is not waited for: whoever resumes later starts another."""
    bucket = memory_bucket()

    assert _goes_on(bucket, "job")
    assert not _goes_on(Door(bucket, out=True), "job")


# -- long things beside ------------------------------------------------------------------------------------------------


def test_what_runs_beside_tells_its_value_or_its_error() -> None:
    """As it ended."""

    def fails() -> None:
        raise Corrupt("x", "is broken", "stop")

    assert on_a_thread(lambda: 7).result(10) == 7
    with pytest.raises(Corrupt):
        on_a_thread(fails).result(10)


def test_what_runs_beside_keeps_no_process_alive() -> None:
    """A controller that is asked to leave while it ingests ends; its thread ends with it."""
    told: Future[bool] = Future()
    on_a_thread(lambda: told.set_result(threading.current_thread().daemon))

    assert told.result(10)


# -- costs -------------------------------------------------------------------------------------------------------------


def launch(pool: str, hours: float, usd_per_h: float, on_demand: float | None) -> LaunchRecord:
    return LaunchRecord("n", pool, pool, "t", "", "spot", usd_per_h, on_demand, 0, 0.0, hours * 3600, "drained")


def test_costs_are_summed_by_pool() -> None:
    """Each machine from its launch to its end; on demand as far as known of all of them."""
    known = [launch("a", 2, 1.0, 3.0), launch("a", 1, 1.0, 3.0), launch("b", 0.5, 4.0, 6.0)]
    costs = costs_of(known, 1e9, 9.0)
    unknown = costs_of([*known, launch("b", 1, 4.0, None)], 1e9)

    assert costs is not None
    assert unknown is not None
    assert (costs.spent_usd, costs.on_demand_usd, costs.predicted_usd) == (5.0, 12.0, 9.0)
    assert [(one.pool, one.hours, one.usd) for one in costs.by_pool] == [("a", 3.0, 3.0), ("b", 0.5, 2.0)]
    assert (unknown.spent_usd, unknown.on_demand_usd) == (9.0, None)
    assert costs_of([], 1e9) is None


# -- starting ----------------------------------------------------------------------------------------------------------


def test_a_controller_is_started_as_this_process_runs_jobs(tmp_path: Path) -> None:
    """Store, directory, engine and its options go along; nothing else is assumed of the next process's environment."""
    request = RunRequest(
        "s3://bucket/prefix", tmp_path, overwrite=True, engine="module:engine", engine_options={"steps": 3}
    )
    argv = command(request, "job-1")

    assert argv[1:5] == ["-m", "shuntserve.cli.app", "controller", "job-1"]
    pairs = dict(itertools.pairwise(argv))
    assert pairs["--store"] == "s3://bucket/prefix"
    assert pairs["--data-dir"] == str(tmp_path)
    assert pairs["--worker-engine"] == "module:engine"
    assert pairs["--worker-engine-options"] == '{"steps": 3}'
    assert "--overwrite" in argv


# -- the brake ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Bucket:
    """Three jobs: one that can be stopped, one that cannot be read, one that has ended."""
    bucket = open_bucket(tmp_path / "store")
    for name in ("a-good", "c-ended", "d-good"):
        submit_resolved(bucket, replace(JOB, job_id=name, operations=replace(JOB.operations, output=str(tmp_path))))
    bucket.create(keys.spec("b-broken"), b"not a job")
    end(bucket, "c-ended")
    return bucket


def brake(*arguments: str) -> tuple[str, BaseException | None]:
    result = CliRunner().invoke(build_app(), ["stop", *arguments])
    return result.stderr, result.exception


def paused(bucket: Bucket) -> set[str]:
    """Jobs with a pause in their log."""
    return {name for name in bucket.list_dirs("jobs") if list(bucket.list(keys.control(name)))}


def test_one_job_that_cannot_be_read_does_not_keep_the_others_going(store: Bucket) -> None:
    """Every job that has not ended is stopped; the broken one is named, and the command fails with its reason."""
    told, error = brake("--all", "--store", store.url)

    assert paused(store) == {"a-good", "d-good"}
    assert control.standing(store, "d-good").paused == "requested"
    assert "not stopped: b-broken" in told
    assert isinstance(error, ShuntServeError)


def test_the_brake_stops_one_job(store: Bucket) -> None:
    """And no other."""
    told, error = brake("d-good", "--store", store.url)

    assert (paused(store), error) == ({"d-good"}, None)
    assert "stopped d-good" in told


def test_the_brake_wants_to_know_what_to_stop(store: Bucket) -> None:
    """Neither nothing nor everything and one."""
    for arguments in ((), ("a-good", "--all")):
        _, error = brake(*arguments, "--store", store.url)
        assert isinstance(error, InvalidInput)
    assert paused(store) == set()

"""Pause, resume, cancel, stop and approval of a job on a fleet, at every phase: nothing lost, state and exit code as
the table of `core.states` says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from shuntserve.job.status import JobStatus
from tests.support.fleets import FleetJob, FleetTrial
from tests.support.kills import STANDIN


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetTrial]:
    """Planted input and the output of an undisturbed run on one machine."""
    one = FleetTrial(tmp_path_factory.mktemp("control"), STANDIN, seed=12)
    yield one
    one.kill("controller", "machine", "agent", "worker")


def rows_of(trial: FleetTrial, name: str, part: str) -> list[dict[str, Any]]:
    """What a job wrote."""
    rows: list[dict[str, Any]] = (
        ds.dataset(trial.directory / f"out-{name}" / part, format="parquet").to_table().to_pylist()
    )
    return rows


def paused_and_gone(job: FleetJob) -> JobStatus:
    """Wait until a pause has taken effect: no machine and no controller is left."""
    return job.wait_for(lambda status: status.exit_code == 130 and not status.fleet.open_launches)


def test_a_job_paused_and_resumed_in_every_phase_ends_exact(trial: FleetTrial) -> None:
    """Paused while it ingests, while it launches, while it generates and while it drains: each time it can go on, holds
    no machine meanwhile, and in the end has every row with the undisturbed run's text."""
    job = trial.submit("pauses")
    assert job.command("pause").returncode == 0  # at once: ingest has hardly begun
    status = paused_and_gone(job)
    assert status.manifest is not None, "what ingest did is kept"
    assert status.fleet.launches == (), "nothing was launched for a paused job"

    job.go_on()
    job.wait_for(lambda status: bool(status.fleet.open_launches))
    assert job.command("pause").returncode == 0
    paused_and_gone(job)

    job.go_on()
    before = job.generating().snapshot
    assert before is not None
    assert job.command("pause").returncode == 0
    status = paused_and_gone(job)
    assert status.state == "PAUSED"
    assert status.snapshot is not None
    assert status.snapshot.tokens_regenerated == 0, "a pause makes everything durable"

    job.go_on()
    job.wait_for(lambda status: status.live_workers > 0)  # no later: on a busy machine the job would end meanwhile
    assert job.command("pause").returncode == 0
    job.go_on()  # in the middle of draining
    status = job.ended()

    trial.check("pauses")
    assert status.exit_code == 0
    assert status.state == "COMPLETED_WITH_REJECTS"
    assert trial.survivors() == []


def test_cancel_while_generating_keeps_what_there_was(trial: FleetTrial) -> None:
    """Cancelled in the middle: every id once, in data or as a cancelled reject with its partial text; exit code 1."""
    job = trial.submit("cancelled")
    job.generating()

    assert job.command("cancel", "--no-wait").returncode == 0
    status = job.ended()

    assert (status.state, status.exit_code) == ("PARTIAL", 1)
    answered = {row["request_id"] for row in rows_of(trial, "cancelled", "data")}
    rejects = rows_of(trial, "cancelled", "rejects")
    cancelled = {row["request_id"] for row in rejects if row["code"] == "cancelled"}
    assert answered | cancelled == trial.expected.keys()
    assert not answered & cancelled
    assert cancelled, "it was cancelled in the middle"
    for row in rows_of(trial, "cancelled", "data"):
        assert row["output_text"] == trial.expected[row["request_id"]]["output_text"]
    assert trial.survivors() == []


def test_nothing_is_launched_before_somebody_agrees(trial: FleetTrial) -> None:
    """With approval `always` the job proposes and waits; approved it runs; another one, cancelled there, rejects every
    row, and neither had a machine before."""
    job = trial.submit("approved", "--approval=always")
    status = job.wait_for(lambda status: status.state == "AWAITING_APPROVAL")
    assert status.fleet.launches == ()
    assert status.to_json()["approval"]["proposal"]["usd_per_h"] == 2.0
    assert "approve" in status.to_json()["next_step"]

    assert job.command("approve").returncode == 0
    job.ended()
    trial.check("approved")

    refused = trial.submit("refused", "--approval=always")
    refused.wait_for(lambda status: status.state == "AWAITING_APPROVAL")
    assert refused.command("cancel", "--no-wait").returncode == 0
    status = refused.ended()
    assert (status.state, status.exit_code) == ("PARTIAL", 1)
    assert status.fleet.launches == ()
    assert len(rows_of(trial, "refused", "rejects")) == trial.engine.rows
    assert trial.survivors() == []


def test_the_brake_ends_machines_at_once_and_the_job_goes_on_later(trial: FleetTrial) -> None:
    """`stop --now` leaves no process within seconds; resumed, the job ends exact."""
    job = trial.submit("stopped")
    job.generating()

    assert job.command("stop", "--now").returncode == 0
    job.wait_for(lambda status: status.exit_code == 130 and not status.fleet.open_launches, within_s=30.0)
    assert trial.survivors() == []

    job.go_on()
    job.ended()
    trial.check("stopped")


def test_a_job_that_spends_its_budget_is_partial(trial: FleetTrial) -> None:
    """Machines dear enough to use up the budget in seconds: the job stops before it is spent, keeps what is committed,
    and exits with the budget's code."""
    job = trial.submit("dear", "--pool=local=2@400", "--max-cost-usd=8", nodes=0)

    status = job.ended()

    assert (status.state, status.exit_code) == ("PARTIAL", 4)
    assert status.spent_usd <= 8 + 800 * (30 + 45) / 3600
    assert {row["code"] for row in rows_of(trial, "dear", "rejects")} >= {"budget"}
    ids = [row["request_id"] for row in rows_of(trial, "dear", "data") + rows_of(trial, "dear", "rejects")]
    assert len(ids) == trial.engine.rows
    assert trial.survivors() == []


def test_all_rows_rejected_is_not_green(trial: FleetTrial) -> None:
    """A job whose every row is bad ends as FAILED, with the rejects' exit code, or, where any share of rejects is
    accepted, with the one of failure: never with 0."""
    path = trial.directory / "bad.parquet"
    pq.write_table(pa.Table.from_pylist([{"prompt": "", "request_id": str(n)} for n in range(20)]), path)

    for name, accepted, exit_code in (("bad", "0.01", 3), ("accepted", "1", 1)):
        status = trial.submit(name, f"--set=max_reject_fraction={accepted}", source=path).ended()

        assert (status.state, status.exit_code) == ("FAILED", exit_code)
        assert "retry" in status.to_json()["next_step"]
        assert json.loads((trial.directory / f"out-{name}" / "_manifest.json").read_text())["state"] == "FAILED"

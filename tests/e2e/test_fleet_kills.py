"""A job on a local fleet whose processes are killed: every row once, its text undisturbed, and nothing left."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.support.fleets import FleetTrial
from tests.support.kills import STANDIN


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetTrial]:
    """Planted input and the output of an undisturbed run on one machine."""
    one = FleetTrial(tmp_path_factory.mktemp("fleet"), STANDIN, seed=11)
    yield one
    one.kill("controller", "machine", "agent", "worker")


@pytest.mark.parametrize("victim", ["agent", "worker", "machine", "controller"])
def test_rows_are_exact_whatever_is_killed(trial: FleetTrial, victim: str) -> None:
    """All agents, workers, machines or the controller killed in the middle: the job ends with every row exact."""
    job = trial.submit(victim)
    job.generating()

    assert trial.kill(victim) >= 1
    if victim == "controller":
        job.go_on()
    status = job.ended()

    trial.check(victim)
    assert status.exit_code == 0
    assert trial.survivors() == []


def test_rows_are_exact_when_everything_is_killed_at_once(trial: FleetTrial) -> None:
    """Controller, machines, agents and workers killed at one moment, then started again: every row exact."""
    job = trial.submit("all")
    job.generating()

    assert trial.kill("controller", "machine", "agent", "worker") >= 6
    assert trial.survivors() == []
    job.go_on()
    job.ended()

    trial.check("all")
    assert trial.survivors() == []


def test_a_second_controller_stands_by_and_takes_over(trial: FleetTrial) -> None:
    """Of two controllers one acts; when it is killed the other acts within 30 s and ends the job."""
    job = trial.submit("two")
    job.generating()
    first = job.status().fleet.controller
    assert first is not None
    trial.run_detached([*job.controller_command()])
    job.wait_for(lambda status: len(trial.processes("controller")) == 2)
    time.sleep(2 * 3.0)  # two leases: time enough to take what is not its own
    seen = job.status().fleet.controller
    assert seen is not None
    assert seen.incarnation == first.incarnation, "the second controller acted beside the first"

    acting = next(process for process in trial.processes("controller") if process.pid == first.facts["pid"])
    acting.kill()
    job.wait_for(lambda status: status.controller_epoch > first.epoch, 30.0)
    job.ended()

    trial.check("two")
    assert trial.survivors() == []


def test_machines_end_by_themselves_when_nobody_renews_the_spending_lease(trial: FleetTrial) -> None:
    """The controller is killed for good: within the lease and the time to drain no machine is left, and what they had
    is durable, so that the job goes on later without losing it."""
    job = trial.submit("lease", "--set=spending_lease_s=4")
    job.generating()
    trial.kill("controller")
    began_s = time.monotonic()

    assert trial.survivors(within_s=4.0 + 40.0) == []

    assert time.monotonic() - began_s < 4.0 + 40.0
    durable = job.status().snapshot
    assert durable is not None
    job.go_on()
    status = job.ended()
    trial.check("lease")
    assert status.final is not None
    assert status.final.totals.tokens_kept > 0


def test_an_announced_interruption_is_replaced_and_loses_nothing(trial: FleetTrial) -> None:
    """A machine is taken with notice: another takes its place, every row is exact, and the timeline tells of it."""
    from shuntserve.fleet.local_machine import interrupt

    job = trial.submit("notice")
    job.generating()
    interrupt(job.machine_directory("n0001"), 4.0)
    status = job.wait_for(lambda status: len(status.fleet.launches) == 3)
    assert status.fleet.launches[2].id == "n0003"
    job.ended()

    trial.check("notice")
    told = job.report()["interruptions"]
    assert ("notice", "n0001") in {(one["kind"], one["node"]) for one in told}
    assert trial.survivors() == []

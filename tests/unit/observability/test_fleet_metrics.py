"""What agents and the controller show of themselves is how things are."""

from __future__ import annotations

from shuntserve.fleet.imds import Warnings
from shuntserve.metrics import Metrics, tell_agent
from tests.support.fleet_world import World
from tests.unit.fleet.test_agent_loop import LEASE_S, Node


def shown(metrics: Metrics) -> dict[str, float]:
    return {metric.name: values[0][1] for metric, _, values in metrics.read()}


def test_an_agent_shows_warnings_and_what_is_left_of_its_lease() -> None:
    """A lease that is renewed is full again; one that is not runs down to nothing; a notice stays."""
    node, metrics = Node(), Metrics(node="n0001")
    node.go(20.0)
    tell_agent(metrics, **node.loop.vitals())
    renewed = shown(metrics)
    node.warnings = Warnings(interruption_unix_s=1e12, action="terminate")
    node.go(LEASE_S - 20.0, renewing=False)
    tell_agent(metrics, **node.loop.vitals())
    later = shown(metrics)

    assert renewed["shuntserve_node_notice"] == 0
    assert later["shuntserve_node_notice"] == 1
    assert LEASE_S - 12 <= renewed["shuntserve_spending_lease_seconds"] <= LEASE_S
    assert 0 < later["shuntserve_spending_lease_seconds"] <= 20.0
    assert renewed["shuntserve_node_workers"] == 0


def test_the_controllers_newest_look_is_the_jobs_standing() -> None:
    """While a job runs: its rows, and its machines by state; before the first look there is nothing to show."""
    world = World()
    controller = world.controller()
    before = controller.loop.newest
    world.run(lambda: controller.loop.newest is not None and controller.loop.newest[2].get("ready") == 2)
    newest = controller.loop.newest
    assert newest is not None
    job, snapshot, nodes = newest

    assert before is None
    assert job.job_id == world.job.job_id
    assert snapshot.rows_in > 0
    assert sum(nodes.values()) == sum(launch.ended_unix_s is None for launch in world.launches().values())

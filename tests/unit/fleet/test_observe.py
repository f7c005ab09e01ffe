"""What a controller makes of a launch, what its provider says and what its agent says, in time; and of its cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from shuntserve.core.ledger import Rules
from shuntserve.core.offers import Offer
from shuntserve.core.reconcile import NodeState
from shuntserve.errors import Unavailable
from shuntserve.fleet.observe import FleetObserver, free_slot
from shuntserve.fleet.provider import Launch, Machine, Patience
from shuntserve.job import claims, fleet_records
from shuntserve.job.fleet_records import BOOT_S, SHUTDOWN_S, LaunchRecord
from shuntserve.store import keys
from shuntserve.store.port import Bucket
from tests.support.fleet_world import memory_bucket

LEASE_S = 10.0
SPENDING_LEASE_S = 100.0
UNIX_S = 1_800_000_000.0


@dataclass
class Listing:
    """A provider of which only the list of machines matters."""

    ids: set[str] = field(default_factory=set)
    silent: bool = False
    patience: Patience = field(default_factory=lambda: Patience(machine_s=20.0, agent_s=60.0))

    def machines(self, job_id: str) -> Sequence[Machine]:
        if self.silent:
            raise Unavailable("provider", "did not answer")
        return [Machine(name, f"i-{name}") for name in sorted(self.ids)]

    def price(self, offer: Offer) -> Offer:
        return offer

    def on_demand_usd_per_h(self, offer: Offer) -> float | None:
        return None

    def launch(self, launch: Launch) -> None:
        self.ids.add(launch.id)

    def terminate(self, job_id: str, launch_id: str, *, at_once: bool = False) -> None:
        self.ids.discard(launch_id)


@dataclass
class Scene:
    """One launch, looked at again and again."""

    bucket: Bucket = field(default_factory=memory_bucket)
    provider: Listing = field(default_factory=Listing)
    progress: int = 0

    def __post_init__(self) -> None:
        self.observer = FleetObserver(self.bucket, "job", self.provider, Rules(lease_s=LEASE_S), SPENDING_LEASE_S)

    def launch(self, name: str = "n0001") -> None:
        record = LaunchRecord(name, "p", "local/spot", "local", "", "spot", 36.0, None, 0, UNIX_S)
        self.bucket.create(keys.launch("job", name), fleet_records.body("c", **record.to_json()))

    def report(self, *, gone: bool = False, told_s: float = 0.0, **facts: Any) -> None:
        self.progress += 1
        told = {"state": "ready", "leaving": None, "notice_unix_s": None, "told_unix_s": UNIX_S + told_s, **facts}
        body = claims.worker_body("agent", self.progress, gone=gone, facts=told)
        self.bucket.put(keys.node("job", "n0001"), body)

    def state(self, now_s: float) -> NodeState | None:
        """As seen now; None when there is nothing to see any more."""
        seen = self.observer.look(now_s, UNIX_S + now_s)
        return seen[0].node.state if seen else None


@pytest.fixture
def scene() -> Scene:
    scene = Scene()
    scene.launch()
    return scene


def test_a_machine_is_launching_until_its_agent_reports(scene: Scene) -> None:
    """The provider has it, nobody reported: launching, then late; the first report makes it ready."""
    scene.provider.ids.add("n0001")

    assert [scene.state(now_s) for now_s in (0.0, 30.0, 59.0, 60.0)] == [NodeState.LAUNCHING] * 3 + [NodeState.LATE]
    scene.report()
    assert scene.state(61.0) is NodeState.READY


def test_a_launch_the_provider_does_not_know_is_given_time(scene: Scene) -> None:
    """A list may lag behind: a launch that is not in it is lost only after the provider's patience …"""
    assert [scene.state(now_s) for now_s in (0.0, 19.0, 20.0)] == [NodeState.LAUNCHING] * 2 + [NodeState.LOST]


def test_a_machine_that_was_there_and_is_not_is_lost_at_once(scene: Scene) -> None:
    """… one that was in it before has ended, whether or not its agent ever came."""
    scene.provider.ids.add("n0001")
    scene.state(0.0)
    scene.provider.ids.clear()

    assert scene.state(1.0) is NodeState.LOST


def test_a_silent_provider_loses_nobody(scene: Scene) -> None:
    """While it does not answer, agents that report are ready, and one that never did is launching, then late."""
    scene.provider.silent = True

    assert scene.state(30.0) is NodeState.LAUNCHING
    scene.report()
    seen = scene.observer.look(31.0, UNIX_S)[0]
    assert (seen.node.state, seen.missing, seen.machine) == (NodeState.READY, False, None)
    assert scene.state(31.0 + 70.0) is NodeState.READY


def test_an_agent_whose_counter_stands_still_for_a_lease_is_lost(scene: Scene) -> None:
    """Three equal reads that span the lease; any progress begins anew."""
    scene.provider.ids.add("n0001")
    scene.report()
    states = [scene.state(now_s) for now_s in (0.0, 1.0, 10.5)]
    scene.report()
    states += [scene.state(now_s) for now_s in (11.5, 12.5, 22.0, 22.6)]

    assert states == [NodeState.READY] * 6 + [NodeState.LOST]


def test_nobody_is_lost_because_the_bucket_was_out(scene: Scene) -> None:
    """An outage keeps agents from writing as it keeps us from reading: the counts begin anew after it."""
    scene.provider.ids.add("n0001")
    scene.report()
    states = [scene.state(now_s) for now_s in (0.0, 1.0, 2.0)]
    scene.observer.could_not_read()
    states += [scene.state(now_s) for now_s in (14.0, 15.0, 24.0)]

    assert states == [NodeState.READY] * 6
    assert scene.state(25.0) is NodeState.LOST


def test_what_an_agent_says_of_itself(scene: Scene) -> None:
    """Leaving, notice, rebalance, failure and sign-off are its own words."""
    scene.provider.ids.add("n0001")
    scene.report(leaving="the plan says so")
    assert scene.state(0.0) is NodeState.LEAVING
    scene.report(notice_unix_s=UNIX_S + 120, rebalance=True, failure="no GPU")
    node = scene.observer.look(1.0, UNIX_S)[0].node
    assert (node.noticed, node.rebalance, node.failure) == (True, True, "no GPU")
    scene.report(gone=True)
    assert scene.state(2.0) is NodeState.DRAINED


def test_an_ended_launch_is_not_looked_at_again(scene: Scene) -> None:
    """Once its end is written down it costs nothing more."""
    scene.bucket.create(keys.launch_ended("job", "n0001"), fleet_records.body("c", ended_unix_s=UNIX_S + 3600, why="x"))

    assert scene.state(5000.0) is None
    assert scene.observer.spent_usd(UNIX_S + 5000) == pytest.approx(36.0)


def test_a_machine_that_is_there_is_charged_until_now(scene: Scene) -> None:
    """Whatever its agent says or does not say."""
    scene.provider.ids.add("n0001")
    scene.report(told_s=10)
    scene.state(5000.0)

    assert scene.observer.spent_usd(UNIX_S + 5000) == pytest.approx(50.0)


def test_a_machine_that_ended_unseen_is_charged_until_its_lease_had_ended_it(scene: Scene) -> None:
    """No controller looked for a day: its last word plus the spending lease is the most it can have run …"""
    scene.report(told_s=1000)
    scene.state(86400.0)
    assert scene.observer.spent_usd(UNIX_S + 86400) == pytest.approx((1000 + SPENDING_LEASE_S + SHUTDOWN_S) / 100)


def test_a_machine_of_which_nobody_heard_is_charged_for_its_boot(scene: Scene) -> None:
    """… one that never said a word, its boot and a lease; and one that signed off, its shutdown."""
    scene.state(86400.0)
    assert scene.observer.spent_usd(UNIX_S + 86400) == pytest.approx((BOOT_S + SPENDING_LEASE_S + SHUTDOWN_S) / 100)
    scene.report(told_s=2000, gone=True)
    scene.state(86401.0)
    assert scene.observer.spent_usd(UNIX_S + 86401) == pytest.approx((2000 + SHUTDOWN_S) / 100)


def test_the_smallest_free_slot_is_taken(scene: Scene) -> None:
    """Machines of a local fleet share one machine: each gets the first share nobody has."""
    for name, slot in (("n0002", 1), ("n0003", 3)):
        record = LaunchRecord(name, "p", "o", "local", "", "spot", 0.0, None, slot, UNIX_S)
        scene.bucket.create(keys.launch("job", name), fleet_records.body("c", **record.to_json()))

    assert free_slot(()) == 0
    assert free_slot(scene.observer.look(0.0, UNIX_S)) == 2

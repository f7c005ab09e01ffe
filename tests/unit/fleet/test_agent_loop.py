"""The node agent: plan, lease, notice and outage in, workers and reports out; its clock is the test's."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from shuntserve.core.desired import Desired, Pipeline, StagePlace
from shuntserve.core.spending import SpendingWatch
from shuntserve.errors import InvalidInput, ShuntServeError, Unavailable
from shuntserve.fleet.agent import KILL_AFTER_S, START_AGAIN_S, AgentConfig, AgentLoop
from shuntserve.fleet.imds import Warnings
from shuntserve.job import fleet_records
from shuntserve.job.fleet_records import NodeReport
from shuntserve.store import keys
from tests.support.fleet_world import Door, Inline, memory_bucket

UNIX_S = 1_800_000_000.0
LEASE_S = 60.0


@dataclass
class Crew:
    """The workers of one pipeline; they do what the test says."""

    pipeline: Pipeline
    obedient: bool = True
    running: int = 2
    failures: tuple[ShuntServeError, ...] = ()
    heard: list[str] = field(default_factory=list)
    breaks: ShuntServeError | None = None

    @property
    def finished(self) -> bool:
        return not self.running

    @property
    def all_failed(self) -> bool:
        return bool(self.failures)

    def tick(self, now_s: float) -> None:
        if self.breaks is not None:
            raise self.breaks
        if "drain" in self.heard and self.obedient:
            self.running = 0

    def flush(self) -> None:
        self.heard.append("flush")

    def drain(self) -> None:
        self.heard.append("drain")

    def kill(self) -> None:
        self.heard.append("kill")
        self.running = 0

    def end(self) -> None:
        self.heard.append("end")
        self.running = 0


class Node:
    """One agent, its bucket and the controller's pen."""

    def __init__(self) -> None:
        self.bucket = memory_bucket()
        self.door = Door(self.bucket)
        self.now_s = 500.0
        self.crews: list[Crew] = []
        self.warnings = Warnings()
        self.refuses: ShuntServeError | None = None
        self.kept: list[SpendingWatch] = []
        self.obedient = True
        self.plans = 0
        self.renewals = 0
        self.loop = AgentLoop(
            AgentConfig("job", "n0001", "agent-1", LEASE_S, report_interval_s=3.0, look_interval_s=1.0),
            Inline(self.door),
            self._start,
            lambda: self.warnings,
            {"host": "here"},
            SpendingWatch.begin(LEASE_S, self.now_s),
            self.kept.append,
        )

    def _start(self, pipeline: Pipeline) -> Crew:
        if self.refuses is not None:
            raise self.refuses
        self.crews.append(Crew(pipeline, self.obedient))
        return self.crews[-1]

    def plan(self, *pipelines: Pipeline, leave: tuple[str, ...] = (), epoch: int = 0) -> None:
        body = fleet_records.body(
            "c", epoch=epoch, desired=Desired(pipelines, leave).to_json(), reason="test", created_unix_s=0.0
        )
        self.bucket.create(keys.plan("job", self.plans), body)
        self.plans += 1

    def renew(self) -> None:
        self.renewals += 1
        self.bucket.put(keys.spending("job"), fleet_records.body("c", counter=self.renewals))

    def go(self, seconds: float, *, renewing: bool = True) -> None:
        """Let time pass, until the agent is over at most."""
        end_s = self.now_s + seconds
        while self.now_s < end_s and not self.loop.over:
            self.now_s += 0.25
            if renewing and self.now_s % 5 == 0:
                self.renew()
            self.loop.tick(self.now_s, UNIX_S + self.now_s)

    @property
    def report(self) -> NodeReport:
        found = fleet_records.read_node(self.bucket, "job", "n0001")
        assert found is not None
        return found


def mine(generation: int = 0) -> Pipeline:
    return Pipeline("n0001", generation, (StagePlace("n0001"),))


OTHERS = Pipeline("n0002", 0, (StagePlace("n0002"),))


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def at_work(node: Node) -> Node:
    """A node whose workers run."""
    node.plan(mine(), OTHERS)
    node.go(3)
    assert len(node.crews) == 1
    return node


def test_an_agent_without_a_plan_reports_and_waits(node: Node) -> None:
    """Its machine is ready; its counter moves; nothing is started."""
    node.go(1)
    first = node.report
    node.go(10)

    assert (first.state, node.report.failure, node.crews) == ("ready", None, [])
    assert node.report.progress > first.progress + 2
    assert node.report.told_unix_s == pytest.approx(UNIX_S + node.now_s, abs=3.5)


def test_a_node_runs_the_pipeline_that_stands_on_it(at_work: Node) -> None:
    """Its own and nobody else's, and says which."""
    at_work.go(4)

    assert at_work.crews[0].pipeline == mine()
    assert (at_work.report.facts["pipeline"], at_work.report.facts["workers"]) == ("n0001", 2)
    assert at_work.crews[0].heard == []


def test_a_new_generation_replaces_the_old_one_in_order(at_work: Node) -> None:
    """The old one drains before the new one starts."""
    at_work.plan(mine(7))
    at_work.go(3)

    assert at_work.crews[0].heard == ["drain", "end"]
    assert at_work.crews[1].pipeline == mine(7)
    assert at_work.report.facts["leaving"] is None


def test_a_node_that_is_dropped_drains_and_waits(at_work: Node) -> None:
    """No pipeline of its own any more and not told to leave: the machine stays, for another plan."""
    at_work.plan(OTHERS)
    at_work.go(5)
    assert at_work.crews[0].heard == ["drain", "end"]
    assert not at_work.loop.over
    at_work.plan(OTHERS, mine(2))
    at_work.go(3)
    assert at_work.crews[1].pipeline == mine(2)


def test_a_node_that_is_told_to_leave_drains_and_signs_off(at_work: Node) -> None:
    """Its last report says that it is gone, and that nothing runs."""
    at_work.plan(OTHERS, leave=("n0001",))
    at_work.go(10)

    assert at_work.loop.over
    assert at_work.crews[0].heard == ["drain", "end"]
    assert (at_work.report.gone, at_work.report.facts["workers"]) == (True, 0)


def test_workers_that_do_not_drain_are_killed(node: Node) -> None:
    """Leaving takes a bounded time, whatever workers do."""
    node.obedient = False
    node.plan(mine())
    node.go(3)
    node.plan(leave=("n0001",))
    node.go(KILL_AFTER_S - 1)
    assert "kill" not in node.crews[0].heard
    assert not node.loop.over
    node.go(5)
    assert "kill" in node.crews[0].heard
    assert node.loop.over


def test_a_plan_of_a_controller_that_was_replaced_means_nothing(at_work: Node) -> None:
    """A late entry of an older epoch, whatever it says."""
    at_work.plan(mine(), OTHERS, epoch=2)
    at_work.go(2)
    at_work.plan(leave=("n0001",), epoch=1)
    at_work.go(5)

    assert at_work.crews[0].heard == []
    assert not at_work.loop.over


def test_workers_that_left_by_themselves_are_started_again(at_work: Node) -> None:
    """They saw a pause that was taken back before anybody changed the plan: after a while there are new ones."""
    at_work.crews[0].running = 0
    at_work.go(START_AGAIN_S - 1)
    assert len(at_work.crews) == 1
    at_work.go(2)
    assert len(at_work.crews) == 2
    assert at_work.report.failure is None


def test_workers_that_cannot_work_here_are_the_nodes_failure(at_work: Node) -> None:
    """All of them gave up: it is told at once, and no other is started."""
    at_work.crews[0].running, at_work.crews[0].failures = 0, (Unavailable("worker 0", "no engine"),)
    at_work.go(20)

    assert at_work.report.failure == "worker 0: no engine"
    assert len(at_work.crews) == 1


@pytest.mark.parametrize("when", ["at the start", "later"])
def test_a_machine_on_which_workers_cannot_even_be_started_says_so(node: Node, when: str) -> None:
    """No share of a GPU, a directory that cannot be written: the agent lives on to tell, and to leave when told."""
    error = InvalidInput("workers", "do not fit", "ask for fewer")
    node.refuses = error if when == "at the start" else None
    node.plan(mine())
    node.go(3)
    for crew in node.crews:
        crew.breaks = error
    node.go(5)
    assert node.report.failure == str(error)
    node.plan(leave=("n0001",))
    node.go(5)
    assert node.loop.over
    assert node.report.gone


def test_without_renewals_a_machine_leaves_after_the_lease(at_work: Node) -> None:
    """The controller is dead: one lease after its last renewal, a look at most earlier, everything has drained."""
    at_work.renew()
    at_work.go(LEASE_S - 7, renewing=False)
    assert not at_work.loop.over
    at_work.go(9, renewing=False)
    assert at_work.loop.over
    assert at_work.crews[0].heard == ["drain", "end"]
    assert at_work.report.facts["leaving"] == "the spending lease has ended"


def test_renewals_keep_a_machine(at_work: Node) -> None:
    """As long as they come, it stays; each is kept for the agent's next life."""
    at_work.go(5 * LEASE_S)

    assert not at_work.loop.over
    assert at_work.kept[-1].renewal in (f"c/{at_work.renewals}", f"c/{at_work.renewals - 1}")


def test_a_bucket_that_is_out_ends_a_machine(at_work: Node) -> None:
    """It works on through the outage, then drains and ends though it cannot tell anybody."""
    at_work.go(10)
    at_work.door.out = True
    at_work.go(LEASE_S / 2)
    assert at_work.crews[0].heard == []
    at_work.go(LEASE_S)
    assert at_work.loop.over
    assert at_work.crews[0].heard == ["drain", "end"]


def test_a_short_outage_changes_nothing(at_work: Node) -> None:
    """Workers go on, the plan is read again afterwards."""
    at_work.door.out = True
    at_work.go(20)
    at_work.door.out = False
    at_work.plan(mine(3))
    at_work.go(5)

    assert [crew.pipeline.generation for crew in at_work.crews] == [0, 3]
    assert not at_work.loop.over


@pytest.mark.parametrize(("in_s", "drains_after_s"), [(120.0, 90.0), (20.0, 10.0), (-5.0, 0.0)])
def test_a_notice_is_told_checkpointed_and_drained_before(at_work: Node, in_s: float, drains_after_s: float) -> None:
    """At once it is reported and workers flush; they drain half a minute before the end, or half of a shorter notice
    before it, and the agent signs off."""
    at_work.warnings = Warnings(UNIX_S + at_work.now_s + in_s, "terminate")
    at_work.go(0.5)
    assert at_work.crews[0].heard[0] == "flush"
    at_work.go(max(0.0, drains_after_s - 2))
    if drains_after_s:
        assert at_work.crews[0].heard == ["flush"]
        assert at_work.report.notice_unix_s is not None
    at_work.go(5)
    assert at_work.crews[0].heard == ["flush", "drain", "end"]
    assert at_work.loop.over
    assert at_work.report.gone


def test_a_machine_that_was_written_off_leaves(at_work: Node) -> None:
    """Its launch came through after its controller had been replaced, and is noted as ended: nobody would end it."""
    at_work.bucket.create(keys.launch_ended("job", "n0001"), fleet_records.body("c", ended_unix_s=0.0, why="lost"))
    at_work.go(10)

    assert at_work.loop.over
    assert at_work.crews[0].heard == ["drain", "end"]


def test_a_rebalance_recommendation_is_told_and_work_goes_on(at_work: Node) -> None:
    """Whether the machine leaves is the controller's decision."""
    at_work.warnings = Warnings(rebalance=True)
    at_work.go(4)

    assert at_work.report.facts["rebalance"] is True
    assert at_work.crews[0].heard == []


def test_a_signal_drains(at_work: Node) -> None:
    """SIGTERM of the agent, or the machine's button."""
    at_work.loop.leave("SIGTERM")
    at_work.go(5)

    assert at_work.loop.over
    assert at_work.report.facts["leaving"] == "SIGTERM"
    assert at_work.crews[0].heard == ["drain", "end"]


def test_however_an_agent_ends_its_workers_end(at_work: Node) -> None:
    """`end` is what its process does last, also with a trace."""
    at_work.loop.end()

    assert at_work.crews[0].heard == ["end"]


def test_a_plan_that_cannot_be_read_ends_no_work(at_work: Node) -> None:
    """It is tried again; what runs goes on, and the lease bounds how long."""
    at_work.bucket.create(keys.plan("job", at_work.plans), b"{}")
    at_work.go(20)

    assert at_work.crews[0].heard == []
    assert not at_work.loop.over

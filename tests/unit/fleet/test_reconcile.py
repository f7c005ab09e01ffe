"""The controller's decision: properties over all worlds, and one table of what becomes of each machine."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuntserve.core.desired import Desired, Pipeline, StagePlace
from shuntserve.core.offers import Offer, Want
from shuntserve.core.reconcile import (
    MOST_FAILURES_IN_A_ROW,
    MOST_MACHINES_EACH,
    Buy,
    Decision,
    End,
    Money,
    Node,
    NodeState,
    World,
    decide,
)
from shuntserve.core.shapes import Shape, StageWanted
from shuntserve.core.states import Pause, StopCode

CHEAP = Offer("g6", "a", "spot", 1.0)
DEAR = Offer("g6", "a", "on-demand", 3.0)
FREE = Offer("local", "", "spot", 0.0)
WANTS = (Want("g6/a", 3, (CHEAP, DEAR)), Want("local", 2, (FREE,)))


def healthy(node: Node) -> bool:
    """It counts as one of the wanted."""
    return (
        node.state in (NodeState.READY, NodeState.LAUNCHING)
        and node.failure is None
        and not (node.noticed or node.rebalance or node.overdue)
    )


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Any fleet, also ones no controller would have made."""
    nodes = []
    for number in range(draw(st.integers(0, 9))):
        pool, offer = draw(st.sampled_from([("g6/a", CHEAP), ("g6/a", DEAR), ("local", FREE), ("gone", CHEAP)]))
        nodes.append(
            Node(
                f"n{number:04d}",
                pool,
                offer.name,
                offer.usd_per_h or 0.0,
                draw(st.sampled_from(NodeState)),
                noticed=draw(st.booleans()),
                rebalance=draw(st.booleans()),
                failure=draw(st.sampled_from([None, None, None, "does not start"])),
                overdue=draw(st.sampled_from([False, False, False, True])),
            )
        )
    planned = draw(st.sets(st.sampled_from([node.id for node in nodes]))) if nodes else set()
    pipelines = tuple(Pipeline(name, draw(st.integers(0, 5)), (StagePlace(name),)) for name in sorted(planned))
    return World(
        wants=draw(st.sampled_from([WANTS, WANTS[:1], ()])),
        nodes=tuple(nodes),
        chunks_left=draw(st.integers(0, 8)),
        money=Money(draw(st.floats(0, 12)), draw(st.sampled_from([math.inf, 10.0]))),
        leaving=draw(st.sampled_from([False, False, True])),
        stopped=draw(st.sampled_from([False, False, True])),
        deadline_passed=draw(st.sampled_from([False, False, True])),
        cooling=frozenset(draw(st.sets(st.sampled_from([CHEAP.name, DEAR.name, FREE.name])))),
        failures_in_a_row=draw(st.sampled_from([0, 0, MOST_FAILURES_IN_A_ROW - 1, MOST_FAILURES_IN_A_ROW])),
        desired=Desired(pipelines),
        next_number=9,
    )


@given(worlds())
def test_never_more_machines_are_bought_than_wanted_or_of_use(world: World) -> None:
    """Healthy ones and bought ones together exceed neither a pool's count nor the chunks that are left; a pool is never
    more than twice its size."""
    decision = decide(world)

    ended = {end.node for end in decision.ends}
    kept = [node for node in world.nodes if node.id not in ended]
    bought = Counter(buy.pool for buy in decision.buys)
    for want in world.wants:
        mine = [node for node in kept if node.pool == want.name]
        if bought[want.name]:
            assert sum(map(healthy, mine)) + bought[want.name] <= want.count
            assert len(mine) + bought[want.name] <= MOST_MACHINES_EACH * want.count
    if decision.buys:
        assert sum(map(healthy, kept)) + len(decision.buys) <= world.chunks_left
    assert set(bought) <= {want.name for want in world.wants}


@given(worlds())
def test_nothing_is_bought_for_a_job_that_ends_or_with_money_it_does_not_have(world: World) -> None:
    """Neither while the fleet leaves, nor once any limit or pause is decided, nor beyond the cap, nor an offer that
    cools off."""
    decision = decide(world)

    if world.leaving or decision.stop is not None or decision.pause is not None:
        assert decision.buys == ()
    usd_per_h = sum(node.usd_per_h for node in world.nodes if node.id not in {end.node for end in decision.ends})
    usd_per_h += sum(buy.offer.usd_per_h or 0.0 for buy in decision.buys)
    if decision.buys:
        assert world.money.spent_usd + usd_per_h * world.drain_s / 3600 < world.money.cap_usd
    assert all(buy.offer.name not in world.cooling for buy in decision.buys)


@given(worlds())
def test_every_machine_that_is_of_no_use_is_ended_and_no_other(world: World) -> None:
    """Failed, lost, late, drained and overdue ones always; others only when they never came and are not needed."""
    decision = decide(world)

    ended = {end.node for end in decision.ends}
    assert len(ended) == len(decision.ends), "each once"
    for node in world.nodes:
        dead = (
            node.failure is not None
            or node.overdue
            or node.state in (NodeState.LOST, NodeState.LATE, NodeState.DRAINED)
        )
        if dead:
            assert node.id in ended
        elif node.id in ended:
            assert node.state is NodeState.LAUNCHING


@given(worlds())
def test_a_machine_is_told_one_thing(world: World) -> None:
    """Nobody both works and leaves, ended machines do neither, and what works can."""
    desired = decide(world).desired

    ended = {end.node for end in decide(world).ends}
    states = {node.id: node.state for node in world.nodes}
    working = {name for pipeline in desired.pipelines for name in pipeline.nodes}
    assert not working & set(desired.leave)
    assert not (working | set(desired.leave)) & ended
    assert all(states[name] is NodeState.READY for name in working)


@given(worlds())
def test_the_same_world_decides_the_same_and_a_plan_that_was_written_stands(world: World) -> None:
    """With the plan it has just made as the newest, the next decision makes the same one: no plan is written for
    nothing, and no pipeline is formed again."""
    first = decide(world)
    again = decide(replace(world, desired=first.desired, next_number=world.next_number + 1))

    assert decide(world) == first
    assert again.desired == first.desired


@given(worlds())
def test_a_pipeline_keeps_its_generation_as_long_as_its_node(world: World) -> None:
    """One that was planned before goes on as it is; a new one has the number of its plan; on a machine that will be
    taken none is begun."""
    known = {pipeline.id: pipeline for pipeline in world.desired.pipelines}
    noticed = {node.id for node in world.nodes if node.noticed}

    for pipeline in decide(world).desired.pipelines:
        if pipeline.id in known:
            assert pipeline == known[pipeline.id]
        else:
            assert pipeline.generation == world.next_number
            assert pipeline.id not in noticed


@given(worlds())
def test_a_machine_at_risk_leaves_only_once_its_pool_is_whole(world: World) -> None:
    """With a rebalance recommendation alone a machine works on until as many others as wanted are ready."""
    decision = decide(world)

    if decision.stop or decision.pause or world.leaving:
        return
    counts = {want.name: want.count for want in world.wants}
    ended = {end.node for end in decision.ends}
    for node in world.nodes:
        if node.id in decision.desired.leave and node.rebalance:
            others = [
                other
                for other in world.nodes
                if other.pool == node.pool and other.id not in ended and other.state is NodeState.READY
            ]
            assert sum(map(healthy, others)) >= counts.get(node.pool, 0)


@given(worlds())
def test_a_leaving_fleet_is_told_to_leave_whole(world: World) -> None:
    """While the job is over, paused or stopped, every machine that reported is told to leave, every other is ended."""
    decision = decide(world)

    if not (world.leaving or decision.stop or decision.pause):
        return
    assert decision.desired.pipelines == ()
    assert {end.node for end in decision.ends} | set(decision.desired.leave) == {node.id for node in world.nodes}


@given(worlds())
def test_the_budget_outranks_the_deadline_and_a_stop_is_decided_once(world: World) -> None:
    """Out of money is told as such though the deadline has passed as well; what leaves or was stopped is not stopped
    again; a pause for failures comes after both."""
    decision = decide(world)

    usd_per_h = sum(node.usd_per_h for node in world.nodes)
    broke = world.money.spent_usd + usd_per_h * world.drain_s / 3600 >= world.money.cap_usd
    expected = None
    if not world.leaving and not world.stopped:
        expected = StopCode.BUDGET if broke else StopCode.DEADLINE if world.deadline_passed else None
    assert decision.stop is expected
    failing = world.failures_in_a_row >= MOST_FAILURES_IN_A_ROW and not world.leaving and expected is None
    assert decision.pause is (Pause.ENGINE if failing else None)


TYPES = {"big": Offer("big", "a", "spot", 4.0), "small": Offer("small", "a", "spot", 1.0)}
STAGED = tuple(Want(name, 3, (offer,)) for name, offer in TYPES.items())


@st.composite
def staged_worlds(draw: st.DrawFn) -> World:
    """Replicas of several stages on machines of two types, and any earlier plan."""
    shapes = tuple(
        Shape(
            f"p{number}",
            tuple(
                StageWanted(kind, 2 if kind == "big" else 1, 8 * place, 8 * place + 8)
                for place, kind in enumerate(draw(st.lists(st.sampled_from(sorted(TYPES)), min_size=1, max_size=3)))
            ),
        )
        for number in range(draw(st.integers(1, 3)))
    )
    nodes = tuple(
        Node(
            f"n{number}",
            kind,
            TYPES[kind].name,
            1.0,
            draw(st.sampled_from([NodeState.READY, NodeState.READY, NodeState.LAUNCHING, NodeState.LOST])),
            noticed=draw(st.sampled_from([False, False, True])),
            rebalance=draw(st.sampled_from([False, False, True])),
        )
        for number, kind in enumerate(draw(st.lists(st.sampled_from(sorted(TYPES)), max_size=7)))
    )
    earlier = decide(World(STAGED, nodes, 100, shapes=shapes, next_number=3)).desired
    lost = draw(st.sets(st.sampled_from([node.id for node in nodes]))) if nodes else set()
    left = tuple(replace(node, state=NodeState.LOST) if node.id in lost else node for node in nodes)
    more = tuple(
        Node(f"r{number}", kind, TYPES[kind].name, 1.0, NodeState.READY)
        for number, kind in enumerate(draw(st.lists(st.sampled_from(sorted(TYPES)), max_size=3)))
    )
    return World(STAGED, left + more, 100, shapes=shapes, desired=earlier, next_number=7)


@given(staged_worlds())
def test_a_replica_of_several_stages_stands_on_machines_of_its_own(world: World) -> None:
    """Each stage on a ready machine of its type, none on two; whole replicas only; one whose machines are all there
    stays as it is, any other is formed in this plan, on no machine that will be taken or is at risk."""
    decision = decide(world)

    nodes = {node.id: node for node in world.nodes}
    shapes = {shape.id: shape for shape in world.shapes}
    known = {pipeline.id: pipeline for pipeline in world.desired.pipelines}
    used = [stage.node for pipeline in decision.desired.pipelines for stage in pipeline.stages]
    assert len(used) == len(set(used))
    assert not set(used) & set(decision.desired.leave)
    for pipeline in decision.desired.pipelines:
        wanted = shapes[pipeline.id].stages
        assert [(stage.tp, stage.layers) for stage in pipeline.stages] == [(s.tp, (s.first, s.end)) for s in wanted]
        assert [nodes[stage.node].pool for stage in pipeline.stages] == [s.instance_type for s in wanted]
        assert all(nodes[name].state is NodeState.READY for name in pipeline.nodes)
        if pipeline != known.get(pipeline.id):
            assert pipeline.generation == world.next_number
            assert all(healthy(nodes[name]) for name in pipeline.nodes)
    for pipeline in known.values():
        still = all(
            nodes[name].state is NodeState.READY and name not in decision.desired.leave for name in pipeline.nodes
        )
        if still:
            assert pipeline in decision.desired.pipelines


@given(staged_worlds())
def test_survivors_form_the_next_generation(world: World) -> None:
    """A plan that was written stands; a replica that is formed again keeps the healthy machines it had where their type
    is needed."""
    decision = decide(world)
    again = decide(replace(world, desired=decision.desired, next_number=world.next_number + 1))

    assert again.desired == decision.desired
    nodes = {node.id: node for node in world.nodes}
    known = {pipeline.id: pipeline for pipeline in world.desired.pipelines}
    if len(world.shapes) == 1:
        for pipeline in decision.desired.pipelines:
            before = known.get(pipeline.id)
            if before is not None and pipeline != before:
                free = {
                    name
                    for name in before.nodes
                    if healthy(nodes[name])
                    and nodes[name].state is NodeState.READY
                    and name not in decision.desired.leave
                }
                assert free <= set(pipeline.nodes)


def one(state: NodeState = NodeState.READY, **more: object) -> Node:
    """A machine of the pool of three."""
    return Node("n0001", "g6/a", CHEAP.name, 1.0, state, **more)  # type: ignore[arg-type]


WORKS = Desired((Pipeline("n0001", 4, (StagePlace("n0001"),)),))


@pytest.mark.parametrize(
    ("node", "working", "leave", "ended", "bought"),
    [
        (one(), True, False, None, 2),
        (one(NodeState.LAUNCHING), False, False, None, 2),
        (one(rebalance=True), True, False, None, 3),
        (one(noticed=True), True, False, None, 3),
        (one(NodeState.LEAVING), False, False, None, 3),
        (one(failure="x"), False, False, "failed", 3),
        (one(overdue=True), False, False, "does not leave", 3),
        (one(NodeState.DRAINED), False, False, "drained", 3),
        (one(NodeState.LOST), False, False, "lost", 3),
        (one(NodeState.LATE), False, False, "late", 3),
    ],
)
def test_what_becomes_of_a_machine(node: Node, working: bool, leave: bool, ended: str | None, bought: int) -> None:
    """The table at the head of `core.reconcile`, for one machine of three that had been at work."""
    decision = decide(World(WANTS[:1], (node,), 100, desired=WORKS))

    assert bool(decision.desired.pipelines) is working
    assert bool(decision.desired.leave) is leave
    assert decision.ends == (() if ended is None else (End("n0001", ended),))
    assert len(decision.buys) == bought


def test_an_offer_that_cools_off_is_passed_over_for_the_next() -> None:
    """Spot has failed lately: on-demand is bought; when both have, nothing is."""
    spot_cools = World(WANTS[:1], (), 1, cooling=frozenset({CHEAP.name}))
    both_cool = replace(spot_cools, cooling=frozenset({CHEAP.name, DEAR.name}))

    assert decide(spot_cools).buys == (Buy("g6/a", DEAR),)
    assert decide(both_cool) == Decision(Desired())


def test_replacements_that_are_at_risk_in_turn_do_not_grow_the_fleet_without_end() -> None:
    """Every machine ever bought gets a rebalance recommendation: the pool stops at twice its size."""
    nodes: tuple[Node, ...] = ()
    for _ in range(20):
        decision = decide(World(WANTS[:1], nodes, 100))
        for buy in decision.buys:
            nodes += (Node(f"n{len(nodes):04d}", buy.pool, buy.offer.name, 1.0, NodeState.READY, rebalance=True),)

    assert len(nodes) == MOST_MACHINES_EACH * 3


def test_of_too_many_machines_those_that_work_stay() -> None:
    """Two controllers bought for the same gap: what has not come yet is ended, then the newest leave."""
    ready = tuple(Node(f"n{number:04d}", "local", FREE.name, 0.0, NodeState.READY) for number in range(3))
    launching = Node("n0009", "local", FREE.name, 0.0)

    decision = decide(World(WANTS, (*ready, launching), 100))

    assert decision.ends == (End("n0009", "not wanted"),)
    assert decision.desired.leave == ("n0002",)
    assert {pipeline.id for pipeline in decision.desired.pipelines} == {"n0000", "n0001"}

"""The controller's decision: from the fleet as observed and the job as it stands to what is done next.

    observed nodes, wants, money, standing ─► decide ─► launches, terminations, the desired state, a stop or a pause

Pure, and complete at each call: nothing is remembered here but what `World` carries, so whoever takes the controller
over decides the same.

    node                   counts for its pool     in the plan     next
    launching, ready       yes                     when ready      -
    rebalance recommended  no (a spare is bought)  yes             leaves once the pool is whole without it
    interruption notice    no                      as it was       drains by itself, ends
    leaving                no                      no              ends by itself
    failed                 no                      no              terminated
    drained, lost, overdue no                      no              terminated
    surplus                -                       no              launching: terminated, ready: leaves
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from shuntserve.core.desired import Desired, Pipeline, StagePlace
from shuntserve.core.offers import Offer, Want
from shuntserve.core.shapes import Shape
from shuntserve.core.states import Pause, StopCode


class NodeState(StrEnum):
    """How far a machine of ours is."""

    LAUNCHING = "launching"
    READY = "ready"
    LEAVING = "leaving"
    """Its agent is making everything durable and will end the machine."""
    DRAINED = "drained"
    """Its agent has left for good."""
    LOST = "lost"
    """The machine is gone, or its agent has been silent for a lease."""
    LATE = "late"
    """Launched long ago, and no agent has ever reported."""


@dataclass(frozen=True, slots=True)
class Node:
    """One machine that was launched for the job and is not known to have ended."""

    id: str
    pool: str
    """The want it was bought for."""
    offer: str
    usd_per_h: float
    state: NodeState = NodeState.LAUNCHING
    noticed: bool = False
    rebalance: bool = False
    failure: str | None = None
    """Why its pipeline cannot work there."""
    overdue: bool = False
    """It was told to leave long ago and has not."""


@dataclass(frozen=True, slots=True)
class Money:
    """What was spent so far, and the cap (infinite when there is none)."""

    spent_usd: float = 0.0
    cap_usd: float = math.inf


@dataclass(frozen=True, slots=True)
class World:
    """Everything a decision rests on."""

    wants: tuple[Want, ...]
    nodes: tuple[Node, ...]
    chunks_left: int
    money: Money = Money()
    leaving: bool = False
    """The job is complete, paused or stopped: the fleet shall go."""
    stopped: bool = False
    """The job was stopped for good: no limit stops it again."""
    deadline_passed: bool = False
    cooling: frozenset[str] = frozenset()
    """Offers that failed lately."""
    failures_in_a_row: int = 0
    """Nodes that failed, or never reported, since a chunk was last committed."""
    desired: Desired = field(default_factory=Desired)
    """The newest plan."""
    next_number: int = 0
    """The number of the next one: what is formed in it has this generation."""
    shapes: tuple[Shape, ...] = ()
    """The pipelines that are wanted; none: one on each node, of all its GPUs."""
    drain_s: float = 30.0
    """How long machines go on costing after they were told to leave."""


@dataclass(frozen=True, slots=True)
class Buy:
    """Launch one machine for a want, through this offer."""

    pool: str
    offer: Offer


@dataclass(frozen=True, slots=True)
class End:
    """Terminate a machine; `why` is for the log."""

    node: str
    why: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, in this order: write the plan, end, stop or pause, buy."""

    desired: Desired
    ends: tuple[End, ...] = ()
    buys: tuple[Buy, ...] = ()
    stop: StopCode | None = None
    pause: Pause | None = None


MOST_FAILURES_IN_A_ROW = 4
"""After so many machines on which nothing worked the job is paused: more of them would only cost money."""
MOST_MACHINES_EACH = 2
"""So many machines a pool has at most for each one wanted: where every replacement is soon at risk as well, buying more
of them would never end."""


def decide(world: World) -> Decision:
    """What to do now."""
    stop = _stop(world)
    pause = None
    if stop is None and not world.leaving and world.failures_in_a_row >= MOST_FAILURES_IN_A_ROW:
        pause = Pause.ENGINE
    leaving = world.leaving or stop is not None or pause is not None
    ends = tuple(End(node.id, _why(node)) for node in world.nodes if _why(node))
    ended = {end.node for end in ends}
    nodes = [node for node in world.nodes if node.id not in ended]
    if leaving:
        unreported = tuple(End(node.id, "not needed") for node in nodes if node.state is NodeState.LAUNCHING)
        ready = tuple(node.id for node in nodes if node.state in (NodeState.READY, NodeState.LEAVING))
        return Decision(Desired((), ready), ends + unreported, (), stop, pause)
    surplus = _surplus(world.wants, nodes)
    ends += tuple(End(node.id, "not wanted") for node in surplus if node.state is NodeState.LAUNCHING)
    spare = _replaced(world.wants, nodes) | {node.id for node in surplus}
    return Decision(_desired(world, nodes, spare), ends, _buys(world, nodes))


def _stop(world: World) -> StopCode | None:
    """The limit that ends the job now. Budget outranks deadline."""
    if world.leaving or world.stopped:
        return None
    usd_per_h = sum(node.usd_per_h for node in world.nodes)
    if world.money.spent_usd + usd_per_h * world.drain_s / 3600 >= world.money.cap_usd:
        return StopCode.BUDGET
    return StopCode.DEADLINE if world.deadline_passed else None


def _why(node: Node) -> str:
    """Why a machine is ended at once; empty when it is not."""
    if node.failure is not None:
        return "failed"
    if node.overdue:
        return "does not leave"
    if node.state in (NodeState.DRAINED, NodeState.LOST, NodeState.LATE):
        return str(node.state)
    return ""


def _healthy(node: Node) -> bool:
    return not node.noticed and not node.rebalance and node.state is not NodeState.LEAVING


def _surplus(wants: Sequence[Want], nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Healthy nodes beyond what is wanted of their pool, the newest first: two controllers once bought for the same
    gap, or less is wanted now than before.
    """
    surplus: list[Node] = []
    counts = {want.name: want.count for want in wants}
    for pool in dict.fromkeys(node.pool for node in nodes):
        healthy = [node for node in nodes if node.pool == pool and _healthy(node)]
        healthy.sort(key=lambda node: (node.state is not NodeState.READY, node.id))
        surplus += healthy[counts.get(pool, 0) :]
    return tuple(surplus)


def _replaced(wants: Sequence[Want], nodes: Sequence[Node]) -> frozenset[str]:
    """Nodes with a rebalance recommendation whose pool is whole without them."""
    counts = {want.name: want.count for want in wants}
    ready: dict[str, int] = {}
    for node in nodes:
        ready[node.pool] = ready.get(node.pool, 0) + (_healthy(node) and node.state is NodeState.READY)
    return frozenset(
        node.id
        for node in nodes
        if node.rebalance and not node.noticed and ready[node.pool] >= counts.get(node.pool, 0)
    )


def _desired(world: World, nodes: Sequence[Node], spare: frozenset[str]) -> Desired:
    """The pipelines that can be formed; each keeps its generation as long as its stages do."""
    known: Mapping[str, Pipeline] = {pipeline.id: pipeline for pipeline in world.desired.pipelines}
    usable = [node for node in nodes if node.state is NodeState.READY and node.id not in spare]
    pipelines = _formed(world, known, usable) if world.shapes else []
    for node in usable if not world.shapes else ():
        stages = (StagePlace(node.id),)
        kept = known.get(node.id)
        if kept is not None and kept.stages == stages:
            pipelines.append(kept)
        elif not node.noticed:
            pipelines.append(Pipeline(node.id, world.next_number, stages))
    leave = tuple(node.id for node in nodes if node.id in spare and node.state is NodeState.READY)
    return Desired(tuple(pipelines), leave)


def _formed(world: World, known: Mapping[str, Pipeline], usable: Sequence[Node]) -> list[Pipeline]:
    """The wanted shapes, each on nodes of its own: as it was while all its nodes are there, else formed anew from free
    ones, survivors of the last formation first. One that lacks a node waits.
    """
    there = {node.id for node in usable}
    kept = {
        shape.id: known[shape.id]
        for shape in world.shapes
        if shape.id in known and _same(known[shape.id], shape) and there.issuperset(known[shape.id].nodes)
    }
    taken = {node for pipeline in kept.values() for node in pipeline.nodes}
    types = {want.name: want.offers[0].instance_type for want in world.wants}
    free = [node for node in usable if node.id not in taken and _healthy(node)]
    pipelines: list[Pipeline] = []
    for shape in world.shapes:
        if shape.id in kept:
            pipelines.append(kept[shape.id])
            continue
        before = known[shape.id].nodes if shape.id in known else ()
        places: list[StagePlace] = []
        for stage in shape.stages:
            mine = [node for node in free if types.get(node.pool) == stage.instance_type]
            if not mine:
                break
            node = min(mine, key=lambda node: (node.id not in before, node.id))
            free.remove(node)
            places.append(StagePlace(node.id, stage.tp, stage.tp, (stage.first, stage.end)))
        if len(places) == len(shape.stages):
            pipelines.append(Pipeline(shape.id, world.next_number, tuple(places)))
        else:
            free += [node for node in usable if node.id in {place.node for place in places}]
    return pipelines


def _same(pipeline: Pipeline, shape: Shape) -> bool:
    """Whether a pipeline still has the stages that are wanted."""
    wanted = [(stage.tp, (stage.first, stage.end)) for stage in shape.stages]
    return [(place.tp, place.layers) for place in pipeline.stages] == wanted


def _buys(world: World, nodes: Sequence[Node]) -> tuple[Buy, ...]:
    """Machines that are missing, no more of them than there are chunks to work on, and none that breaks the budget."""
    working = sum(_healthy(node) for node in nodes)
    room = world.chunks_left - working if not world.shapes else sum(want.count for want in world.wants)
    usd_per_h = sum(node.usd_per_h for node in nodes)
    buys: list[Buy] = []
    for want in world.wants:
        have = sum(_healthy(node) and node.pool == want.name for node in nodes)
        held = sum(node.pool == want.name for node in nodes)
        for _ in range(min(want.count - have, MOST_MACHINES_EACH * want.count - held)):
            offer = next((offer for offer in want.offers if offer.name not in world.cooling), None)
            if room <= 0 or offer is None:
                break
            usd_per_h += offer.usd_per_h or 0.0
            if world.money.spent_usd + usd_per_h * world.drain_s / 3600 >= world.money.cap_usd:
                return tuple(buys)
            buys.append(Buy(want.name, offer))
            room -= 1
    return tuple(buys)

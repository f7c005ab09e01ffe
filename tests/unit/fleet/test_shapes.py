"""Replicas over several machines: how they are written, and how they are formed and formed anew."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuntserve.core.desired import Desired, Pipeline
from shuntserve.core.offers import Offer, Want, read_offers
from shuntserve.core.reconcile import Node, NodeState, World, decide
from shuntserve.core.shapes import Shape, StageWanted, read_shapes
from shuntserve.errors import InvalidInput

BIG = Want("big", 2, (Offer("big", "", "spot", 2.0),))
SMALL = Want("small", 2, (Offer("small", "", "spot", 1.0),))
SHAPES = (
    Shape("p000", (StageWanted("big", 4, 0, 20), StageWanted("small", 1, 20, 32))),
    Shape("p001", (StageWanted("big", 4, 0, 20), StageWanted("small", 1, 20, 32))),
)


def node(name: str, state: NodeState = NodeState.READY, **more: bool) -> Node:
    """A machine of the pool its name begins with."""
    return Node(name, name.rstrip("0123456789"), "", 1.0, state, **more)


def world(nodes: list[Node], desired: Desired | None = None, number: int = 0) -> World:
    """Two replicas wanted, each of a big and a small machine."""
    return World((BIG, SMALL), tuple(nodes), 1000, desired=desired or Desired(), next_number=number, shapes=SHAPES)


def test_stages_are_read_with_their_layers() -> None:
    """Two stages on two types: layers add up from zero, tensor parallel sizes are as written."""
    wants = read_offers("ec2", ("g6.12xlarge=1", "g6e.xlarge=1"), "spot")

    (shape,) = read_shapes(("g6.12xlarge:tp=4:layers=20,g6e.xlarge:tp=1:layers=12",), wants)

    assert shape.stages == (StageWanted("g6.12xlarge", 4, 0, 20), StageWanted("g6e.xlarge", 1, 20, 32))


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("g6.12xlarge:tp=4", "layers"),
        ("gpu=L4:tp=4:layers=20", "machine type"),
        ("p5.48xlarge:tp=8:layers=32", "0"),
        ("g6.12xlarge:tp=1:layers=20,g6.12xlarge:tp=1:layers=12", "2 machines"),
        ("g6.12xlarge:tq=1:layers=20", "not understood"),
    ],
)
def test_what_cannot_be_formed_is_refused_before_anything_runs(text: str, cause: str) -> None:
    """Stages without layers, of no machine, of a type the pools lack or have too few of."""
    wants = read_offers("ec2", ("g6.12xlarge=1",), "spot")

    with pytest.raises(InvalidInput, match=cause):
        read_shapes((text,), wants)


def test_a_replica_waits_until_all_its_machines_are_there() -> None:
    """One small machine is missing: one replica is formed, the other waits, and nobody runs half of it."""
    decision = decide(world([node("big1"), node("big2"), node("small1")]))

    assert [pipeline.nodes for pipeline in decision.desired.pipelines] == [("big1", "small1")]
    assert [buy.pool for buy in decision.buys] == ["small"]


def test_survivors_are_used_again_and_only_the_broken_replica_is_formed_anew() -> None:
    """A small machine is lost and another comes: the other replica keeps its generation, the broken one keeps its big
    machine and gets a new generation."""
    whole = [node("big1"), node("big2"), node("small1"), node("small2")]
    before = decide(world(whole)).desired
    lost = [node("big1"), node("big2"), node("small1", NodeState.LOST), node("small2")]
    broken = decide(world(lost, before, 1))
    assert [pipeline.id for pipeline in broken.desired.pipelines] == ["p001"]

    after = decide(world([node("big1"), node("big2"), node("small2"), node("small3")], broken.desired, 2)).desired

    first, second = after.pipelines
    assert (first.id, first.generation) == ("p000", 2)
    assert first.nodes[1] == "small3"
    assert second == before.pipelines[1]


@given(seed=st.integers(0, 10_000))
def test_no_machine_is_ever_in_two_replicas(seed: int) -> None:
    """Machines come, go, are announced to be taken, in any order: each is in one replica at most, every stage is on a
    machine of its type, and a replica whose machines stay keeps its generation."""
    rng = random.Random(seed)
    desired, names = Desired(), 0
    nodes: list[Node] = []
    for number in range(30):
        fate = rng.random()
        if fate < 0.5 and len(nodes) < 8:
            names += 1
            nodes.append(node(f"{rng.choice(['big', 'small'])}{names}"))
        elif fate < 0.7 and nodes:
            nodes.pop(rng.randrange(len(nodes)))
        elif nodes:
            at = rng.randrange(len(nodes))
            nodes[at] = node(nodes[at].id, noticed=True)
        before, desired = desired, decide(world(nodes, desired, number)).desired

        used = [name for pipeline in desired.pipelines for name in pipeline.nodes]
        assert len(used) == len(set(used))
        for pipeline in desired.pipelines:
            assert [name.rstrip("0123456789") for name in pipeline.nodes] == ["big", "small"]
            old = _of(before, pipeline.id)
            if old is not None and old.nodes == pipeline.nodes:
                assert old.generation == pipeline.generation


def _of(desired: Desired, pipeline_id: str) -> Pipeline | None:
    return next((pipeline for pipeline in desired.pipelines if pipeline.id == pipeline_id), None)

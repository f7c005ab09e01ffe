"""The shape of a pipeline: ranks, stages and nodes, and shapes that cannot be."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuntserve.core.rendezvous import Rendezvous
from shuntserve.core.topology import ModelFacts, PipelineTopology, StageShape
from shuntserve.errors import Corrupt, InvalidInput

LLAMA = ModelFacts("llama", layers=8, attention_heads=8, kv_heads=2)


@st.composite
def topologies(draw: st.DrawFn) -> PipelineTopology:
    sizes = draw(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 40)), min_size=1, max_size=6))
    tps, layers = [tp for tp, _ in sizes], [count for _, count in sizes]
    cuts = sorted(draw(st.sets(st.integers(1, sum(tps) - 1), max_size=3))) if sum(tps) > 1 else []
    edges = [0, *cuts, sum(tps)]
    return PipelineTopology.of(tps, layers, [end - start for start, end in itertools.pairwise(edges)])


@given(topologies())
def test_every_rank_has_one_stage_and_one_node(topology: PipelineTopology) -> None:
    """Stages partition the ranks, nodes partition the ranks, and both are contiguous."""
    ranks = list(range(topology.world))

    assert [rank for stage in range(len(topology.stages)) for rank in topology.ranks_of(stage)] == ranks
    assert [rank for node in range(len(topology.node_ranks)) for rank in topology.node_span(node)] == ranks
    assert all(rank in topology.ranks_of(topology.stage_of(rank)) for rank in ranks)
    assert all(rank in topology.node_span(topology.node_of(rank)) for rank in ranks)


@given(topologies())
def test_a_topology_survives_json(topology: PipelineTopology) -> None:
    """What is written as JSON is read back equal."""
    assert PipelineTopology.from_json(json.loads(json.dumps(topology.to_json()))) == topology


def test_kv_bytes_survive_json() -> None:
    """The planner's number of a stage is kept, and its absence too."""
    topology = PipelineTopology((StageShape(2, 0, 5, kv_bytes=123), StageShape(1, 5, 8)), (2, 1))

    assert PipelineTopology.from_json(topology.to_json()) == topology
    assert "kv_bytes" not in topology.to_json()["stages"][1]


@pytest.mark.parametrize(
    ("raw", "cause"),
    [
        ([], "is no object"),
        ({}, "has no list of stages"),
        ({"stages": []}, "has no stages"),
        ({"stage": []}, "did you mean 'stages'"),
        ({"stages": [{"tp": 1, "layers": [0, 4]}, {"tp": 1, "layers": [5, 8]}]}, "layers jump from 4 to 5"),
        ({"stages": [{"tp": 1, "layers": [1, 8]}]}, "begins with layer 1"),
        ({"stages": [{"tp": 0, "layers": [0, 8]}]}, "tensor parallel size 0"),
        ({"stages": [{"tp": True, "layers": [0, 8]}]}, "tp is True"),
        ({"stages": [{"tp": 1, "layers": [0, 0]}]}, "are none"),
        ({"stages": [{"tp": 1, "layers": [0]}]}, "layers is [0]"),
        ({"stages": [{"tp": 1, "layer": [0, 8]}]}, "did you mean 'layers'"),
        ({"stages": [{"tp": 1, "layers": [0, 8], "kv_bytes": 0}]}, "0 bytes of KV cache"),
        ({"stages": [{"tp": 2, "layers": [0, 8]}], "node_ranks": [1]}, "its stages have 2"),
        ({"stages": [{"tp": 2, "layers": [0, 8]}], "node_ranks": [2, 0]}, "its stages have 2"),
        ({"stages": [{"tp": 2, "layers": [0, 8]}], "node_ranks": "2"}, "no list of counts"),
    ],
)
def test_shapes_that_cannot_be_are_refused(raw: Any, cause: str) -> None:
    """The refusal says what is wrong with which part."""
    with pytest.raises(InvalidInput) as refused:
        PipelineTopology.from_json(raw)

    assert cause in str(refused.value)
    assert refused.value.next_step


@pytest.mark.parametrize(
    ("topology", "model", "cause"),
    [
        (PipelineTopology.of([1, 1], [4, 3]), LLAMA, "holds 7 layers, llama has 8"),
        (PipelineTopology.of([3, 1], [4, 4]), LLAMA, "8 attention heads, no multiple of 3"),
        (
            PipelineTopology.of([2], [8]),
            ModelFacts("odd", 8, 8, 3),
            "3 KV heads, which 2 GPUs neither share nor repeat",
        ),
        (PipelineTopology.of([2, 1], [4, 4]), ModelFacts("gemma", 8, 8, 2, mixed_attention=True), "mixes kinds of"),
    ],
)
def test_models_that_cannot_be_cut_like_this_are_refused(
    topology: PipelineTopology, model: ModelFacts, cause: str
) -> None:
    """Before anything is loaded: the stage, the numbers that do not fit, and what to change."""
    with pytest.raises(InvalidInput) as refused:
        topology.check(model)

    assert cause in str(refused.value)
    assert refused.value.next_step


@pytest.mark.parametrize("tps", [[1, 1], [2, 2], [4, 8, 1], [8]])
def test_kv_heads_may_be_shared_or_repeated(tps: list[int]) -> None:
    """Two KV heads fit one, two, four or eight GPUs; mixed attention fits stages of one size."""
    topology = PipelineTopology.of(tps, [8 - 2 * (len(tps) - 1), *[2] * (len(tps) - 1)])

    topology.check(LLAMA)
    if topology.uniform_tp is not None:
        topology.check(ModelFacts("gemma", 8, 8, 2, mixed_attention=True))


def test_a_rendezvous_survives_json_and_keeps_its_secret() -> None:
    """What is written is read back equal; printing it does not show the token."""
    rendezvous = Rendezvous("g1", "10.0.0.7", 4242, "a secret")

    assert Rendezvous.from_json(rendezvous.to_json()) == rendezvous
    assert "a secret" not in repr(rendezvous)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 2}', '{"schema_version": 1, "port": "4"}'])
def test_a_broken_rendezvous_is_corrupt(text: str) -> None:
    """Nobody connects to an address that was not published."""
    with pytest.raises(Corrupt):
        Rendezvous.from_json(text)

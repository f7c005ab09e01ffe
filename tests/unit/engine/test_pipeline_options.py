"""The `pipeline` option, what a node may choose, and start-ups that take too long."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shuntserve.core.topology import PipelineTopology
from shuntserve.engine import node
from shuntserve.engine.formation import Formation
from shuntserve.engine.membership import (
    Membership,
    Phase,
    interface_of,
    join_store,
    note_phase,
    phase_of,
    serve_store,
)
from shuntserve.engine.pipeline_options import PipelineOptions, shared_options
from shuntserve.engine.port import EngineLost, LossKind
from shuntserve.errors import Conflict, InvalidInput

TOPOLOGY = PipelineTopology.of([2, 1], [5, 3], node_ranks=[2, 1])


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"adress": "10.0.0.1"}, "did you mean 'address'"),
        ({"flows": 0}, "give 1 to 16"),
        ({"port": "80"}, "give a whole number"),
        ({"address": None}, "give text"),
        ({"executor": "ray"}, "use auto or plugin"),
        ({"kv_cache": "planned"}, "a stage has no plan"),
        ({"kv_cache": "guessed"}, "use measured or planned"),
        ({"timeouts_s": {"loading": 5}}, "known names: compiling and warming up"),
        ({"timeouts_s": {"loading weights": -5}}, "give seconds"),
        ({"topology": {"stages": [{"tp": 1, "layers": [0, 8]}], "node_ranks": [2]}}, "its stages have 1"),
    ],
)
def test_pipeline_options_that_cannot_work_are_refused(change: dict[str, Any], cause: str) -> None:
    """The refusal names the option and what to give instead."""
    with pytest.raises(InvalidInput) as refused:
        PipelineOptions.from_mapping({"topology": TOPOLOGY.to_json(), **change})

    assert cause in str(refused.value)


def test_our_executor_runs_only_what_vllms_own_cannot() -> None:
    """Equal stages on one node are left to vLLM; unlike ones, or several nodes, are not."""

    def stock(topology: PipelineTopology, **more: Any) -> bool:
        return PipelineOptions.from_mapping({"topology": topology.to_json(), **more}).stock

    assert stock(PipelineTopology.of([2, 2], [5, 3]))
    assert not stock(PipelineTopology.of([2, 2], [5, 3]), executor="plugin")
    assert not stock(PipelineTopology.of([2, 1], [4, 4]))
    assert not stock(PipelineTopology.of([1, 1], [4, 4], node_ranks=[1, 1]))


def test_formations_have_secrets_of_their_own() -> None:
    """Without one given, each gets a token and a generation nobody can guess."""
    first, second = (PipelineOptions.from_mapping({"topology": TOPOLOGY.to_json()}) for _ in range(2))

    assert len({first.token, second.token, first.generation, second.generation}) == 4
    assert len(first.token) >= 32


# --- what a node may choose


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("[", "is no JSON"),
        ("[]", "is no object"),
        ('{"pipeline": {}}', "is unknown"),
        ('{"engine": {"max_num_seqs": 4}}', "must be the same on all nodes"),
    ],
)
def test_a_node_may_not_choose_what_must_be_equal(text: str, cause: str) -> None:
    """Batch sizes, types, stages are the leader's; a node chooses its paths and its memory."""
    with pytest.raises(InvalidInput, match=cause):
        node.local_options(text)


def test_a_node_takes_the_leaders_options_and_its_own_paths() -> None:
    """What the leader resolved is said outright; model path and memory are this host's."""
    leader = {
        "model": "/leaders/model",
        "scheduling_policy": "fcfs",
        "engine": {"max_num_seqs": 64, "dtype": "bfloat16", "gpu_memory_utilization": 0.9},
        "pipeline": {"topology": TOPOLOGY.to_json(), "generation": "g", "executor": "plugin"},
        "config_sha256": "0",
    }
    local = node.local_options(json.dumps({"model": "/here", "engine": {"gpu_memory_utilization": 0.5}}))

    joined = node.joined_options(leader, local)

    assert joined.model == "/here"
    assert joined.engine == {"max_num_seqs": 64, "dtype": "bfloat16", "gpu_memory_utilization": 0.5}
    assert joined.pipeline is not None
    assert joined.pipeline.topology == TOPOLOGY


def test_another_model_under_the_same_name_is_noticed(tmp_path: Path) -> None:
    """Two hosts with different checkpoints would answer nonsense together."""
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(InvalidInput, match=r"another config\.json"):
        node.check_same_model(str(tmp_path), "of the leader")
    node.check_same_model("a/name-on-the-hub", "of the leader")


# --- the store and the phases


def test_a_worker_of_another_generation_cannot_join_the_store() -> None:
    """A port may be reused; the generation is not."""
    store = serve_store("second", "127.0.0.1")

    join_store(Membership("second", "127.0.0.1", store.port, 1))
    with pytest.raises(Conflict, match="serves generation second"):
        join_store(Membership("first", "127.0.0.1", store.port, 1))


def test_addresses_lead_to_interfaces() -> None:
    """The loopback's is known; one of another machine is refused with those there are."""
    assert interface_of("127.0.0.1") == "lo"
    with pytest.raises(InvalidInput, match="is not one of this machine"):
        interface_of("203.0.113.9")


def test_a_start_up_that_takes_too_long_names_the_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank, stage, node, phase and limit; phases that are through, and ranks that are ready, are left alone."""
    forming = Formation(
        PipelineOptions.from_mapping({"topology": TOPOLOGY.to_json(), "timeouts_s": {Phase.LOADING: 100.0}})
    )
    store = serve_store("g", "127.0.0.1")
    forming._store = store
    forming._phases = dict.fromkeys(range(3), (Phase.STARTING, 0.0))
    for rank, phase in enumerate((Phase.READY, Phase.READY, Phase.LOADING)):
        note_phase(store, rank, phase)
        assert phase_of(store, rank) is phase

    forming._look_at_phases(50.0)
    forming._look_at_phases(149.0)
    assert forming.verdict() is None
    forming._look_at_phases(151.0)

    assert forming.verdict() == EngineLost(
        LossKind.HUNG, "rank 2 (stage 1, node 1) was loading weights for more than 100 s"
    )


def test_shared_options_say_what_the_leader_resolved() -> None:
    """Hosts with other GPUs would resolve other batch sizes, and their buffers would be too small."""

    config = SimpleNamespace(
        model_config=SimpleNamespace(dtype="torch.bfloat16", max_model_len=4096),
        scheduler_config=SimpleNamespace(
            max_num_seqs=256, max_num_batched_tokens=8192, enable_chunked_prefill=True, async_scheduling=False
        ),
        cache_config=SimpleNamespace(enable_prefix_caching=True),
    )
    options = node.joined_options(
        {"model": "m", "engine": {"max_num_seqs": 7}, "pipeline": {"topology": TOPOLOGY.to_json()}}, {}
    )

    shared = shared_options(options, config)

    assert shared["engine"]["max_num_batched_tokens"] == 8192
    assert shared["engine"]["max_num_seqs"] == 256
    assert shared["engine"]["dtype"] == "bfloat16"
    assert node.joined_options(shared, {}).pipeline is not None

"""Real vLLM in pipelines of unlike stages: the same tokens as from one process. For all families and shapes see
`test_pipeline_matrix`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shuntserve.core.topology import PipelineTopology
from shuntserve.sim.tiny_model import TinyModel, write_tiny_model
from tests.support import vllm_driver
from tests.support.pipelines import rows
from tests.support.zygote import EngineFailed, Zygote

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

LAYERS = 8
KV_BYTES = 1 << 26
"""What `vllm_driver.options` gives every rank."""


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("zygote")) as made:
        yield made


@pytest.mark.parametrize(
    ("family", "tps", "layers", "kv_cache"),
    [
        ("llama", [2, 1], [5, 3], "measured"),
        ("qwen3", [1, 2], [3, 5], "planned"),
        ("mixtral", [2, 1, 1], [1, 5, 2], "measured"),
    ],
)
def test_unlike_stages_give_the_tokens_of_one_process(
    zygote: Zygote, tmp_path: Path, family: Any, tps: list[int], layers: list[int], kv_cache: str
) -> None:
    """In float32, greedy and seeded rows are equal token by token, whatever the stages' sizes and layers. A stage whose
    KV cache is not what the planner counted on is told with both numbers; one that has it, or was given it, is not."""
    model = write_tiny_model(tmp_path / "model", TinyModel(family, layers=LAYERS, mean_output_tokens=60))
    topology = PipelineTopology.of(tps, layers)
    first, *others = topology.stages
    planned = (replace(first, kv_bytes=2 * KV_BYTES), *(replace(stage, kv_bytes=KV_BYTES) for stage in others))

    options = vllm_driver.options(model)
    alone = zygote.run(options, rows())
    stages = PipelineTopology(planned, topology.node_ranks).to_json()
    piped = zygote.run({**options, "pipeline": {"topology": stages, "kv_cache": kv_cache}}, rows())

    assert piped == alone
    events = [json.loads(line) for line in zygote.last_log.read_text().splitlines() if line.startswith("{")]
    mismatches = [
        (event["stage"], event["planned_kv_bytes"], event["measured_kv_bytes"])
        for event in events
        if event["event"] == "kv_cache_mismatch"
    ]
    assert mismatches == ([(0, 2 * KV_BYTES, KV_BYTES)] if kv_cache == "measured" else [])


@pytest.mark.parametrize(
    ("family", "topology", "engine", "cause"),
    [
        ("gemma3", PipelineTopology.of([2, 1], [4, 4]), {}, "mixes kinds of attention"),
        ("llama", PipelineTopology.of([2, 1], [4, 3]), {}, "holds 7 layers"),
        ("llama", PipelineTopology.of([3, 1], [4, 4]), {}, "4 attention heads, no multiple of 3"),
        ("llama", PipelineTopology.of([2, 1], [4, 4]), {"tensor_parallel_size": 2}, "given by the pipeline's stages"),
    ],
)
def test_a_model_that_cannot_be_cut_like_this_is_refused(
    zygote: Zygote, tmp_path: Path, family: Any, topology: PipelineTopology, engine: dict[str, Any], cause: str
) -> None:
    """As an invalid request, in words for the user, before any worker is started."""
    model = write_tiny_model(tmp_path / "model", TinyModel(family, layers=LAYERS))
    options = {**vllm_driver.options(model, **engine), "pipeline": {"topology": topology.to_json()}}

    with pytest.raises(EngineFailed, match=rf"InvalidInput: .*{cause}"):
        zygote.run(options, rows())

    assert "Worker" not in zygote.last_log.read_text()

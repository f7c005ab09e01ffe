"""Real vLLM in pipelines of unlike stages: the same tokens as from one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shuntserve.core.topology import PipelineTopology
from shuntserve.engine.port import SequenceRequest
from shuntserve.sim.tiny_model import TinyModel, write_tiny_model
from tests.support import vllm_driver

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

LAYERS = 8
ROWS = 12
PARAMS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.9},
    {"temperature": 0.9, "top_p": 0.9, "presence_penalty": 0.8},
    {"temperature": 0.0, "repetition_penalty": 1.2},
]


def rows() -> list[SequenceRequest]:
    return [
        SequenceRequest(
            f"row {row}",
            [300 + (11 * row + 17 * i) % 390 for i in range(20 + 9 * row)],
            {"max_tokens": 48, "seed": row, "ignore_eos": True, **PARAMS[row % len(PARAMS)]},
        )
        for row in range(ROWS)
    ]


def tokens(model: Path, log_path: Path, pipeline: dict[str, Any] | None) -> dict[str, list[int]]:
    options = vllm_driver.options(model)
    if pipeline is not None:
        options["pipeline"] = pipeline
    engine = vllm_driver.started(options, log_path)
    try:
        return {name: output.token_ids for name, output in vllm_driver.generate(engine, rows()).items()}
    finally:
        engine.stop()


@pytest.mark.parametrize(
    ("family", "tps", "layers"),
    [("llama", [2, 1], [5, 3]), ("qwen3", [1, 2], [3, 5]), ("qwen2", [2, 1, 1], [1, 5, 2])],
)
def test_unlike_stages_give_the_tokens_of_one_process(
    tmp_path: Path, family: Any, tps: list[int], layers: list[int]
) -> None:
    """In float32, greedy and seeded rows are equal token by token, whatever the stages' sizes and layers."""
    model = write_tiny_model(tmp_path / "model", TinyModel(family, layers=LAYERS, mean_output_tokens=60))
    topology = PipelineTopology.of(tps, layers)

    alone = tokens(model, tmp_path / "alone.log", None)
    piped = tokens(model, tmp_path / "piped.log", {"topology": topology.to_json()})

    assert piped == alone

"""Every family of models in every shape of pipeline: hours' worth of certainty, for `make test-full`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shuntserve.core.topology import PipelineTopology
from shuntserve.sim.tiny_model import FAMILIES, TinyModel, write_tiny_model
from tests.support import vllm_driver
from tests.support.pipelines import rows
from tests.support.zygote import EngineFailed, Zygote

pytestmark = [pytest.mark.vllm, pytest.mark.soak, pytest.mark.timeout(900)]

LAYERS = 8
MODELS: dict[str, TinyModel] = {
    **{family: TinyModel(family, layers=LAYERS, mean_output_tokens=60) for family in FAMILIES},
    "tied": TinyModel("qwen2", layers=LAYERS, tie_word_embeddings=True),
}
SHAPES: dict[str, PipelineTopology] = {
    "1,1": PipelineTopology.of([1, 1], [4, 4]),
    "1,1 by plugin": PipelineTopology.of([1, 1], [5, 3]),
    "2,1": PipelineTopology.of([2, 1], [4, 4]),
    "1,2": PipelineTopology.of([1, 2], [4, 4]),
    "2,1,1": PipelineTopology.of([2, 1, 1], [3, 3, 2]),
    "2,1 uneven": PipelineTopology.of([2, 1], [7, 1]),
}
MIXED_ATTENTION = ("gemma3",)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


class Runs:
    """Engines' answers to the same rows, each asked for once."""

    def __init__(self, directory: Path, zygote: Zygote) -> None:
        self._directory = directory
        self._zygote = zygote
        self._alone: dict[tuple[str, str], dict[str, list[int]]] = {}

    def model(self, name: str) -> Path:
        path = self._directory / name
        return path if path.exists() else write_tiny_model(path, MODELS[name])

    def alone(self, name: str, dtype: str) -> dict[str, list[int]]:
        if (name, dtype) not in self._alone:
            (self._alone[name, dtype],) = self.piped(name, dtype, None, times=1)
        return self._alone[name, dtype]

    def options(self, name: str, dtype: str, shape: str | None) -> dict[str, Any]:
        options = vllm_driver.options(self.model(name), dtype=dtype, enable_prefix_caching=False)
        if shape is not None:
            executor = "plugin" if "plugin" in shape else "auto"
            options["pipeline"] = {"topology": SHAPES[shape].to_json(), "executor": executor}
        return options

    def piped(self, name: str, dtype: str, shape: str | None, times: int) -> list[dict[str, list[int]]]:
        return self._zygote.run(self.options(name, dtype, shape), rows(), times)


@pytest.fixture(scope="module")
def runs(directory: Path) -> Iterator[Runs]:
    with Zygote(directory / "zygote") as zygote:
        yield Runs(directory, zygote)


def possible(name: str, shape: str) -> bool:
    return name not in MIXED_ATTENTION or SHAPES[shape].uniform_tp is not None


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_in_float32_every_shape_gives_the_tokens_of_one_process(runs: Runs, name: str, shape: str) -> None:
    """Greedy and seeded, token by token. Models with mixed attention are refused where stages are unlike, with the
    reason and what to change, before anything is loaded."""
    if possible(name, shape):
        (piped,) = runs.piped(name, "float32", shape, times=1)

        assert piped == runs.alone(name, "float32")
    else:
        reason = "mixes kinds of attention.* give all stages the same tensor parallel size"
        with pytest.raises(EngineFailed, match=f"InvalidInput: .*{reason}"):
            runs.piped(name, "float32", shape, times=1)


@pytest.mark.parametrize("name", MODELS)
def test_in_bfloat16_one_shape_repeats_itself(
    runs: Runs, name: str, record_property: Callable[[str, object], None]
) -> None:
    """Within one topology the tokens are equal every time. Across topologies sums are added up in another order, so
    some near ties go the other way: the share of equal tokens is reported, not promised."""
    shape = "2,1" if possible(name, "2,1") else "1,1"

    first, second = runs.piped(name, "bfloat16", shape, times=2)

    assert first == second
    alone = runs.alone(name, "bfloat16")
    equal = sum(a == b for row in alone for a, b in zip(alone[row], first[row], strict=False))
    share = equal / sum(map(len, alone.values()))
    record_property("share_of_equal_tokens", share)
    print(f"{name} in bfloat16, {shape} against one process: {share:.1%} of tokens equal")

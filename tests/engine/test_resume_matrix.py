"""The resume matrix over engines: what one process began, every other kind of engine continues.

All rows of all cases run undisturbed in one process and are cut (`tests.support.resume_matrix`); engines with other
settings, other numbers of ranks and pipelines of unlike stages continue them. In float32 the result is the same, token
by token. (bf16 rounds differently under another tensor-parallel size, which `test_pipeline_matrix.py` measures.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shuntserve.core.topology import PipelineTopology
from shuntserve.sim.tiny_model import FAMILIES, Family, TinyModel, write_tiny_model
from tests.support import async_cpu
from tests.support import vllm_driver as driver
from tests.support.resume_matrix import (
    CASES,
    CUTS,
    ROWS,
    STOP_STRINGS,
    Outputs,
    Requests,
    Run,
    assert_case_continues,
    continued_runs,
    whole_runs,
)

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]

CHUNKED = {"max_num_batched_tokens": 64, "max_num_seqs": 48}
AHEAD = "ahead"


def piped(tps: list[int], layers: list[int]) -> dict[str, Any]:
    return {"pipeline": {"topology": PipelineTopology.of(tps, layers).to_json()}}


ENGINES: dict[str, dict[str, Any]] = {
    "one process": {"engine": CHUNKED},
    "one process, no prefix cache": {"engine": {**CHUNKED, "enable_prefix_caching": False}},
    "one process, whole prompts": {
        "engine": {"max_num_batched_tokens": 2048, "max_num_seqs": 16, "enable_chunked_prefill": False}
    },
    "one process, little memory": {"engine": {**CHUNKED, "num_gpu_blocks_override": 40}},
    "ahead": {"engine": CHUNKED, AHEAD: True},
    "ahead, no prefix cache": {"engine": {**CHUNKED, "enable_prefix_caching": False}, AHEAD: True},
    "ahead, whole prompts": {
        "engine": {"max_num_batched_tokens": 2048, "max_num_seqs": 16, "enable_chunked_prefill": False},
        AHEAD: True,
    },
    "ahead, little memory": {"engine": {**CHUNKED, "num_gpu_blocks_override": 40}, AHEAD: True},
    "TP 2": {"engine": {**CHUNKED, "tensor_parallel_size": 2}},
    "stages [1, 1]": {"engine": CHUNKED, **piped([1, 1], [2, 2])},
    "stages [1, 1], uneven": {"engine": CHUNKED, **piped([1, 1], [3, 1])},
    "stages [2, 1], uneven": {"engine": CHUNKED, **piped([2, 1], [3, 1])},
    "stages [1, 2], uneven": {"engine": CHUNKED, **piped([1, 2], [1, 3])},
    "stages [2, 1, 1], uneven": {"engine": CHUNKED, **piped([2, 1, 1], [1, 2, 1])},
}
IN_EVERY_RUN = "stages [2, 1], uneven"
"""The others are in `make test-full`."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), TinyModel(layers=4, mean_output_tokens=60))


def in_engine(model: Path, log_path: Path, settings: dict[str, Any], use: Callable[[Any], Any]) -> Any:
    """Start the engine, use it, end it."""
    options = driver.options(model, block_size=32, **settings["engine"])
    if "pipeline" in settings:
        options["pipeline"] = settings["pipeline"]
    engine = driver.started(options, log_path, backend=async_cpu.BACKEND if AHEAD in settings else driver.BACKEND)
    try:
        return use(functools.partial(driver.generate, engine, within_s=600))
    finally:
        engine.stop()


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Requests, Outputs]:
    return in_engine(model, tmp_path_factory.mktemp("log") / "whole.log", {"engine": CHUNKED}, whole_runs)


@pytest.fixture(
    scope="module",
    params=[name if name == IN_EVERY_RUN else pytest.param(name, marks=pytest.mark.soak) for name in ENGINES],
)
def continued(
    request: pytest.FixtureRequest,
    model: Path,
    whole: tuple[Requests, Outputs],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, dict[str, Outputs]]:
    """Every row continued from every cut in this engine."""
    name: str = request.param
    log_path = tmp_path_factory.mktemp("log") / "engine.log"
    return name, in_engine(model, log_path, ENGINES[name], lambda run: continued_runs(run, *whole))


@pytest.mark.parametrize("where", CUTS)
@pytest.mark.parametrize("case", [*CASES, *STOP_STRINGS])
def test_any_engine_continues_what_one_process_began(
    whole: tuple[Requests, Outputs],
    continued: tuple[str, dict[str, Outputs]],
    case: str,
    where: str,
    record_property: Callable[[str, object], None],
) -> None:
    """The same tokens, text, reasons and log probabilities as undisturbed in one process."""
    engine, at = continued

    assert_case_continues(record_property, engine, case, where, whole[1], at[where])


OF_EVERY_FAMILY = (
    "greedy",
    "seeded, all filters",
    "seeded, all penalties",
    "min_tokens and stop ids",
    "log probabilities",
    "samples of one prompt (n > 1)",
    "regex",
)


@pytest.mark.soak
@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "llama"])
def test_every_family_of_models_continues(
    family: Family, tied: bool, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Mixtures of experts, tied embeddings, sliding windows beside full attention, whose caches are grouped: cut
    anywhere, the same tokens, text, reasons and log probabilities."""
    model = write_tiny_model(tmp_path, TinyModel(family, mean_output_tokens=60, tie_word_embeddings=tied))
    cases = {case: CASES[case] for case in OF_EVERY_FAMILY}

    def both(run: Run) -> tuple[Outputs, dict[str, Outputs]]:
        requests, whole = whole_runs(run, cases)
        return whole, continued_runs(run, requests, whole)

    whole, continued = in_engine(model, tmp_path / "engine.log", {"engine": CHUNKED}, both)

    name = f"{family}, tied" if tied else family
    for case in cases:
        assert len({tuple(whole[case, row].token_ids) for row in range(ROWS)}) == ROWS, case
        for where in CUTS:
            assert_case_continues(record_property, name, case, where, whole, continued[where])

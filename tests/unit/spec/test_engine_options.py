"""Engine options: vLLM's names, their types, and which of them make another job."""

from __future__ import annotations

from typing import Any

import pytest

from shuntserve.core.engine_options import (
    ALIASES,
    ELSEWHERE,
    ENGINE_OPTIONS,
    check_engine_options,
    options_that_change_results,
)
from shuntserve.errors import InvalidInput
from tests.unit.spec.test_sampling import vllm_fields


def test_every_option_is_one_of_vllms_engine_arguments() -> None:
    """Nothing on the allow-list would be refused by the engine as unknown, and every alias leads to something."""
    assert set(ENGINE_OPTIONS) <= vllm_fields("engine/arg_utils.py", "EngineArgs")
    assert set(ALIASES.values()) <= set(ENGINE_OPTIONS)
    assert not set(ELSEWHERE) & set(ENGINE_OPTIONS)


def test_options_are_checked_and_dashes_accepted() -> None:
    """Command-line spelling is the same option; whole floats are integers; nulls are not given."""
    raw = {
        "--max-num-seqs": 8.0,
        "dtype": "float32",
        "enforce_eager": True,
        "block_size": None,
        "hf_overrides": {"a": 1},
    }

    assert check_engine_options(raw) == {
        "max_num_seqs": 8,
        "dtype": "float32",
        "enforce_eager": True,
        "hf_overrides": {"a": 1},
    }


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"max_num_seq": 1}, "'max_num_seqs'"),
        ({"tp": 2}, "'tensor_parallel_size'"),
        ({"worker_cls": "x"}, "ShuntServe's own"),
        ({"seed": 1}, "set `seed`"),
        ({"max_num_seqs": 0}, "must be in"),
        ({"max_num_seqs": 1.5}, "whole number"),
        ({"max_num_seqs": True}, "must be a number"),
        ({"gpu_memory_utilization": 1.1}, "must be in"),
        ({"enforce_eager": "yes"}, "true or false"),
        ({"dtype": "bf16"}, "'bfloat16'"),
        ({"dtype": 16}, "must be text"),
        ({"hf_overrides": "x"}, "must be an object"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_with_the_way_out(raw: dict[str, Any], message: str) -> None:
    """The error names the option and what to write instead."""
    with pytest.raises(InvalidInput, match=r"engine option") as caught:
        check_engine_options(raw)

    assert message in str(caught.value)


def test_memory_and_parallelism_do_not_change_results() -> None:
    """Options of capacity are left out of a job's identity, those of arithmetic are not."""
    options = check_engine_options(
        {"dtype": "bfloat16", "quantization": "fp8", "gpu_memory_utilization": 0.5, "tensor_parallel_size": 2}
    )

    assert options_that_change_results(options) == {"dtype": "bfloat16", "quantization": "fp8"}

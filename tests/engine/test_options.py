"""Options and checkpoints that cannot work: refused in words for the user, before anything is loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from shuntserve.engine.port import LossKind
from shuntserve.engine.process import EngineProcess
from shuntserve.engine.vllm_options import VllmOptions, check_model, vllm_config
from shuntserve.errors import InvalidInput
from tests.support import vllm_driver

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"model": "/nowhere/at/all"}, "is not a directory"),
        ({"engine": {"max_num_sequences": 4}}, "max_num_seqs"),
        ({"stream_interval": 4}, "stream_interval_tokens"),
        ({"scheduling_policy": "random"}, "fcfs"),
    ],
)
def test_an_engine_that_cannot_work_is_invalid(qwen: Path, tmp_path: Path, change: dict[str, Any], cause: str) -> None:
    """Such an engine says what is wrong and is not to be tried again; vLLM is not even imported."""
    options = {**vllm_driver.options(qwen), **change}
    engine = EngineProcess(vllm_driver.BACKEND, options, tmp_path / "engine.log")
    engine.start()

    lost, _ = vllm_driver.until_lost(engine, within_s=vllm_driver.START_TIMEOUT_S)

    assert lost.kind is LossKind.INVALID, lost
    assert cause in lost.detail


def test_a_directory_without_configuration_is_refused(tmp_path: Path) -> None:
    """The refusal names the directory and what it lacks."""
    with pytest.raises(InvalidInput, match=r"has no config\.json — name a directory"):
        check_model(str(tmp_path))


@pytest.mark.parametrize(
    ("engine", "cause"),
    [
        ({"max_model_len": 100_000}, "max_model_len (100000) is greater than the derived max_model_len"),
        ({"tensor_parallel_size": 3}, "attention heads (4) must be divisible by tensor parallel size (3)"),
        ({"quantization": "nonsense"}, "Unknown quantization method: nonsense"),
        ({"kv_cache_dtype": "fp3"}, "cache_dtype: Input should be 'auto'"),
        ({"attention_backend": "NONSENSE"}, "Unknown attention backend: 'NONSENSE'"),
        ({"max_num_batched_tokens": 64, "enable_chunked_prefill": False}, "max_num_batched_tokens (64) is smaller"),
    ],
)
def test_what_vllm_refuses_is_invalid_input(qwen: Path, engine: dict[str, Any], cause: str) -> None:
    """One line: the model, vLLM's own first objection, and what to change; never its whole list of alternatives."""
    options = VllmOptions.from_mapping(vllm_driver.options(qwen, **engine))

    with mock.patch.dict(os.environ), pytest.raises(InvalidInput) as refused:
        vllm_config(options)

    assert cause in refused.value.cause
    assert str(qwen) in refused.value.thing
    assert "change the options" in refused.value.next_step
    assert len(refused.value.cause) <= 500
    assert "\n" not in str(refused.value)


def test_an_unknown_architecture_is_named(qwen: Path, tmp_path: Path) -> None:
    """A checkpoint that this vLLM cannot run is refused with its architecture, before its weights are read."""
    config = json.loads((qwen / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["UnheardOfForCausalLM"]}))
    options = VllmOptions.from_mapping(vllm_driver.options(tmp_path))

    with mock.patch.dict(os.environ), pytest.raises(InvalidInput) as refused:
        vllm_config(options)

    assert refused.value.cause == "Model architectures ['UnheardOfForCausalLM'] are not supported for now"

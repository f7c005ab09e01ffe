"""Engine options a job may set: vLLM's engine arguments, an allow-list with types.

Each option says whether it changes results. Those that do are part of a job's identity; the others (memory, batch
sizes, how many GPUs) may differ between two submissions of the same job, so that a job that ran out of memory is
resumed with other settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from shuntserve.core.near_miss import did_you_mean
from shuntserve.errors import InvalidInput

Kind = Literal["integer", "number", "flag", "text", "object"]


@dataclass(frozen=True, slots=True)
class EngineOption:
    """One engine argument: its type, bounds and whether results depend on it."""

    kind: Kind
    changes_results: bool
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()


_CAPACITY = False
_RESULTS = True

ENGINE_OPTIONS: Mapping[str, EngineOption] = {
    # what is computed
    "dtype": EngineOption("text", _RESULTS, choices=("auto", "half", "float16", "bfloat16", "float", "float32")),
    "max_model_len": EngineOption("integer", _RESULTS, low=1),
    "quantization": EngineOption("text", _RESULTS),
    "kv_cache_dtype": EngineOption("text", _RESULTS),
    "hf_overrides": EngineOption("object", _RESULTS),
    "trust_remote_code": EngineOption("flag", _RESULTS),
    "tokenizer_mode": EngineOption("text", _RESULTS, choices=("auto", "hf", "slow", "mistral")),
    "config_format": EngineOption("text", _RESULTS, choices=("auto", "hf", "mistral")),
    "model_impl": EngineOption("text", _RESULTS, choices=("auto", "vllm", "transformers")),
    "disable_sliding_window": EngineOption("flag", _RESULTS),
    "logprobs_mode": EngineOption("text", _RESULTS),
    "max_logprobs": EngineOption("integer", _RESULTS, low=0),
    # how it is computed
    "tensor_parallel_size": EngineOption("integer", _CAPACITY, low=1),
    "pipeline_parallel_size": EngineOption("integer", _CAPACITY, low=1),
    "enable_expert_parallel": EngineOption("flag", _CAPACITY),
    "disable_custom_all_reduce": EngineOption("flag", _CAPACITY),
    "gpu_memory_utilization": EngineOption("number", _CAPACITY, low=0.01, high=1.0),
    "kv_cache_memory_bytes": EngineOption("integer", _CAPACITY, low=1),
    "num_gpu_blocks_override": EngineOption("integer", _CAPACITY, low=1),
    "cpu_offload_gb": EngineOption("number", _CAPACITY, low=0),
    "block_size": EngineOption("integer", _CAPACITY, low=1),
    "max_num_seqs": EngineOption("integer", _CAPACITY, low=1),
    "max_num_batched_tokens": EngineOption("integer", _CAPACITY, low=1),
    "long_prefill_token_threshold": EngineOption("integer", _CAPACITY, low=0),
    "enable_prefix_caching": EngineOption("flag", _CAPACITY),
    "enable_chunked_prefill": EngineOption("flag", _CAPACITY),
    "async_scheduling": EngineOption("flag", _CAPACITY),
    "enforce_eager": EngineOption("flag", _CAPACITY),
    "compilation_config": EngineOption("object", _CAPACITY),
    "optimization_level": EngineOption("integer", _CAPACITY, low=0, high=3),
    "attention_backend": EngineOption("text", _CAPACITY),
    "load_format": EngineOption("text", _CAPACITY),
    "safetensors_load_strategy": EngineOption("text", _CAPACITY),
    "max_parallel_loading_workers": EngineOption("integer", _CAPACITY, low=1),
    "language_model_only": EngineOption("flag", _CAPACITY),
}
"""Every engine option a job may set."""

ALIASES = {
    "tp": "tensor_parallel_size",
    "tensor_parallel": "tensor_parallel_size",
    "num_gpus": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "max_seq_len": "max_model_len",
    "max_length": "max_model_len",
    "context_length": "max_model_len",
    "gpu_memory": "gpu_memory_utilization",
    "mem_fraction": "gpu_memory_utilization",
    "batch_size": "max_num_seqs",
    "torch_dtype": "dtype",
    "prefix_caching": "enable_prefix_caching",
    "eager": "enforce_eager",
}

_VALUE_ALIASES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

ELSEWHERE = {
    "model": "set `model`",
    "tokenizer": "set `tokenizer`",
    "revision": "set `revision`",
    "tokenizer_revision": "set `tokenizer_revision`",
    "seed": "set `seed`",
    "generation_config": "set `generation_config`",
    "override_generation_config": "set `sampling_params`",
    "chat_template": "set `chat_template`",
    "scheduler_cls": "it is ShuntServe's own",
    "worker_cls": "it is ShuntServe's own",
    "distributed_executor_backend": "it is ShuntServe's own",
}
"""Names that are real engine arguments but belong elsewhere."""


def check_engine_options(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The options in canonical form; a null means "not given". Raises InvalidInput, naming near misses."""
    checked: dict[str, Any] = {}
    for raw_name, value in raw.items():
        name = raw_name.strip().lstrip("-").replace("-", "_")
        if value is None:
            continue
        if name in ELSEWHERE:
            raise InvalidInput(f"engine option {raw_name!r}", "is not set here", ELSEWHERE[name])
        option = ENGINE_OPTIONS.get(name)
        if option is None:
            raise InvalidInput(
                f"engine option {raw_name!r}", "is unknown", did_you_mean(raw_name, ENGINE_OPTIONS, ALIASES)
            )
        checked[name] = _checked(name, option, value)
    return checked


def options_that_change_results(options: Mapping[str, Any]) -> dict[str, Any]:
    """The part of checked options that belongs to a job's identity."""
    return {name: value for name, value in options.items() if ENGINE_OPTIONS[name].changes_results}


def _checked(name: str, option: EngineOption, value: Any) -> Any:
    thing = f"engine option {name!r}"
    match option.kind:
        case "flag":
            if not isinstance(value, bool):
                raise InvalidInput(thing, "must be true or false", f"got {value!r}")
            return value
        case "text":
            if not isinstance(value, str) or not value:
                raise InvalidInput(thing, "must be text", f"got {value!r}")
            if option.choices and value not in option.choices:
                raise InvalidInput(thing, f"cannot be {value!r}", did_you_mean(value, option.choices, _VALUE_ALIASES))
            return value
        case "object":
            if not isinstance(value, Mapping):
                raise InvalidInput(thing, "must be an object", f"got {value!r}")
            return dict(value)
        case "integer" | "number":
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise InvalidInput(thing, "must be a number", f"got {value!r}")
            if option.kind == "integer" and value != int(value):
                raise InvalidInput(thing, "must be a whole number", f"got {value!r}")
            if not option.low <= value <= option.high:
                raise InvalidInput(thing, f"must be in [{option.low:g}, {option.high:g}]", f"got {value!r}")
            return int(value) if option.kind == "integer" else float(value)

"""The `pipeline` option of the vLLM backend: stages and hosts of one engine, and vLLM's configuration for them."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from shuntserve.core.near_miss import did_you_mean
from shuntserve.core.topology import ModelFacts, PipelineTopology
from shuntserve.engine.membership import TOPOLOGY_KEY, Phase, topology_of
from shuntserve.errors import InvalidInput

FLOWS_KEY = "shuntserve_flows"
KV_KEY = "shuntserve_kv_cache"
PARTITION_VARIABLE = "VLLM_PP_LAYER_PARTITION"
"""vLLM's own setting for stages with unequal numbers of layers."""
JOINING = "waiting for the pipeline's other nodes"
"""The phase before those of `membership.Phase`."""
TIMEOUTS_S: Mapping[str, float] = {
    JOINING: 600.0,
    Phase.STARTING: 300.0,
    Phase.CONNECTING: 180.0,
    Phase.LOADING: 3600.0,
    Phase.MEASURING: 600.0,
    Phase.COMPILING: 1800.0,
}
"""How long each phase of the start-up may take. Loading waits for the slowest network, the others for one machine."""
_REFUSED_ENGINE_OPTIONS = ("tensor_parallel_size", "pipeline_parallel_size")
_MAX_FLOWS = 16
_TYPES: Mapping[str, tuple[type, str]] = {
    "generation": (str, "text"),
    "address": (str, "text"),
    "port": (int, "a whole number"),
    "token": (str, "text"),
    "rendezvous_path": (str, "text"),
    "timeouts_s": (dict, "an object of phases and seconds"),
}


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """One formation of a pipeline, as its leader is told. `address` is where the other nodes reach this one."""

    topology: PipelineTopology
    generation: str
    address: str = "127.0.0.1"
    port: int = 0
    """Of the leader's link; 0: any free one. Published in the rendezvous."""
    token: str = ""
    """Secret that nodes show when they join."""
    rendezvous_path: str | None = None
    """Where the leader writes its `Rendezvous`, once nodes can join."""
    flows: int = 1
    """TCP connections per pair of ranks that talk across hosts."""
    kv_cache: str = "measured"
    """"planned" gives each stage the KV cache that the planner counted on instead of what its GPUs have left."""
    executor: str = "auto"
    """"plugin" uses our executor even where vLLM's own would do: one node and equal stages."""
    timeouts_s: Mapping[str, float] = field(default_factory=dict)
    """On top of TIMEOUTS_S."""

    @staticmethod
    def from_mapping(raw: Any) -> PipelineOptions:
        """Checked options. Raises InvalidInput, naming near misses."""
        known = {item.name for item in fields(PipelineOptions)}
        if not isinstance(raw, Mapping):
            raise InvalidInput("option 'pipeline'", f"{raw!r} is no object", f"give {', '.join(sorted(known))}")
        for name in raw:
            if name not in known:
                raise InvalidInput(f"pipeline option {name!r}", "is unknown", did_you_mean(name, known))
        for name, (kind, expected) in _TYPES.items():
            if name in raw and type(raw[name]) is not kind:
                raise InvalidInput(f"pipeline option {name!r}", f"is {raw[name]!r}", f"give {expected}")
        topology = PipelineTopology.from_json(raw.get("topology"))
        checked = {**raw, "topology": topology}
        checked.setdefault("generation", secrets.token_hex(8))
        checked["token"] = checked.get("token") or secrets.token_hex(16)
        flows = checked.get("flows", 1)
        if not isinstance(flows, int) or not 1 <= flows <= _MAX_FLOWS:
            raise InvalidInput("pipeline option 'flows'", f"is {flows!r}", f"give 1 to {_MAX_FLOWS} connections")
        if checked.get("kv_cache", "measured") not in ("measured", "planned"):
            raise InvalidInput("pipeline option 'kv_cache'", "is unknown", "use measured or planned")
        if checked.get("kv_cache") == "planned" and any(stage.kv_bytes is None for stage in topology.stages):
            raise InvalidInput("pipeline option 'kv_cache'", "a stage has no plan", "give kv_bytes for every stage")
        if checked.get("executor", "auto") not in ("auto", "plugin"):
            raise InvalidInput("pipeline option 'executor'", "is unknown", "use auto or plugin")
        for phase, limit_s in checked.get("timeouts_s", {}).items():
            if phase not in TIMEOUTS_S:
                raise InvalidInput(f"phase {phase!r}", "is unknown", did_you_mean(str(phase), map(str, TIMEOUTS_S)))
            if not isinstance(limit_s, int | float) or not limit_s > 0:
                raise InvalidInput(f"timeout of phase {phase!r}", f"is {limit_s!r}", "give seconds")
        return PipelineOptions(**checked)

    @property
    def stock(self) -> bool:
        """Whether vLLM's own executor runs this pipeline: one node, stages alike."""
        return self.executor == "auto" and self.topology.uniform_tp is not None and len(self.topology.node_ranks) == 1

    def timeout_s(self, phase: str) -> float:
        return self.timeouts_s.get(phase, TIMEOUTS_S[phase])


def check_engine_options(engine: Mapping[str, Any]) -> None:
    """Raises InvalidInput for engine options that say what the topology says, or that stages cannot have."""
    for name in _REFUSED_ENGINE_OPTIONS:
        if engine.get(name) is not None:
            raise InvalidInput(f"engine option {name!r}", "is given by the pipeline's stages", "leave it out")
    if engine.get("enable_expert_parallel"):
        raise InvalidInput(
            "engine option 'enable_expert_parallel'", "is not supported in a pipeline of stages", "leave it out"
        )


def engine_arguments(pipeline: PipelineOptions) -> dict[str, Any]:
    """vLLM's arguments for this pipeline. Unlike stages declare a tensor parallel size of 1: the core only uses it for
    what does not matter here, and each worker is told its own."""
    topology = pipeline.topology
    arguments: dict[str, Any] = {
        "pipeline_parallel_size": len(topology.stages),
        "tensor_parallel_size": topology.uniform_tp or 1,
    }
    if not pipeline.stock:
        arguments["distributed_executor_backend"] = "mp"
        arguments["additional_config"] = {
            TOPOLOGY_KEY: topology.to_json(),
            FLOWS_KEY: pipeline.flows,
            KV_KEY: pipeline.kv_cache,
        }
    return arguments


def adapt(config: Any, pipeline: PipelineOptions, node: int) -> None:
    """Put into vLLM's resolved configuration what its arguments do not take: numbers of ranks that are no product, and
    nodes that do not divide them. Raises InvalidInput when the model cannot be cut like this."""
    topology = pipeline.topology
    topology.check(model_facts(config))
    if pipeline.stock:
        return
    _refuse_unsupported(config)
    parallel = config.parallel_config
    parallel.world_size = topology.world
    parallel.nnodes = len(topology.node_ranks)
    parallel.node_rank = node
    parallel.master_addr = pipeline.address
    if any(len({topology.node_of(rank) for rank in topology.ranks_of(s)}) > 1 for s in range(len(topology.stages))):
        # vLLM's own all-reduce looks for its peers among the devices that its process sees.
        parallel.disable_custom_all_reduce = True


def model_facts(config: Any) -> ModelFacts:
    """From vLLM's resolved configuration."""
    model = config.model_config
    kinds = set(getattr(model.hf_text_config, "layer_types", None) or ())
    return ModelFacts(
        name=str(model.served_model_name or model.model),
        layers=model.get_total_num_hidden_layers(),
        attention_heads=model.model_arch_config.total_num_attention_heads,
        kv_heads=model.get_total_num_kv_heads(),
        mixed_attention=len(kinds) > 1 or bool(model.is_hybrid),
    )


def shared_options(options: Any, config: Any) -> dict[str, Any]:
    """What the leader tells the other nodes: its `VllmOptions`, with what vLLM resolved from its own hardware said
    outright, since theirs may resolve differently."""
    pipeline: PipelineOptions = options.pipeline
    scheduler = config.scheduler_config
    resolved = {
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "max_model_len": config.model_config.max_model_len,
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "enable_chunked_prefill": bool(scheduler.enable_chunked_prefill),
        "async_scheduling": bool(scheduler.async_scheduling),
        "enable_prefix_caching": bool(config.cache_config.enable_prefix_caching),
    }
    return {
        "model": options.model,
        "revision": options.revision,
        "tokenizer": options.tokenizer,
        "tokenizer_revision": options.tokenizer_revision,
        "scheduling_policy": options.scheduling_policy,
        "engine": {**options.engine, **resolved},
        "pipeline": {
            "topology": pipeline.topology.to_json(),
            "generation": pipeline.generation,
            "address": pipeline.address,
            "flows": pipeline.flows,
            "kv_cache": pipeline.kv_cache,
            "executor": "plugin",
        },
        "config_sha256": config_sha256(options.model),
    }


def config_sha256(model: str) -> str | None:
    """Of a model directory's configuration; None for a name on the hub."""
    path = Path(model) / "config.json"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def flows_of(vllm_config: Any) -> int:
    """TCP connections per pair of ranks on different hosts."""
    return int(vllm_config.additional_config.get(FLOWS_KEY, 1))


def planned_kv_bytes(vllm_config: Any, stage: int) -> int | None:
    """What the ranks of a stage must take for KV cache; None when they measure it."""
    if vllm_config.additional_config.get(KV_KEY) != "planned":
        return None
    return topology_of(vllm_config).stages[stage].kv_bytes


def _refuse_unsupported(config: Any) -> None:
    parallel = config.parallel_config
    found = {
        "data parallelism": parallel.data_parallel_size > 1,
        "context parallelism": parallel.prefill_context_parallel_size > 1 or parallel.decode_context_parallel_size > 1,
        "speculative decoding": config.speculative_config is not None,
        "a KV connector": config.kv_transfer_config is not None,
        "expert parallelism": parallel.enable_expert_parallel,
    }
    for feature, used in found.items():
        if used:
            raise InvalidInput(feature, "does not work in a pipeline of stages", "turn it off, or use one stage")

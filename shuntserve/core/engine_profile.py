"""How an inference engine spends time and memory beside the kernels: one profile per engine, few numbers each.

Every number has a physical meaning and is a row of `datasets/engines.csv` with its source; `shuntserve calibrate` refits
the times from a user's own measurements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from shuntserve.errors import InvalidInput

BYTES = {
    "fp32": 4.0,
    "fp16": 2.0,
    "bf16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "int4": 0.53125,
    "mxfp4": 0.53125,
    "fp4": 0.5625,
}
"""Bytes per weight, group scales included (int4: a 16-bit scale per 128 and packing; fp4: an 8-bit scale per 16)."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Types of the weights and of the KV cache, and the arithmetic the matrix multiplications run in."""

    weights: str = "bf16"
    kv: str = "bf16"

    def __post_init__(self) -> None:
        for label, value in (("weights", self.weights), ("kv", self.kv)):
            if value not in BYTES:
                raise InvalidInput(f"{label} dtype {value!r}", "not known", "use one of " + ", ".join(BYTES))

    @property
    def weight_bytes(self) -> float:
        return BYTES[self.weights]

    @property
    def kv_bytes(self) -> float:
        return BYTES[self.kv]

    @property
    def activation_bytes(self) -> float:
        """Bytes of one number passed between layers."""
        return 2.0


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """What the engine adds to the kernels.

    Times: `step_s` per engine step, `seq_s` per sequence and step (schedule, sample, detokenize), `stage_s` per stage a
    micro-batch passes, `remote_stage_s` more when the stage is on another machine, `layer_s` per layer for the small
    kernels and launch gaps. `version_factor` scales all of these for another release of the same engine.

    Memory: the engine takes `memory_utilization` of a GPU; `runtime_bytes` (context, communicators, workspaces)
    and CUDA graphs come off it before the KV cache.
    """

    name: str
    memory_utilization: float = 0.9
    runtime_bytes: float = 0.6e9
    graph_bytes: float = 0.5e9
    block_tokens: int = 16
    max_seqs: int = 256
    max_batched_tokens: int = 8192
    mixes_prefill: bool = True
    step_s: float = 1e-3
    seq_s: float = 20e-6
    stage_s: float = 1e-3
    remote_stage_s: float = 1e-3
    layer_s: float = 20e-6
    attention_prefill_efficiency: float = 0.6
    attention_decode_efficiency: float = 0.9
    version_factor: float = 1.0

    def __post_init__(self) -> None:
        for label in ("memory_utilization", "max_seqs", "max_batched_tokens", "block_tokens", "version_factor"):
            value = getattr(self, label)
            if not (math.isfinite(value) and value > 0):
                raise InvalidInput(f"engine {self.name}", f"{label} is {value}", "give a positive, finite number")
        if self.memory_utilization > 1:
            raise InvalidInput(f"engine {self.name}", "memory_utilization exceeds 1", "give a fraction of the GPU")

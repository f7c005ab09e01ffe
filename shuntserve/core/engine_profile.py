"""How an inference engine spends time and memory beside the kernels: one profile per engine, few numbers each.

Every number has a physical meaning and is a row of `datasets/engines.csv` with its source; `shuntserve calibrate`
refits the times from a user's own measurements.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from shuntserve.core.hardware import GIB, Gpu
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

    Host times, in series with the GPU: `step_s` per engine step, `seq_s` per sequence and step (schedule, prepare,
    sample, detokenize), `micro_batch_s` for every further micro-batch that a pipeline keeps in flight, `remote_stage_s`
    per hop to a stage on another machine. `version_factor` scales them all for another release of the same engine.

    Kernel times: `layer_s` per layer for the small kernels and launch gaps; the attention efficiencies are fractions
    of achieved bandwidth (decode) and of the achieved matrix rate (prefill); `fp8_efficiency`, `fp4_efficiency` and
    `expert_efficiency` are matrix rates as fractions of the GPU's own at that type (experts: of dense ones).

    Memory: the engine takes `memory_utilization` of a GPU; `runtime_bytes` (context, communicators, workspaces) and
    `graph_bytes` (captured CUDA graphs) come off it before the KV cache. With `reserves_output` a sequence is only
    admitted when its whole output would fit; else `watermark` of the cache stays free on admission. `splits_cache`:
    each micro-batch in flight has its own share of the cache. `prefix_caching`: a preempted sequence computes again
    only what others have written over since. Unless the engine `mixes_prefill`, a step is either whole prompts or
    decoding, and prompts go first.

    `large_…` are the engine's own defaults on GPUs with much memory (see `tuned_for`), 0 where it has none.
    `kv_follows_weights`: its published measurements keep the KV cache in FP8 whenever the weights are FP8 or FP4.
    """

    name: str
    memory_utilization: float = 0.9
    runtime_bytes: float = 0.6e9
    graph_bytes: float = 0.5e9
    block_tokens: int = 16
    max_seqs: int = 256
    max_batched_tokens: int = 2048
    large_max_seqs: int = 0
    large_max_batched_tokens: int = 0
    reserves_output: bool = False
    watermark: float = 0.0
    splits_cache: bool = False
    prefix_caching: bool = False
    mixes_prefill: bool = True
    kv_follows_weights: bool = False
    step_s: float = 1e-3
    seq_s: float = 20e-6
    micro_batch_s: float = 1e-3
    remote_stage_s: float = 1e-3
    layer_s: float = 50e-6
    attention_prefill_efficiency: float = 0.8
    attention_decode_efficiency: float = 1.0
    fp8_efficiency: float = 1.0
    fp4_efficiency: float = 1.0
    expert_efficiency: float = 1.0
    version_factor: float = 1.0

    def __post_init__(self) -> None:
        for label in ("memory_utilization", "max_seqs", "max_batched_tokens", "block_tokens", "version_factor"):
            value = getattr(self, label)
            if not (math.isfinite(value) and value > 0):
                raise InvalidInput(f"engine {self.name}", f"{label} is {value}", "give a positive, finite number")
        if self.memory_utilization > 1:
            raise InvalidInput(f"engine {self.name}", "memory_utilization exceeds 1", "give a fraction of the GPU")

    def tuned_for(self, gpus: Iterable[Gpu]) -> EngineProfile:
        """The limits that vLLM chooses by itself when all `gpus` have at least 70 GiB and are no A100."""
        large = all(gpu.memory_bytes >= 70 * GIB and not gpu.name.startswith("A100") for gpu in gpus)
        if not large or not self.large_max_seqs:
            return self
        return replace(self, max_seqs=self.large_max_seqs, max_batched_tokens=self.large_max_batched_tokens)

    def precision(self, weights: str, kv: str = "auto") -> Precision:
        """Types this engine would run with; `kv` "auto" is 16 bits unless the engine follows narrow weights."""
        if kv == "auto":
            kv = "fp8" if self.kv_follows_weights and weights in ("fp8", "fp4") else "bf16"
        return Precision(weights, kv)

    def host_s(self, in_flight: float, per_micro: float) -> float:
        """Host seconds in one round of `in_flight` micro-batches of `per_micro` sequences through the pipeline."""
        per_step = self.step_s + self.seq_s * per_micro
        return self.version_factor * (in_flight * per_step + max(0.0, in_flight - 1.0) * self.micro_batch_s)

"""Seconds one engine step takes on one stage: arithmetic and memory traffic of the shapes really run.

`StageRates` prices a layer on one GPU type at one tensor-parallel degree. It is cached, and it remembers what depends
only on the number of tokens, so that a planner or a simulation may ask thousands of times. Times are affine in the
number of layers: `StageTime` keeps the parts apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from shuntserve.core.engine_profile import EngineProfile, Precision
from shuntserve.core.hardware import Gpu, Link
from shuntserve.core.model_shape import LayerShape, ModelShape
from shuntserve.errors import InvalidInput

_REMEMBERED = 50_000
_ARITHMETIC = {"fp8": "fp8", "int8": "int8", "fp4": "fp4", "mxfp4": "fp4"}


@dataclass(frozen=True, slots=True)
class Step:
    """What one micro-batch asks of a stage in one engine step.

    `decode_seqs` sequences add one token each and read `context_tokens` cached tokens together; `prefill_tokens`
    prompt tokens run beside them, each attending to `prefill_context` tokens on average; `sampled` rows need logits
    (all decoding sequences, and prompts that end in this step).
    """

    decode_seqs: float = 0.0
    context_tokens: float = 0.0
    prefill_tokens: float = 0.0
    prefill_context: float = 0.0
    sampled: float | None = None

    @property
    def tokens(self) -> float:
        return self.decode_seqs + self.prefill_tokens

    @property
    def rows_sampled(self) -> float:
        return self.decode_seqs if self.sampled is None else self.sampled

    @classmethod
    def decode(cls, batch: float, context_tokens: float) -> Step:
        """`batch` sequences decode; `context_tokens` is the sum of their lengths."""
        return cls(decode_seqs=batch, context_tokens=context_tokens)

    @classmethod
    def prefill(cls, tokens: float, context: float | None = None, prompts: float = 1.0) -> Step:
        """`tokens` prompt tokens of `prompts` whole prompts; `context` defaults to causal attention over each."""
        mean = tokens / prompts / 2 if context is None else context
        return cls(prefill_tokens=tokens, prefill_context=mean, sampled=prompts)


@dataclass(frozen=True, slots=True)
class StageTime:
    """Parts of a stage's time for one step: `fixed_s + layers × per_layer_s (+ first_s, last_s where they apply)`."""

    per_layer_s: float
    fixed_s: float
    first_s: float
    last_s: float

    def total(self, layers: int, first: bool, last: bool) -> float:
        return (
            self.fixed_s + layers * self.per_layer_s + (self.first_s if first else 0.0) + (self.last_s if last else 0.0)
        )


def ridge(memory_s: float, compute_s: float) -> float:
    """Time of a kernel that needs `memory_s` of traffic and `compute_s` of arithmetic.

    The root of the sum of squares: the larger one far from the ridge, 1.4 times either on it, where the two overlap
    only in part. Measured matrix multiplications lie between this and the plain maximum.
    """
    return math.sqrt(memory_s * memory_s + compute_s * compute_s)


class StageRates:
    """Prices layers of `model` on `tp` GPUs of one kind. Use `stage_rates` (cached) to get one."""

    __slots__ = (
        "_dense_memo", "_head_memo", "attention_flops", "bandwidth", "engine", "gemm_flops", "gpu", "half_flops",
        "link", "model", "precision", "tp",
    )  # fmt: skip

    def __init__(
        self, model: ModelShape, gpu: Gpu, link: Link, tp: int, engine: EngineProfile, precision: Precision
    ) -> None:
        model.check_tp(tp)
        self.model, self.gpu, self.link, self.tp, self.engine, self.precision = model, gpu, link, tp, engine, precision
        self.bandwidth = gpu.achieved_bandwidth
        peak = gpu.flops.get("bf16") or gpu.flops.get("fp16")
        if not peak:
            raise InvalidInput(f"GPU {gpu.name}", "it has no 16-bit arithmetic", "choose another GPU")
        self.half_flops = peak * gpu.gemm_efficiency
        arithmetic = _ARITHMETIC.get(precision.weights)
        factor = {"fp8": engine.fp8_efficiency, "fp4": engine.fp4_efficiency}.get(arithmetic or "", 1.0)
        narrow = gpu.flops.get(arithmetic or "", 0.0) * gpu.gemm_efficiency * factor
        self.gemm_flops = narrow or self.half_flops
        self.attention_flops = self.half_flops * engine.attention_prefill_efficiency
        self._dense_memo: dict[tuple[LayerShape, float], float] = {}
        self._head_memo: dict[float, float] = {}

    # --- kernels ---

    def gemm_s(self, m: float, n: float, k: float, efficiency: float = 1.0) -> float:
        """One multiplication of `m` rows by an `n` × `k` weight, at `efficiency` of the usual rate."""
        activations = m * (n + k) * self.precision.activation_bytes
        memory_s = (n * k * self.precision.weight_bytes + activations) / self.bandwidth
        return ridge(memory_s, 2.0 * m * n * k / (self.gemm_flops * efficiency))

    def experts_s(self, shape: LayerShape, m: float) -> float:
        """All routed experts of a layer: only chosen ones are read (balanced routing), their rows spread thin."""
        share = shape.experts_per_token / shape.experts
        chosen = shape.experts * (1.0 - (1.0 - share) ** m)
        rows = m * shape.experts_per_token / chosen
        one = sum(self.gemm_s(rows, g.n, g.k, self.engine.expert_efficiency) for g in shape.expert_gemms(self.tp))
        return chosen * one

    def dense_s(self, shape: LayerShape, m: float) -> float:
        """Everything in one layer that depends on the number of tokens only: all but attention."""
        key = (shape, m)
        known = self._dense_memo.get(key)
        if known is not None:
            return known
        total = self.engine.layer_s
        for gemm in shape.attention_gemms(self.tp):
            total += self.gemm_s(m, gemm.n, gemm.k)
        for gemm in shape.dense_gemms(self.tp):
            total += self.gemm_s(m, gemm.n, gemm.k)
        if shape.is_moe:
            total += self.experts_s(shape, m)
        total += self._elementwise_bytes(shape) * m / self.bandwidth
        total += 2.0 * self.link.all_reduce_s(m * shape.hidden * self.precision.activation_bytes, self.tp)
        if len(self._dense_memo) >= _REMEMBERED:
            self._dense_memo.clear()
        self._dense_memo[key] = total
        return total

    def _elementwise_bytes(self, shape: LayerShape) -> float:
        """Bytes per token that norms, rotary embedding, activation and residuals move in one layer."""
        width = shape.experts_per_token * shape.moe_intermediate if shape.is_moe else shape.intermediate
        heads = (shape.heads + 2 * shape.kv_heads) / self.tp * (shape.head_dim or shape.v_head_dim)
        return self.precision.activation_bytes * (8 * shape.hidden + 3 * heads + 3 * width / self.tp)

    def context_token_s(self, shape: LayerShape) -> float:
        """Decode attention: seconds per cached token read in one layer."""
        heads = shape.heads / self.tp
        width = 2 * shape.kv_lora_rank + shape.rope_dim if shape.is_mla else 2 * shape.head_dim
        read = shape.kv_values_per_token(self.tp) * self.precision.kv_bytes
        memory_s = read / (self.bandwidth * self.engine.attention_decode_efficiency)
        return ridge(memory_s, 2.0 * heads * width / self.attention_flops)

    def prefill_pair_s(self, shape: LayerShape) -> float:
        """Prefill attention: seconds per (prompt token, attended token) pair in one layer."""
        width = shape.nope_dim + shape.rope_dim + shape.v_head_dim if shape.is_mla else 2 * shape.head_dim
        return 2.0 * shape.heads / self.tp * width / self.attention_flops

    def attention_s(self, shape: LayerShape, step: Step) -> float:
        """Attention of one layer over cached and fresh tokens, on one GPU of the group."""
        context, attended = step.context_tokens, step.prefill_context
        if shape.window is not None:
            context = min(context, step.decode_seqs * shape.window)
            attended = min(attended, float(shape.window))
        total = context * self.context_token_s(shape) if step.decode_seqs else 0.0
        if step.prefill_tokens:
            total += step.prefill_tokens * attended * self.prefill_pair_s(shape)
        return total

    def layer_s(self, shape: LayerShape, step: Step) -> float:
        """One layer of one step, all-reduces included."""
        return self.dense_s(shape, step.tokens) + self.attention_s(shape, step)

    def head_s(self, rows: float) -> float:
        """Final logits of `rows` rows: the output matrix, its result, and gathering the vocabulary's shards."""
        if rows <= 0:
            return 0.0
        known = self._head_memo.get(rows)
        if known is not None:
            return known
        half, hidden, vocab = self.precision.activation_bytes, self.model.hidden, self.model.vocab
        shard = vocab / self.tp
        memory_s = (hidden * shard * half + rows * shard * 4.0) / self.bandwidth
        total = ridge(memory_s, 2.0 * rows * hidden * shard / self.half_flops)
        total += self.link.all_gather_s(rows * vocab * half, self.tp)
        if len(self._head_memo) >= _REMEMBERED:
            self._head_memo.clear()
        self._head_memo[rows] = total
        return total

    def embed_s(self, tokens: float) -> float:
        """Looking `tokens` tokens up in the sharded embedding table."""
        size = tokens * self.model.hidden * self.precision.activation_bytes
        return 2.0 * size / self.bandwidth + self.link.all_reduce_s(size, self.tp)

    def time(self, step: Step, first: int = 0, end: int | None = None) -> StageTime:
        """The parts of a step's time; `per_layer_s` is the mean over layers [first, end)."""
        kinds = self.model.kinds(first, end)
        count = sum(number for _, number in kinds)
        per_layer = sum(self.layer_s(shape, step) * number for shape, number in kinds) / count
        return StageTime(per_layer, 0.0, self.embed_s(step.tokens), self.head_s(step.rows_sampled))

    # --- memory, per GPU of the group ---

    def weight_bytes(self, first: int, end: int) -> float:
        """Bytes of weights of layers [first, end) on each GPU, embedding and head where the range holds them."""
        at_start, at_end = first == 0, end == self.model.num_layers
        copies = at_start + at_end
        if at_start and at_end and self.model.tied_embeddings:
            copies = 1
        return self.weight_bytes_of_layers(first, end) + copies * self.embedding_bytes

    @property
    def embedding_bytes(self) -> float:
        """The embedding table (or the head): kept in 16 bits, shared out over the vocabulary."""
        return self.model.embedding_params / self.tp * self.precision.activation_bytes

    def weight_bytes_of_layers(self, first: int, end: int) -> float:
        return self.precision.weight_bytes * sum(
            shape.params(self.tp) * number for shape, number in self.model.kinds(first, end)
        )

    def layer_weight_bytes(self) -> float:
        """Mean over the model's layers."""
        return self.weight_bytes_of_layers(0, self.model.num_layers) / self.model.num_layers

    def kv_bytes_per_token(self, first: int, end: int) -> float:
        """Bytes one resident token takes on each GPU for layers [first, end), with no window."""
        return self.precision.kv_bytes * sum(
            shape.kv_values_per_token(self.tp) * number for shape, number in self.model.kinds(first, end)
        )

    def activation_bytes(self) -> float:
        """Peak activation memory of one step at the token budget: what vLLM's profiling run would find."""
        widest = max(
            (shape.experts_per_token * shape.moe_intermediate if shape.is_moe else shape.intermediate) / self.tp
            for shape, _ in self.model.kinds()
        )
        logits = min(self.engine.max_seqs, 256) * self.model.vocab * 4.0
        per_token = (4 * self.model.hidden + 3 * widest) * self.precision.activation_bytes
        return self.engine.max_batched_tokens * per_token + logits

    def kv_budget_bytes(self) -> float:
        """What is left on each GPU for weights and KV cache together."""
        engine = self.engine
        taken = engine.runtime_bytes + engine.graph_bytes + self.activation_bytes()
        return self.gpu.memory_bytes * engine.memory_utilization - taken


@lru_cache(maxsize=4096)
def stage_rates(
    model: ModelShape, gpu: Gpu, link: Link, tp: int, engine: EngineProfile, precision: Precision
) -> StageRates:
    """The cached `StageRates` of one (model, GPU, link, tp, engine, precision)."""
    return StageRates(model, gpu, link, tp, engine, precision)

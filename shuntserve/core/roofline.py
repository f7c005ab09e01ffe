"""Seconds one engine step takes on one stage: the slower of arithmetic and memory, over the shapes really run.

`StageRates` prices a layer on one GPU type at one tensor-parallel degree; it is cached, so a planner may ask
thousands of times. Times are affine in the number of layers: `StageTime` keeps the parts apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from shuntserve.core.engine_profile import EngineProfile, Precision
from shuntserve.core.hardware import Gpu, Link
from shuntserve.core.model_shape import LayerShape, ModelShape
from shuntserve.errors import InvalidInput

SOFTNESS = 3.0
"""Exponent of the smooth maximum: a kernel near the ridge is slower than either bound alone."""


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


class StageRates:
    """Prices layers of `model` on `tp` GPUs of one kind. Use `stage_rates` (cached) to get one."""

    __slots__ = (
        "_layer_parts",
        "attention_flops",
        "bandwidth",
        "engine",
        "gemm_flops",
        "gpu",
        "link",
        "model",
        "precision",
        "tp"
    )  # fmt: skip

    def __init__(
        self, model: ModelShape, gpu: Gpu, link: Link, tp: int, engine: EngineProfile, precision: Precision
    ) -> None:
        model.check_tp(tp)
        self.model, self.gpu, self.link, self.tp, self.engine, self.precision = model, gpu, link, tp, engine, precision
        self.bandwidth = gpu.achieved_bandwidth
        half = gpu.flops.get("bf16") or gpu.flops.get("fp16")
        if not half:
            raise InvalidInput(f"GPU {gpu.name}", "it has no 16-bit arithmetic", "choose another GPU")
        arithmetic = {"fp8": "fp8", "int8": "int8", "fp4": "fp4", "mxfp4": "fp4"}.get(precision.weights)
        self.gemm_flops = (gpu.flops.get(arithmetic or "", 0.0) or half) * gpu.gemm_efficiency
        self.attention_flops = half * gpu.gemm_efficiency * engine.attention_prefill_efficiency

    def gemm_s(self, m: float, n: int, k: int) -> float:
        """One matrix multiplication of `m` rows by an `n` × `k` weight."""
        half = self.precision.activation_bytes
        memory_s = (n * k * self.precision.weight_bytes + m * (n + k) * half) / self.bandwidth
        compute_s = 2.0 * m * n * k / self.gemm_flops
        return _soft_max(memory_s, compute_s)

    def experts_s(self, shape: LayerShape, m: float) -> float:
        """All routed experts of a layer: only the chosen ones are read, and their rows are spread thin."""
        share = shape.experts_per_token / shape.experts
        chosen = shape.experts * (1.0 - (1.0 - share) ** m)
        if chosen <= 0:
            return 0.0
        rows = m * shape.experts_per_token / chosen
        return chosen * sum(self.gemm_s(rows, g.n, g.k) for g in shape.expert_gemms(self.tp))

    def attention_s(self, shape: LayerShape, step: Step) -> float:
        """Attention over cached and fresh tokens on one GPU of the group."""
        heads = shape.heads / self.tp
        width = shape.kv_lora_rank + shape.rope_dim if shape.is_mla else shape.head_dim
        value_width = shape.kv_lora_rank if shape.is_mla else shape.head_dim
        total = 0.0
        if step.decode_seqs:
            context = step.context_tokens
            if shape.window is not None:
                context = min(context, step.decode_seqs * shape.window)
            read = context * shape.kv_values_per_token(self.tp) * self.precision.kv_bytes
            memory_s = read / (self.bandwidth * self.engine.attention_decode_efficiency)
            compute_s = 2.0 * context * heads * (width + value_width) / self.attention_flops
            total += _soft_max(memory_s, compute_s)
        if step.prefill_tokens:
            context = step.prefill_context
            if shape.window is not None:
                context = min(context, float(shape.window))
            if shape.is_mla:
                width, value_width = shape.nope_dim + shape.rope_dim, shape.v_head_dim
            total += 2.0 * step.prefill_tokens * context * heads * (width + value_width) / self.attention_flops
        return total

    def layer_s(self, shape: LayerShape, step: Step) -> float:
        """One layer of one step, all-reduces included."""
        m = step.tokens
        total = self.engine.layer_s * self.engine.version_factor
        for gemm in shape.attention_gemms(self.tp):
            total += self.gemm_s(m, gemm.n, gemm.k)
        for gemm in shape.dense_gemms(self.tp):
            total += self.gemm_s(m, gemm.n, gemm.k)
        if shape.is_moe:
            total += self.experts_s(shape, m)
        total += self.attention_s(shape, step)
        total += self._elementwise_bytes(shape) * m / self.bandwidth
        message = m * shape.hidden * self.precision.activation_bytes
        return total + 2.0 * self.link.all_reduce_s(message, self.tp)

    def _elementwise_bytes(self, shape: LayerShape) -> float:
        """Bytes per token that norms, rotary embedding, activation and residuals move in one layer."""
        width = shape.experts_per_token * shape.moe_intermediate if shape.is_moe else shape.intermediate
        heads = (shape.heads + 2 * shape.kv_heads) / self.tp * (shape.head_dim or shape.v_head_dim)
        return 2.0 * (8 * shape.hidden + 3 * heads + 3 * width / self.tp)

    def time(self, step: Step, first: int = 0, end: int | None = None) -> StageTime:
        """The parts of a step's time; `per_layer_s` is the mean over layers [first, end)."""
        kinds = self.model.kinds(first, end)
        count = sum(number for _, number in kinds)
        per_layer = sum(self.layer_s(shape, step) * number for shape, number in kinds) / count
        hidden, vocab = self.model.hidden, self.model.vocab
        rows = step.rows_sampled
        head_s = 0.0
        if rows > 0:
            shard = -(-vocab // self.tp)
            half = self.precision.activation_bytes
            head_s = _soft_max(
                (hidden * shard * half + rows * shard * 4.0) / self.bandwidth,
                2.0
                * rows
                * hidden
                * shard
                / (self.gpu.flops.get("bf16") or self.gpu.flops["fp16"])
                / self.gpu.gemm_efficiency,
            ) + self.link.all_gather_s(rows * vocab * half, self.tp)
        embed_s = step.tokens * hidden * 2.0 * self.precision.activation_bytes / self.bandwidth
        embed_s += self.link.all_reduce_s(step.tokens * hidden * self.precision.activation_bytes, self.tp)
        return StageTime(per_layer, self.engine.stage_s * self.engine.version_factor, embed_s, head_s)

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

    def layer_weight_bytes(self) -> float:
        """Mean over the model's layers."""
        return self.weight_bytes_of_layers(0, self.model.num_layers) / self.model.num_layers

    def weight_bytes_of_layers(self, first: int, end: int) -> float:
        return self.precision.weight_bytes * sum(
            shape.params(self.tp) * number for shape, number in self.model.kinds(first, end)
        )

    def kv_bytes_per_token(self, first: int, end: int) -> float:
        """Bytes one resident token takes on each GPU for layers [first, end), with no window."""
        return self.precision.kv_bytes * sum(
            shape.kv_values_per_token(self.tp) * number for shape, number in self.model.kinds(first, end)
        )

    def activation_bytes(self) -> float:
        """Peak activation memory of one step at the token budget."""
        widest = max(
            (shape.intermediate if not shape.is_moe else shape.experts_per_token * shape.moe_intermediate) / self.tp
            for shape, _ in self.model.kinds()
        )
        tokens = self.engine.max_batched_tokens
        logits = min(self.engine.max_seqs, 256) * self.model.vocab * 4.0
        return tokens * (4 * self.model.hidden + 3 * widest) * self.precision.activation_bytes + logits

    def kv_budget_bytes(self) -> float:
        """What is left on each GPU for weights and KV cache together."""
        engine = self.engine
        return (
            self.gpu.memory_bytes * engine.memory_utilization
            - engine.runtime_bytes
            - engine.graph_bytes
            - self.activation_bytes()
        )


def _soft_max(a: float, b: float) -> float:
    if a < 0.02 * b:
        return b
    if b < 0.02 * a:
        return a
    return float((a**SOFTNESS + b**SOFTNESS) ** (1.0 / SOFTNESS))


@lru_cache(maxsize=4096)
def stage_rates(
    model: ModelShape, gpu: Gpu, link: Link, tp: int, engine: EngineProfile, precision: Precision
) -> StageRates:
    """The cached `StageRates` of one (model, GPU, link, tp, engine, precision)."""
    return StageRates(model, gpu, link, tp, engine, precision)

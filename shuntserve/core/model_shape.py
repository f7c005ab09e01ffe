"""The shape of a decoder-only transformer: what each layer multiplies, stores and caches.

A `ModelShape` comes from a catalogue row or from any Hugging Face `config.json` (see `hf_config`). Layers may differ
(leading dense layers of a mixture of experts, alternating attention windows); equal layers share one `LayerShape`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from shuntserve.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Gemm:
    """One weight matrix as one GPU of the tensor-parallel group holds it: `n` outputs × `k` inputs."""

    name: str
    n: int
    k: int


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One decoder layer. `experts` = 0 means a dense feed-forward of width `intermediate`.

    With `kv_lora_rank` > 0 attention is multi-head latent attention: one compressed vector of
    `kv_lora_rank + rope_dim` numbers is cached per token and shared by all heads, so tensor parallelism does not
    divide it. `small_params` counts norms and biases.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    gated: bool = True
    window: int | None = None
    experts: int = 0
    experts_per_token: int = 0
    moe_intermediate: int = 0
    shared_experts: int = 0
    kv_lora_rank: int = 0
    q_lora_rank: int = 0
    rope_dim: int = 0
    nope_dim: int = 0
    v_head_dim: int = 0
    small_params: int = 0

    @property
    def is_moe(self) -> bool:
        return self.experts > 0

    @property
    def is_mla(self) -> bool:
        return self.kv_lora_rank > 0

    @property
    def _mats(self) -> int:
        return 3 if self.gated else 2

    def attention_gemms(self, tp: int) -> tuple[Gemm, ...]:
        """Weight matrices of attention on one of `tp` GPUs (key/value heads are replicated once tp exceeds them)."""
        heads = self.heads // tp
        if self.is_mla:
            latent = self.kv_lora_rank + self.rope_dim
            q_dim = heads * (self.nope_dim + self.rope_dim)
            out_k = heads * self.v_head_dim
            down = (Gemm("kv_down", latent, self.hidden),)
            query = (
                (Gemm("q_down", self.q_lora_rank, self.hidden), Gemm("q_up", q_dim, self.q_lora_rank))
                if self.q_lora_rank
                else (Gemm("q", q_dim, self.hidden),)
            )
            up = (Gemm("kv_up", heads * (self.nope_dim + self.v_head_dim), self.kv_lora_rank),)
            return (*query, *down, *up, Gemm("o", self.hidden, out_k))
        kv = max(1, self.kv_heads // tp)
        qkv = (heads + 2 * kv) * self.head_dim
        return (Gemm("qkv", qkv, self.hidden), Gemm("o", self.hidden, heads * self.head_dim))

    def dense_gemms(self, tp: int) -> tuple[Gemm, ...]:
        """Feed-forward matrices that every token uses, on one of `tp` GPUs (shared experts included)."""
        router = (Gemm("router", self.experts, self.hidden),) if self.is_moe else ()
        width = self.shared_experts * self.moe_intermediate if self.is_moe else self.intermediate
        if width == 0:
            return router
        mine = math.ceil(width / tp)
        return (*router, Gemm("up", (self._mats - 1) * mine, self.hidden), Gemm("down", self.hidden, mine))

    def expert_gemms(self, tp: int) -> tuple[Gemm, ...]:
        """Matrices of ONE routed expert on one of `tp` GPUs; empty for a dense layer."""
        if not self.is_moe:
            return ()
        mine = math.ceil(self.moe_intermediate / tp)
        return (Gemm("expert_up", (self._mats - 1) * mine, self.hidden), Gemm("expert_down", self.hidden, mine))

    def params(self, tp: int = 1) -> int:
        """Weights of this layer held by one of `tp` GPUs (norms included, replicated)."""
        total = sum(g.n * g.k for g in self.attention_gemms(tp)) + sum(g.n * g.k for g in self.dense_gemms(tp))
        total += self.experts * sum(g.n * g.k for g in self.expert_gemms(tp))
        return total + (self.small_params or 2 * self.hidden)

    def active_params(self) -> int:
        """Weights one token is multiplied with."""
        idle = (self.experts - self.experts_per_token) * sum(g.n * g.k for g in self.expert_gemms(1))
        return self.params() - idle

    def kv_values_per_token(self, tp: int) -> int:
        """Numbers cached per token on one of `tp` GPUs."""
        if self.is_mla:
            return self.kv_lora_rank + self.rope_dim
        return 2 * max(1, self.kv_heads // tp) * self.head_dim

    def check_tp(self, tp: int, model: str) -> None:
        """Raise `InvalidInput` unless `tp` GPUs can share this layer the way vLLM shares it."""
        if tp < 1:
            raise InvalidInput(f"tp={tp}", "a stage needs at least one GPU", "use tp=1 or more")
        if self.heads % tp:
            raise InvalidInput(
                f"tp={tp} for {model}",
                f"{self.heads} attention heads cannot be divided among {tp} GPUs",
                "use " + ", ".join(f"tp={d}" for d in range(1, 17) if self.heads % d == 0),
            )
        if not self.is_mla and self.kv_heads % tp and tp % self.kv_heads:
            raise InvalidInput(
                f"tp={tp} for {model}",
                f"{self.kv_heads} key/value heads neither divide nor are divided by {tp}",
                "use a power of two",
            )


@dataclass(frozen=True)
class ModelShape:
    """A whole model. `weights` is the type of the published checkpoint (bf16, fp16, fp8, int8, int4, fp4)."""

    name: str
    layers: tuple[LayerShape, ...]
    hidden: int
    vocab: int
    tied_embeddings: bool
    max_context: int
    weights: str = "bf16"
    aliases: tuple[str, ...] = ()
    _kinds: tuple[tuple[LayerShape, int], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.layers:
            raise InvalidInput(f"model {self.name}", "it has no layers", "give num_hidden_layers ≥ 1")
        object.__setattr__(self, "_kinds", tuple(Counter(self.layers).items()))

    def __hash__(self) -> int:
        return hash((self.name, len(self.layers), self.weights))

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def kinds(self, first: int = 0, end: int | None = None) -> tuple[tuple[LayerShape, int], ...]:
        """Distinct layer shapes among layers [first, end) with their counts."""
        if first == 0 and (end is None or end == len(self.layers)):
            return self._kinds
        return tuple(Counter(self.layers[first:end]).items())

    @property
    def embedding_params(self) -> int:
        return self.vocab * self.hidden

    @property
    def params(self) -> int:
        """All weights, embeddings and output head included."""
        heads = self.embedding_params * (1 if self.tied_embeddings else 2)
        return heads + self.hidden + sum(shape.params() * count for shape, count in self._kinds)

    @property
    def active_params(self) -> int:
        heads = self.embedding_params * (1 if self.tied_embeddings else 2)
        return heads + self.hidden + sum(shape.active_params() * count for shape, count in self._kinds)

    def kv_values_per_token(self) -> int:
        """Numbers cached per token by all layers together, unsharded and with no window."""
        return sum(shape.kv_values_per_token(1) * count for shape, count in self._kinds)

    def check_tp(self, tp: int) -> None:
        for shape, _ in self._kinds:
            shape.check_tp(tp, self.name)


def uniform(shape: LayerShape, count: int) -> tuple[LayerShape, ...]:
    """`count` equal layers."""
    return (shape,) * count


def alternating(pattern: Iterable[LayerShape], count: int) -> tuple[LayerShape, ...]:
    """`count` layers that repeat `pattern`."""
    cycle = tuple(pattern)
    return tuple(cycle[i % len(cycle)] for i in range(count))

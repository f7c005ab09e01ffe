"""What a tiny model looks like: its family, its sizes, its seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Family = Literal["llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe", "gemma3"]
FAMILIES: tuple[Family, ...] = get_args(Family)
MIXTURES: tuple[Family, ...] = ("mixtral", "qwen3_moe")
"""Families whose layers route every token to a few of many experts."""


@dataclass(frozen=True, slots=True)
class TinyModel:
    """What to write. The defaults give about 1 MB and a step of a few milliseconds on one core."""

    family: Family = "llama"
    hidden_size: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    intermediate_size: int = 256
    """Of each expert in a mixture of experts."""
    experts: int = 4
    experts_per_token: int = 2
    sliding_window: int = 64
    """How far the sliding layers of a gemma3 look back; every second layer sees everything."""
    extra_vocabulary: int = 0
    """Ids beyond the tokenizer's own, never sampled: they make logits and embeddings as large as a real model's."""
    max_model_len: int = 2048
    mean_output_tokens: float = 200.0
    """Roughly how long a sampled answer is (temperature 1). Greedy answers are usually longer."""
    tie_word_embeddings: bool = False
    """Tied weights leave no room for the bias: such a model answers any token, readable or not."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"family {self.family!r} is none of {', '.join(FAMILIES)}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.mean_output_tokens <= 1:
            raise ValueError("mean_output_tokens must be above 1")
        if self.family == "qwen2" and self.head_dim * self.heads != self.hidden_size:
            raise ValueError("qwen2 takes its head_dim from hidden_size / heads")
        if self.experts_per_token > self.experts:
            raise ValueError(f"experts_per_token ({self.experts_per_token}) is more than experts ({self.experts})")

    @property
    def is_mixture(self) -> bool:
        return self.family in MIXTURES

    def padded_vocabulary(self, known_tokens: int) -> int:
        """Rows of the embedding of a tokenizer with so many tokens."""
        return -(-(known_tokens + self.extra_vocabulary) // 64) * 64

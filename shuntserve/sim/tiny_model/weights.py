"""Random weights that answer in readable nonsense, under each family's tensor names.

One hidden dimension carries the same positive value everywhere, so a weight on it in `lm_head` is a bias. It keeps raw
bytes and unused ids from being sampled, and sets how often the model ends by itself.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from shuntserve.sim.tiny_model.shape import TinyModel
from shuntserve.sim.tiny_model.tokenizer import EOS_TOKEN_ID, word_ids

Weights = dict[str, npt.NDArray[np.float32]]

_BIAS_INPUT = 0.5
"""Value of the constant hidden dimension. Larger than a typical activation, so that it survives the final norm."""
_SUPPRESSED_LOGIT = -40.0
_WORD_LOGIT_SPREAD = 3.0
"""Standard deviation of a word's logit: near ties stay far above float32 noise."""
_EMBEDDING_SPREAD = 0.1
_ATTENTION_SHARPNESS = np.float32(2.0)
"""Scale of queries and keys. With less, attention averages over everything and greedy answers soon go in circles."""
_BRANCH_SCALE = 0.2
"""How much an attention or MLP adds to the hidden state. Small, so that the constant dimension keeps its share."""
_TIED_BRANCH_SCALE = 1.0
"""Where the output's weights are the input's, a token is its own likeliest successor unless the layers add more."""


def weights(model: TinyModel, vocabulary: dict[str, int]) -> Weights:
    """Every tensor of the checkpoint by name; the same model gives the same values."""
    return _Maker(model, vocabulary).weights()


class _Maker:
    """Draws the tensors in a fixed order from one generator."""

    def __init__(self, model: TinyModel, vocabulary: dict[str, int]) -> None:
        self._model = model
        self._vocabulary = vocabulary
        self._random = np.random.Generator(np.random.Philox(model.seed))
        self._branch_scale = np.float32(_TIED_BRANCH_SCALE if model.tie_word_embeddings else _BRANCH_SCALE)
        self._is_gemma = model.family == "gemma3"

    def weights(self) -> Weights:
        model = self._model
        embedding = self._normal_values(model.padded_vocabulary(len(self._vocabulary)), model.hidden_size)
        embedding *= np.float32(_EMBEDDING_SPREAD)
        embedding[:, 0] = _BIAS_INPUT
        if self._is_gemma:  # which multiplies what it looks up by this root
            embedding /= np.float32(math.sqrt(model.hidden_size))
        made: Weights = {"model.embed_tokens.weight": embedding}
        for layer in range(model.layers):
            prefix = f"model.layers.{layer}."
            made |= self._attention(prefix)
            made |= self._experts(prefix) if model.is_mixture else self._mlp(prefix + "mlp.", model.intermediate_size)
        made["model.norm.weight"] = self._final_norm()
        if not model.tie_word_embeddings:
            made["lm_head.weight"] = self._lm_head(embedding.shape[0])
        return made

    def _attention(self, prefix: str) -> Weights:
        model, width = self._model, self._model.hidden_size
        queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
        made = {
            prefix + "input_layernorm.weight": self._norm(width),
            prefix + "self_attn.q_proj.weight": self._normal(queries, width) * _ATTENTION_SHARPNESS,
            prefix + "self_attn.k_proj.weight": self._normal(keys, width) * _ATTENTION_SHARPNESS,
            prefix + "self_attn.v_proj.weight": self._normal(keys, width),
            prefix + "self_attn.o_proj.weight": self._residual(queries),
            prefix + "post_attention_layernorm.weight": self._norm(width),
        }
        if model.family == "qwen2":
            for name, size in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
                made[f"{prefix}self_attn.{name}.bias"] = np.full(size, 0.01, dtype=np.float32)
        if model.family in ("qwen3", "qwen3_moe", "gemma3"):
            for name in ("q_norm", "k_norm"):
                made[f"{prefix}self_attn.{name}.weight"] = self._norm(model.head_dim, _ATTENTION_SHARPNESS)
        if self._is_gemma:  # whose branches end in a norm of their own, which sets what they add
            made[prefix + "post_attention_layernorm.weight"] = self._norm(width, self._branch_scale)
            made[prefix + "pre_feedforward_layernorm.weight"] = self._norm(width)
            made[prefix + "post_feedforward_layernorm.weight"] = self._norm(width, self._branch_scale)
        return made

    def _mlp(
        self, prefix: str, inner: int, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    ) -> Weights:
        gate, up, down = names
        return {
            f"{prefix}{gate}.weight": self._normal(inner, self._model.hidden_size),
            f"{prefix}{up}.weight": self._normal(inner, self._model.hidden_size),
            f"{prefix}{down}.weight": self._residual(inner),
        }

    def _experts(self, prefix: str) -> Weights:
        model = self._model
        block, names = ("mlp.", ("gate_proj", "up_proj", "down_proj"))
        if model.family == "mixtral":
            block, names = ("block_sparse_moe.", ("w1", "w3", "w2"))
        made = {f"{prefix}{block}gate.weight": self._normal(model.experts, model.hidden_size) * 2}
        for expert in range(model.experts):
            made |= self._mlp(f"{prefix}{block}experts.{expert}.", model.intermediate_size, names)
        return made

    def _lm_head(self, rows: int) -> npt.NDArray[np.float32]:
        """Words get normally distributed logits; everything else is biased out, the end token to its share."""
        head = self._normal_values(rows, self._model.hidden_size)
        head *= np.float32(_WORD_LOGIT_SPREAD / math.sqrt(self._model.hidden_size))
        words = word_ids(self._vocabulary)
        bias = np.full(rows, _SUPPRESSED_LOGIT, dtype=np.float32)
        bias[words] = 0.0
        bias[EOS_TOKEN_ID] = math.log(len(words)) - math.log(self._model.mean_output_tokens)
        # After the final norm the constant dimension holds about 1..3 (the rest has mean square below 1 + 9/width).
        head[:, 0] = bias / 2.0
        return head

    def _final_norm(self) -> npt.NDArray[np.float32]:
        if self._is_gemma and self._model.tie_word_embeddings:  # whose embedding was made that much smaller
            return self._norm(self._model.hidden_size, math.sqrt(self._model.hidden_size))
        return self._norm(self._model.hidden_size)

    def _norm(self, size: int, scale: float | np.float32 = 1.0) -> npt.NDArray[np.float32]:
        """A gemma adds one to what its checkpoint says."""
        return np.full(size, scale - 1.0 if self._is_gemma else scale, dtype=np.float32)

    def _normal(self, rows: int, columns: int) -> npt.NDArray[np.float32]:
        """Keeps the scale of what it multiplies."""
        return self._normal_values(rows, columns) / np.float32(math.sqrt(columns))

    def _residual(self, columns: int) -> npt.NDArray[np.float32]:
        """Writes to the hidden state, but not to its constant dimension, which stays as the embedding set it."""
        weight = self._normal(self._model.hidden_size, columns)
        weight[0] = 0.0
        return weight * self._branch_scale

    def _normal_values(self, rows: int, columns: int) -> npt.NDArray[np.float32]:
        return self._random.standard_normal((rows, columns), dtype=np.float32)

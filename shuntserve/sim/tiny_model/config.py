"""A tiny model's config.json, in each family's words."""

from __future__ import annotations

from typing import Any

from shuntserve.sim.tiny_model.shape import TinyModel
from shuntserve.sim.tiny_model.tokenizer import EOS_TOKEN_ID

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}
_MODEL_TYPES = {"gemma3": "gemma3_text"}
"""Where the name differs from the family's."""


def config(model: TinyModel, known_tokens: int) -> dict[str, Any]:
    """As a Hugging Face checkpoint has it; `known_tokens` is the size of the tokenizer's vocabulary."""
    return {
        "architectures": [_ARCHITECTURES[model.family]],
        "model_type": _MODEL_TYPES.get(model.family, model.family),
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "intermediate_size": model.intermediate_size,
        "vocab_size": model.padded_vocabulary(known_tokens),
        "max_position_embeddings": model.max_model_len,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": model.tie_word_embeddings,
        "bos_token_id": None,
        "eos_token_id": EOS_TOKEN_ID,
        "torch_dtype": model.dtype,
        "transformers_version": "4.57.0",
        **_of_family(model),
    }


def _of_family(model: TinyModel) -> dict[str, Any]:
    match model.family:
        case "mistral":
            return {"sliding_window": None}
        case "mixtral":
            return {
                "sliding_window": None,
                "num_local_experts": model.experts,
                "num_experts_per_tok": model.experts_per_token,
            }
        case "qwen3_moe":
            return {
                "num_experts": model.experts,
                "num_experts_per_tok": model.experts_per_token,
                "moe_intermediate_size": model.intermediate_size,
                "decoder_sparse_step": 1,
                "norm_topk_prob": True,
                "mlp_only_layers": [],
            }
        case "gemma3":
            kinds = ("sliding_attention", "full_attention")
            return {
                "hidden_activation": "gelu_pytorch_tanh",
                "query_pre_attn_scalar": model.head_dim,
                "rope_local_base_freq": 10000.0,
                "sliding_window": model.sliding_window,
                "layer_types": [kinds[layer % 2] for layer in range(model.layers)],
            }
        case _:
            return {}

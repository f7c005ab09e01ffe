"""Reads a Hugging Face `config.json` (already parsed) into a `ModelShape`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from shuntserve.core.model_shape import LayerShape, ModelShape
from shuntserve.errors import InvalidInput

_ENCODERS = frozenset(
    (
        "bert",
        "roberta",
        "xlm-roberta",
        "distilbert",
        "electra",
        "deberta",
        "deberta-v2",
        "t5",
        "mt5",
        "bart",
        "whisper",
        "clip",
    )
)
_MOST = 10**8
_MOST_LAYERS = 2000
_NEXT = "give a decoder-only transformer's config.json, or a model name from `shuntserve catalog models`"


def shape_from_hf_config(config: Mapping[str, Any], name: str = "") -> ModelShape:
    """The shape of a decoder-only transformer; raises `InvalidInput` naming the first field that is missing or wrong.

    Understands dense grouped-query attention, mixtures of experts (Mixtral, Qwen, DeepSeek, gpt-oss, Llama 4 names),
    multi-head latent attention, uniform and alternating sliding windows, and text towers nested in multimodal configs.
    """
    text = config.get("text_config") if isinstance(config.get("text_config"), Mapping) else None
    outer, config = config, {**config, **text} if text is not None else config
    name = name or str(outer.get("_name_or_path") or outer.get("model_type") or "config.json")

    def number(*keys: str, default: int | None = None) -> int:
        for key in keys:
            value = config.get(key)
            if value is not None:
                return _count(name, key, value)
        if default is None:
            raise InvalidInput(f"config of {name}", f"{keys[0]} is missing", _NEXT)
        return default

    hidden, count, heads = (
        number("hidden_size", "n_embd", "d_model"),
        number("num_hidden_layers", "n_layer", "num_layers"),
        number("num_attention_heads", "n_head"),
    )
    if config.get("model_type") in _ENCODERS or config.get("is_encoder_decoder"):
        raise InvalidInput(f"config of {name}", f"a {config.get('model_type')} model is no decoder", _NEXT)
    if min(hidden, count, heads) < 1:
        raise InvalidInput(f"config of {name}", "hidden_size, layers and heads must be at least 1", _NEXT)
    if count > _MOST_LAYERS:
        raise InvalidInput(f"config of {name}", f"{count} layers are more than any model has", _NEXT)
    experts = number("num_local_experts", "num_experts", "n_routed_experts", default=0)
    intermediate = number("intermediate_size", "ffn_hidden_size", "n_inner", default=4 * hidden)
    base = LayerShape(
        hidden=hidden,
        heads=heads,
        kv_heads=number("num_key_value_heads", "num_kv_heads", default=1 if config.get("multi_query") else heads),
        head_dim=number("head_dim", default=hidden // heads),
        intermediate=intermediate,
        gated=not any(key in config for key in ("n_inner", "ffn_hidden_size")) and config.get("model_type") != "opt",
        kv_lora_rank=number("kv_lora_rank", default=0),
        q_lora_rank=number("q_lora_rank", default=0),
        rope_dim=number("qk_rope_head_dim", default=0),
        nope_dim=number("qk_nope_head_dim", default=0),
        v_head_dim=number("v_head_dim", default=0),
    )
    if not 1 <= base.kv_heads <= heads or heads % base.kv_heads:
        raise InvalidInput(f"config of {name}", f"{base.kv_heads} key/value heads do not divide {heads} heads", _NEXT)
    if base.is_mla and not (base.rope_dim and base.nope_dim and base.v_head_dim):
        raise InvalidInput(f"config of {name}", "kv_lora_rank is given without its head dimensions", _NEXT)
    layers = [base] * count
    if experts:
        width = number("moe_intermediate_size", "expert_intermediate_size", default=intermediate)
        shared = number("n_shared_experts", default=0)
        if not shared and config.get("shared_expert_intermediate_size"):
            shared = max(1, round(number("shared_expert_intermediate_size") / width))
        moe = replace(
            base,
            experts=experts,
            experts_per_token=number("num_experts_per_tok", "num_experts_per_token", "experts_per_token", default=2),
            moe_intermediate=width,
            shared_experts=shared,
        )
        if not 1 <= moe.experts_per_token <= experts:
            raise InvalidInput(f"config of {name}", f"{moe.experts_per_token} of {experts} experts are chosen", _NEXT)
        dense = number("first_k_dense_replace", default=0)
        every = number("interleave_moe_layer_step", "decoder_sparse_step", default=1) or 1
        only = _list(name, config, "mlp_only_layers")
        layers = [base if i < dense or i in only or (i + 1) % every else moe for i in range(count)]
    layers = _windows(name, config, layers)
    return ModelShape(
        name=name,
        layers=tuple(layers),
        hidden=hidden,
        vocab=number("vocab_size"),
        tied_embeddings=bool(config.get("tie_word_embeddings", outer.get("tie_word_embeddings", False))),
        max_context=number("max_position_embeddings", "n_positions", default=2048),
        weights=_weights(name, outer, config),
    )


def _count(name: str, key: str, value: object) -> int:
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and 0 <= number <= _MOST and number == int(number)):
        raise InvalidInput(f"config of {name}", f"{key} is {value!r}, not a count", _NEXT)
    return int(number)


def _list(name: str, config: Mapping[str, Any], key: str) -> list[Any]:
    value = config.get(key) or []
    if not isinstance(value, list):
        raise InvalidInput(f"config of {name}", f"{key} is no list", _NEXT)
    return value


def _windows(name: str, config: Mapping[str, Any], layers: list[LayerShape]) -> list[LayerShape]:
    window = config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return layers
    window = _count(name, "sliding_window", window)
    kinds = _list(name, config, "layer_types")
    pattern = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern")
    if kinds and len(kinds) != len(layers):
        raise InvalidInput(f"config of {name}", f"layer_types names {len(kinds)} of {len(layers)} layers", _NEXT)
    if kinds:
        local = [kind == "sliding_attention" for kind in kinds]
    elif pattern:
        every = _count(name, "sliding_window_pattern", pattern)
        local = [(i + 1) % every != 0 for i in range(len(layers))]
    elif config.get("model_type") == "gemma2":
        local = [i % 2 == 0 for i in range(len(layers))]
    else:
        local = [True] * len(layers)
    return [replace(shape, window=window) if is_local else shape for shape, is_local in zip(layers, local, strict=True)]


def _weights(name: str, outer: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    quant = outer.get("quantization_config") or config.get("quantization_config") or {}
    if not isinstance(quant, Mapping):
        raise InvalidInput(f"config of {name}", "quantization_config is no object", _NEXT)
    method = str(quant.get("quant_method", "")).lower()
    bits = quant.get("bits") or quant.get("w_bit")
    if method in ("fp8", "fbgemm_fp8") or "fp8" in str(quant.get("quant_algo", "")).lower():
        return "fp8"
    if method in ("awq", "gptq", "awq_marlin", "gptq_marlin") or bits == 4:
        return "int8" if bits == 8 else "int4"
    if method == "mxfp4" or "fp4" in str(quant.get("quant_algo", "")).lower():
        return "mxfp4"
    if method == "compressed-tensors":
        return _compressed(quant)
    dtype = str(outer.get("torch_dtype") or outer.get("dtype") or config.get("torch_dtype") or config.get("dtype"))
    return "fp16" if dtype.endswith("float16") and "bfloat" not in dtype else "bf16"


def _compressed(quant: Mapping[str, Any]) -> str:
    """Type of the weights of a compressed-tensors checkpoint, by the first group that states one."""
    groups = quant.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            family = "fp" if weights.get("type") == "float" else "int"
            return {"fp4": "mxfp4", "fp8": "fp8", "int4": "int4"}.get(f"{family}{weights.get('num_bits')}", "int8")
    return "fp8" if "float" in str(quant) else "int8"

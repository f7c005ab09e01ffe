"""Any Hugging Face config becomes a shape, or a clear refusal."""

from __future__ import annotations

from typing import Any

import pytest

from shuntserve.core.catalog import Catalog
from shuntserve.core.hf_config import shape_from_hf_config
from shuntserve.errors import InvalidInput

LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 128256, "max_position_embeddings": 131072,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip


def test_a_dense_config_equals_the_catalogue(catalog: Catalog) -> None:
    """Llama-3.1-70B from its config is the catalogue's model."""
    shape = shape_from_hf_config(LLAMA)
    known = catalog.model("Llama-3.1-70B")

    assert shape.params == known.params
    assert shape.kv_values_per_token() == known.kv_values_per_token()
    assert (shape.num_layers, shape.weights) == (80, "bf16")


def test_a_mixture_of_experts_keeps_its_dense_layers_and_shared_experts(catalog: Catalog) -> None:
    """DeepSeek-V3's config: latent attention, three dense layers, 256 experts and a shared one, FP8 weights."""
    config = {
        "model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128,
        "num_key_value_heads": 128, "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256,
        "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "kv_lora_rank": 512,
        "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "vocab_size": 129280,
        "max_position_embeddings": 163840, "quantization_config": {"quant_method": "fp8"},
    }  # fmt: skip

    shape = shape_from_hf_config(config)

    assert shape.params == pytest.approx(catalog.model("DeepSeek-V3").params, rel=1e-4)
    assert [layer.is_moe for layer in shape.layers[:4]] == [False, False, False, True]
    assert shape.weights == "fp8"
    assert shape.kv_values_per_token() == 61 * 576


def test_windows_alternate_as_the_config_says() -> None:
    """Gemma-3 has a full layer after five windowed ones; layer_types, when given, decide."""
    by_pattern = shape_from_hf_config({**LLAMA, "sliding_window": 1024, "sliding_window_pattern": 6})
    by_types = shape_from_hf_config(
        {**LLAMA, "sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 40}
    )
    unused = shape_from_hf_config({**LLAMA, "sliding_window": 4096, "use_sliding_window": False})

    assert [layer.window for layer in by_pattern.layers[:6]] == [1024] * 5 + [None]
    assert [layer.window for layer in by_types.layers[:2]] == [128, None]
    assert unused.layers[0].window is None


def test_a_text_tower_inside_a_multimodal_config_is_found() -> None:
    """`text_config` describes the language model."""
    shape = shape_from_hf_config({"model_type": "gemma3", "text_config": LLAMA})

    assert shape.num_layers == 80


@pytest.mark.parametrize(
    ("quantization", "weights"),
    [
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "mxfp4"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4, "type": "int"}}}},
            "int4",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"g": {"weights": {"num_bits": 8, "type": "float"}}},
            },
            "fp8",
        ),
    ],
)
def test_quantized_checkpoints_are_recognised(quantization: dict[str, Any], weights: str) -> None:
    """The type of the weights follows the quantization config."""
    assert shape_from_hf_config({**LLAMA, "quantization_config": quantization}).weights == weights


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": 0}, "layers"),
        ({"num_attention_heads": -4}, "num_attention_heads"),
        ({"num_hidden_layers": "eighty"}, "num_hidden_layers"),
        ({"vocab_size": 1.5}, "vocab_size"),
        ({"hidden_size": float("nan")}, "hidden_size"),
        ({"hidden_size": float("inf")}, "hidden_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**6}, "more than any model"),
        ({"num_key_value_heads": 7}, "do not divide 64 heads"),
        ({"num_key_value_heads": 0}, "do not divide 64 heads"),
        ({"num_experts": 8, "num_experts_per_tok": 20, "moe_intermediate_size": 100}, "20 of 8 experts"),
        ({"num_experts": 8, "mlp_only_layers": 3}, "mlp_only_layers"),
        ({"kv_lora_rank": 512}, "kv_lora_rank"),
        ({"sliding_window": -5}, "sliding_window"),
        ({"sliding_window": 128, "sliding_window_pattern": "six"}, "sliding_window_pattern"),
        ({"sliding_window": 128, "layer_types": ["full_attention"]}, "1 of 80 layers"),
        ({"quantization_config": "fp8"}, "quantization_config"),
        ({"model_type": "bert"}, "bert"),
        ({"is_encoder_decoder": True}, "no decoder"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(change: dict[str, Any], named: str) -> None:
    """The error names the field."""
    with pytest.raises(InvalidInput, match=named):
        shape_from_hf_config({**LLAMA, **change})

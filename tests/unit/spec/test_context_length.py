"""A model's context from its configuration, as vLLM derives it."""

from __future__ import annotations

from typing import Any

import pytest

from shuntserve.core.context_length import derive_max_model_len, longest_model_len


@pytest.mark.parametrize(
    ("config", "default", "longest"),
    [
        ({"max_position_embeddings": 4096}, 4096, 4096),
        ({"n_positions": 1024}, 1024, 1024),
        ({"max_position_embeddings": 4096, "seq_length": 2048}, 2048, 2048),
        ({"max_position_embeddings": 8192, "model_max_length": 131072}, 131072, 131072),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "linear", "factor": 4.0}}, 8192, 8192),
        ({"max_position_embeddings": 2048, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 4096, 4096),
        (
            {"max_position_embeddings": 131072, "rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
            131072,
            131072,
        ),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 131072, 131072),
        (
            {
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_parameters": {"rope_type": "longrope", "long_factor": [1.0]},
            },
            4096,
            131072,
        ),
        (
            {
                "max_position_embeddings": 32768,
                "rope_parameters": {
                    "full": {"rope_type": "default"},
                    "sliding": {"rope_type": "linear", "factor": 2.0},
                },
            },
            65536,
            65536,
        ),
        (
            {"model_type": "gemma3_text", "max_position_embeddings": 131072, "rope_scaling": {"factor": 8.0}},
            131072,
            131072,
        ),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "linear", "factor": None}}, 2048, 2048),
        ({}, None, None),
    ],
    ids=str,
)
def test_context_lengths(config: dict[str, Any], default: int | None, longest: int | None) -> None:
    """The smallest stated length counts, scaled only by the RoPE types whose models state the unscaled one."""
    assert derive_max_model_len(config) == default
    assert longest_model_len(config) == longest

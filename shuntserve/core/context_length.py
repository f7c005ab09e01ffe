"""The longest sequence a model can hold, from its configuration, by the rule vLLM applies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_LENGTH_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
_ALREADY_SCALED = frozenset({"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"})
"""RoPE scalings whose models state the scaled length in their configuration."""


def derive_max_model_len(config: Mapping[str, Any]) -> int | None:
    """Tokens in the model's context, prompt and output together; None when the configuration does not say.

    `config` is the text model's part of config.json, with the defaults of its configuration class filled in.
    """
    if any(_rope_type(rope) == "longrope" for rope in _rope_parameters(config)):
        # The longer context costs quality on short sequences, so it has to be asked for.
        return _count(config.get("original_max_position_embeddings")) or longest_model_len(config)
    return longest_model_len(config)


def longest_model_len(config: Mapping[str, Any]) -> int | None:
    """The most `max_model_len` may be set to; None when the configuration does not say."""
    lengths = [value for key in _LENGTH_KEYS if (value := _count(config.get(key))) is not None]
    if not lengths:
        return None
    longest = _count(config.get("model_max_length")) or min(lengths)
    if "gemma3" in str(config.get("model_type", "")):
        return longest  # states its length after scaling
    factor = 1.0
    for rope in _rope_parameters(config):
        if _rope_type(rope) not in _ALREADY_SCALED:
            factor = rope.get("factor") or factor
    return int(longest * factor)


def _rope_type(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type", rope.get("type", "default")))


def _rope_parameters(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """RoPE settings: one for all layers, or one for each layer type."""
    for key in ("rope_parameters", "rope_scaling"):
        value = config.get(key)
        if isinstance(value, Mapping):
            nested = [item for item in value.values() if isinstance(item, Mapping)]
            yield from nested or [value]
            return


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 1:
        return None
    return int(value)

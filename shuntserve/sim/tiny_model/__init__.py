"""Writes tiny random language models to disk: real checkpoints that load in seconds, made without any download.

The demo, the tests and the benchmarks run real vLLM on them. A checkpoint is a complete Hugging Face directory (config,
generation config, byte-level tokenizer with chat template, safetensors), a pure function of its `TinyModel`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shuntserve.sim.tiny_model.checkpoint import write_safetensors
from shuntserve.sim.tiny_model.config import config
from shuntserve.sim.tiny_model.shape import FAMILIES, Family, TinyModel
from shuntserve.sim.tiny_model.tokenizer import (
    EOS_TOKEN_ID,
    SPECIAL_TOKENS,
    WORDS,
    tokenizer,
    tokenizer_config,
    vocabulary_and_merges,
)
from shuntserve.sim.tiny_model.weights import weights

__all__ = ["EOS_TOKEN_ID", "FAMILIES", "SPECIAL_TOKENS", "WORDS", "Family", "TinyModel", "write_tiny_model"]

_DEFAULT = TinyModel()


def write_tiny_model(directory: Path, model: TinyModel = _DEFAULT) -> Path:
    """Write `model` into `directory` (made when absent) and return it. The same model gives the same bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = vocabulary_and_merges()
    _write_json(directory / "tokenizer.json", tokenizer(vocabulary, merges))
    _write_json(directory / "tokenizer_config.json", tokenizer_config(model.max_model_len))
    _write_json(directory / "config.json", config(model, len(vocabulary)))
    _write_json(directory / "generation_config.json", {"eos_token_id": EOS_TOKEN_ID, "transformers_version": "4.57.0"})
    write_safetensors(directory / "model.safetensors", weights(model, vocabulary), model.dtype)
    return directory


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

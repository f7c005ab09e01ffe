"""Tiny checkpoints of every family: complete, repeatable, and refused when their sizes do not fit together."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest

from shuntserve.core.hf_config import shape_from_hf_config
from shuntserve.sim.tiny_model import FAMILIES, Family, TinyModel, write_tiny_model


def tensors_of(directory: Path) -> dict[str, Any]:
    data = (directory / "model.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    del header["__metadata__"]
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(data) - 8 - length
    return header


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_has_the_weights_its_configuration_promises(family: Family, tied: bool, tmp_path: Path) -> None:
    """The estimator, which knows models only by their config.json, counts the very weights that the file holds."""
    directory = write_tiny_model(tmp_path, TinyModel(family, layers=3, tie_word_embeddings=tied))

    tensors = tensors_of(directory)
    shape = shape_from_hf_config(json.loads((directory / "config.json").read_text()))

    weights = sum(math.prod(t["shape"]) for name, t in tensors.items() if "norm" not in name and "bias" not in name)
    small = sum(math.prod(t["shape"]) for name, t in tensors.items() if "norm" in name or "bias" in name)
    assert weights <= shape.params <= weights + small
    assert ("lm_head.weight" in tensors) == (not tied)
    assert shape.num_layers == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_model_gives_the_same_bytes_and_another_seed_others(family: Family, tmp_path: Path) -> None:
    """A checkpoint is a pure function of what it is asked to be."""
    first, again, other = (
        write_tiny_model(tmp_path / name, TinyModel(family, seed=seed)) / "model.safetensors"
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )

    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != other.read_bytes()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"family": "lama"}, "'lama' is none of llama"),
        ({"heads": 6, "kv_heads": 4}, "multiple of kv_heads"),
        ({"family": "qwen2", "head_dim": 64}, "head_dim from hidden_size"),
        ({"family": "mixtral", "experts": 2, "experts_per_token": 3}, "more than experts"),
        ({"mean_output_tokens": 1.0}, "above 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, Any], message: str) -> None:
    """By the name of what is wrong, before anything is written."""
    with pytest.raises(ValueError, match=message):
        TinyModel(**sizes)

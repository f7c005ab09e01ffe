"""Tiny random models for real vLLM on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from shuntserve.sim.tiny_model import TinyModel, write_tiny_model


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers."""
    return write_tiny_model(tmp_path_factory.mktemp("llama"), TinyModel(mean_output_tokens=60))


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 of two layers."""
    return write_tiny_model(tmp_path_factory.mktemp("qwen"), TinyModel("qwen3", mean_output_tokens=60))

"""Real vLLM on the CPU: tiny random models, and engines shared where a test does not end them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shuntserve.sim.tiny_model import TinyModel, write_tiny_model

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers."""
    return write_tiny_model(tmp_path_factory.mktemp("llama"), TinyModel(mean_output_tokens=60))


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 of two layers."""
    return write_tiny_model(tmp_path_factory.mktemp("qwen"), TinyModel("qwen3", mean_output_tokens=60))


@pytest.fixture(scope="session", autouse=True)
def support_on_path() -> Iterator[None]:
    """Engine processes can import this directory's modules (schedulers with planted faults)."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), before]))
    yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before

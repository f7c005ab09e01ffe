"""One small model directory for all ingest tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.support.model_dirs import build_model_dir


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with BOS, a chat template and a context of 256 tokens."""
    return build_model_dir(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="session")
def tokenizer(model: Path) -> Any:
    """The model's tokenizer as transformers, and so vLLM, loads it."""
    return AutoTokenizer.from_pretrained(model)

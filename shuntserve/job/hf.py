"""transformers, imported late: it takes seconds where torch is installed, and most commands do not need it."""

from __future__ import annotations

import logging
from typing import Any


def auto_tokenizer() -> Any:
    """`transformers.AutoTokenizer`."""
    _hush()
    from transformers import AutoTokenizer

    return AutoTokenizer


def auto_config() -> Any:
    """`transformers.AutoConfig`."""
    _hush()
    from transformers import AutoConfig

    return AutoConfig


def _hush() -> None:
    """Keep back the notice that models cannot be used without torch: only tokenizers and configurations are used
    here."""
    logger = logging.getLogger("transformers")
    if _not_about_torch not in logger.filters:
        logger.addFilter(_not_about_torch)


def _not_about_torch(record: logging.LogRecord) -> bool:
    return "PyTorch was not found" not in str(record.msg)

"""Shared fixtures; each test states its claim in its docstring."""

from __future__ import annotations

import os

# Tests never leave this machine: an unknown model name must be an error at once, not a download.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

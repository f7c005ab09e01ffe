"""Shared fixtures; each test states its claim in its docstring."""

from __future__ import annotations

import os

from hypothesis import settings

# Tests never leave this machine: an unknown model name must be an error at once, not a download.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Two busy cores make single examples slow now and then; no test asserts on time.
settings.register_profile("shuntserve", deadline=None)
settings.load_profile("shuntserve")

"""Shared fixtures; each test states its claim in its docstring."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from tests.support.resume_table import pytest_terminal_summary

__all__ = ["pytest_terminal_summary"]

# Tests never leave this machine: an unknown model name must be an error at once, not a download.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Two busy cores make single examples slow now and then; no test asserts on time.
settings.register_profile("shuntserve", deadline=None)
settings.load_profile("shuntserve")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the suite, files that ask for the longest timeouts come first, so that none of them
    is left for the end."""
    usual_s = float(config.getini("timeout"))

    def asked_s(item: pytest.Item) -> float:
        mark = item.get_closest_marker("timeout")
        return max(usual_s, float(mark.args[0])) if mark is not None else usual_s

    if hasattr(config, "workerinput"):
        items.sort(key=asked_s, reverse=True)

"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.browser import missing, open_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real browser, or a skip that says why there is none."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with open_browser() as browser:
        yield browser

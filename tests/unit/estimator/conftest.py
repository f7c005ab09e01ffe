"""The shipped catalogue, read once."""

from __future__ import annotations

import pytest

from shuntserve.catalog import load_catalog
from shuntserve.core.catalog import Catalog


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    """The tables in datasets/, with nothing of this machine's user on top."""
    return load_catalog()

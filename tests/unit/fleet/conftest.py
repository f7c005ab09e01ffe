"""Machines with scripted agents; none of them outlives its test."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.scripted_machines import Room


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Callable[..., Room]]:
    """Makes rooms."""
    rooms: list[Room] = []

    def make(behaviour: str, directory: Path | None = None) -> Room:
        rooms.append(Room(directory or tmp_path / f"machine-{len(rooms)}", behaviour))
        return rooms[-1]

    yield make
    for one in rooms:
        for process in one.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

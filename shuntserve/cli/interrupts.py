"""Ctrl-C and its like: the first drains, the second ends at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shuntserve.job.run import StopSwitch

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interrupts(stop: StopSwitch) -> Iterator[None]:
    """While inside, signals press the switch; where no worker runs they raise KeyboardInterrupt instead."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        if not stop.working:
            raise KeyboardInterrupt
        stop.press()

    before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

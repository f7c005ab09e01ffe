"""A backend that writes nonsense into the worker's socket, as a memory-corrupting library might."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Mapping
from typing import Any

from shuntserve.engine.backend import Emit
from shuntserve.engine.port import EngineReady


class GarbageBackend:
    def __init__(self, options: Mapping[str, Any], emit: Emit) -> None:
        pass

    async def start(self) -> EngineReady:
        for descriptor in range(3, 256):
            try:
                is_socket = stat.S_ISSOCK(os.fstat(descriptor).st_mode)
            except OSError:
                continue
            if is_socket:
                os.write(descriptor, b"\x03\x00\x00\x00\xc1\xc1\xc1")
        await asyncio.sleep(600)
        raise AssertionError("the worker should have ended this process")

    async def stop(self) -> None:
        pass

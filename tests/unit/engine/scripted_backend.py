"""A backend that does what each request's script says: emit, refuse, crash, hang, be slow, start children.

It runs in a real engine process, so the tests around it see real exits, signals, sockets and orphans.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from shuntserve.engine.backend import Emit, Progress
from shuntserve.engine.port import Delta, EngineLost, EngineReady, LossKind, Refused, SequenceRequest
from shuntserve.errors import InvalidInput, Unavailable


class ScriptedBackend:
    def __init__(self, options: Mapping[str, Any], emit: Emit) -> None:
        self._options = options
        self._emit = emit
        self._steps = 0
        self._patience_s = 0.0
        self._lost: asyncio.Future[EngineLost] = asyncio.get_running_loop().create_future()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> EngineReady:
        match self._options.get("start"):
            case "invalid":
                raise InvalidInput("model 'nowhere'", "does not exist", "name another")
            case "unavailable":
                raise Unavailable("model hub", "does not answer", "try again")
            case "crash":
                raise RuntimeError("no memory for the weights")
            case "never":
                await asyncio.sleep(3600)
        if self._options.get("children"):
            code = "import time; time.sleep(600)"
            subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {code!r}]); {code}",
                ]
            )
        if self._options.get("fork") and os.fork() == 0:
            time.sleep(600)
            os._exit(0)
        return EngineReady(100, 8, (0,), {"engine": "scripted", "options": str(self._options.get("name"))})

    def submit(self, request: SequenceRequest) -> None:
        self._tasks[request.seq_id] = asyncio.get_running_loop().create_task(self._play(request))

    async def _play(self, request: SequenceRequest) -> None:
        for command, *arguments in request.params["script"]:
            match command:
                case "emit":
                    self._emit(Delta(request.seq_id, arguments[0], arguments[1]))
                case "finish":
                    self._emit(Delta(request.seq_id, [7], "!", finish_reason="stop", stop_reason=7))
                case "refuse":
                    self._emit(Refused(request.seq_id, "too_long", "longer than the model"))
                case "sleep":
                    await asyncio.sleep(arguments[0])
                case "step":
                    self._steps += 1
                case "patience":
                    self._patience_s = arguments[0]
                case "block":
                    time.sleep(arguments[0])
                case "print":
                    print(arguments[0], file=sys.stderr, flush=True)
                case "exit":
                    os._exit(arguments[0])
                case "signal":
                    os.kill(os.getpid(), signal.Signals[arguments[0]])
                case "lost":
                    self._lost.set_result(EngineLost(LossKind(arguments[0]), arguments[1]))
                case "raise":
                    raise RuntimeError("a row broke the backend")

    def abort(self, seq_ids: Sequence[str]) -> None:
        for seq_id in seq_ids:
            if task := self._tasks.pop(seq_id, None):
                task.cancel()

    def progress(self) -> Progress:
        return Progress(self._steps, self._patience_s)

    async def lost(self) -> EngineLost:
        return await self._lost

    async def stop(self) -> None:
        if self._options.get("stop") == "never":
            await asyncio.sleep(3600)

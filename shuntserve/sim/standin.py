"""The stand-in engine as a backend of the engine process: real processes, pipes and kills, no model.

It starts in a moment, so a soak can kill it thousands of times. Options: `seats`, `step_s`, `start_s`,
`stream_interval`, and for tests `crash_token` (a prompt that holds it aborts the process, as a segmentation fault in
a kernel would) and `hang_token` (a prompt that holds it stops all progress)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Any

from shuntserve.engine.backend import Emit, Progress
from shuntserve.engine.port import EngineLost, EngineReady, SequenceRequest
from shuntserve.sim.tokens import EOS, PoisonError, StandinBatch


class StandinBackend:
    """See the module's docstring."""

    def __init__(self, options: Mapping[str, Any], emit: Emit) -> None:
        self._emit = emit
        self._seats = int(options.get("seats", 16))
        self._step_s = float(options.get("step_s", 0.005))
        self._start_s = float(options.get("start_s", 0.0))
        self._hang = options.get("hang_token")
        self._batch = StandinBatch(
            self._seats, poison=options.get("crash_token"), stream_interval=int(options.get("stream_interval", 4))
        )
        self._steps = 0
        self._hung = False
        self._work: asyncio.Task[None] | None = None

    async def start(self) -> EngineReady:
        await asyncio.sleep(self._start_s)
        self._work = asyncio.create_task(self._run())
        return EngineReady(
            max_model_len=1 << 20, max_num_seqs=self._seats, eos_token_ids=(EOS,), fingerprint={"engine": "standin-1"}
        )

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._step_s)
            if self._hung or not len(self._batch):
                continue
            try:
                deltas = self._batch.step()
            except PoisonError:
                os.abort()
            self._steps += 1
            for delta in deltas:
                self._emit(delta)

    def submit(self, request: SequenceRequest) -> None:
        self._hung = self._hung or (self._hang is not None and self._hang in request.prompt_token_ids)
        self._batch.submit(request)

    def abort(self, seq_ids: Sequence[str]) -> None:
        self._batch.abort(seq_ids)

    def progress(self) -> Progress:
        return Progress(self._steps)

    async def lost(self) -> EngineLost:
        assert self._work is not None
        await self._work
        raise AssertionError("the stand-in runs until it is stopped")

    async def stop(self) -> None:
        if self._work is not None:
            self._work.cancel()

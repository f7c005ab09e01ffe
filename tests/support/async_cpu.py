"""vLLM's asynchronous scheduling on the CPU, which vLLM itself offers on GPUs alone.

There the next step is scheduled while the last one's tokens are still on their way, so that a preempted or finished
sequence may have output in flight. Nothing in it needs a GPU but the copy of the sampled tokens on a stream of its own:
on a CPU the tokens are where they are wanted, and streams and events have nothing to wait for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from shuntserve.engine.backend import Emit
from shuntserve.engine.port import EngineReady
from shuntserve.engine.vllm_backend import VllmBackend

BACKEND = "tests.support.async_cpu:AsyncCpuBackend"


class AsyncCpuBackend(VllmBackend):
    """`VllmBackend` with steps scheduled ahead."""

    def __init__(self, options: Mapping[str, Any], emit: Emit) -> None:
        engine = {**options["engine"], "async_scheduling": True}
        super().__init__({**options, "engine": engine}, emit)

    async def start(self) -> EngineReady:
        _keep_async_scheduling()
        _make_streams_stand_still()
        ready = await super().start()
        assert self._llm.vllm_config.scheduler_config.async_scheduling
        assert self._llm.vllm_config.max_concurrent_batches == 2
        return ready


def _keep_async_scheduling() -> None:
    from vllm.platforms.cpu import CpuPlatform

    stock = CpuPlatform.check_and_update_config.__func__  # type: ignore[attr-defined]

    def check_and_update_config(cls: Any, config: Any) -> None:
        wanted = config.scheduler_config.async_scheduling
        stock(cls, config)
        config.scheduler_config.async_scheduling = wanted

    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)  # type: ignore[method-assign]


def _make_streams_stand_still() -> None:
    """In this process, and in the engine's core, which is forked from it."""
    import torch

    class StandingStill:
        """A stream or an event on which nothing is ever pending."""

        device = torch.device("cpu")

        def __init__(self, *args: Any, **keywords: Any) -> None:
            pass

        def _nothing(self, *args: Any, **keywords: Any) -> None:
            pass

        wait_stream = wait_event = record = synchronize = _nothing

    torch.cuda.Event = torch.cuda.Stream = StandingStill  # type: ignore[misc,assignment]
    torch.cuda.current_stream = StandingStill  # type: ignore[assignment]
    torch.cuda.stream = lambda stream: contextlib.nullcontext()  # type: ignore[assignment,misc]

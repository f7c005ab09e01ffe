"""Starts engines and runs sequences to their end: what the worker loop does, without the worker loop."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shuntserve.engine.port import Delta, EngineLost, EngineReady, Refused, SequenceRequest
from shuntserve.engine.process import EngineProcess

BACKEND = "shuntserve.engine.vllm_backend:VllmBackend"
START_TIMEOUT_S = 480.0


def options(model: Path, *, scheduler_cls: str | None = None, **engine: Any) -> dict[str, Any]:
    """The smallest engine that has all features."""
    defaults = {
        "dtype": "float32",
        "max_model_len": 512,
        "enforce_eager": True,
        "kv_cache_memory_bytes": 1 << 26,
        "max_num_seqs": 64,
    }
    chosen: dict[str, Any] = {"model": str(model), "engine": {**defaults, **engine}, "cpu_threads": 1}
    return chosen if scheduler_cls is None else {**chosen, "scheduler_cls": scheduler_cls}


def started(model_options: dict[str, Any], log_path: Path, *, backend: str = BACKEND, **keywords: Any) -> EngineProcess:
    """An engine that is ready."""
    engine = EngineProcess(backend, model_options, log_path, **keywords)
    engine.start()
    events = engine.poll(START_TIMEOUT_S)
    assert len(events) == 1, events
    assert isinstance(events[0], EngineReady), (events[0], log_path.read_text()[-3000:])
    return engine


@dataclass
class Output:
    """Everything one sequence gave, joined."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[Any] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    refused: Refused | None = None
    deltas: int = 0

    def take(self, delta: Delta) -> None:
        self.token_ids += delta.token_ids
        self.text += delta.text
        if delta.logprobs is not None:
            self.logprobs = (self.logprobs or []) + list(delta.logprobs)
        self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason
        self.deltas += 1


def generate(engine: EngineProcess, requests: Sequence[SequenceRequest], within_s: float = 120.0) -> dict[str, Output]:
    """Run the sequences to their end."""
    outputs = {request.seq_id: Output() for request in requests}
    assert len(outputs) == len(requests)
    engine.submit(requests)
    deadline_s = time.monotonic() + within_s
    while unfinished(outputs.values()):
        assert time.monotonic() < deadline_s, f"{len(unfinished(outputs.values()))} unfinished after {within_s} s"
        for event in engine.poll(1.0):
            assert not isinstance(event, EngineLost), event
            if isinstance(event, Refused):
                outputs[event.seq_id].refused = event
            elif isinstance(event, Delta) and event.seq_id in outputs:
                outputs[event.seq_id].take(event)
    return outputs


def unfinished(outputs: Iterable[Output]) -> list[Output]:
    return [output for output in outputs if output.finish_reason is None and output.refused is None]


def until_lost(engine: EngineProcess, within_s: float) -> tuple[EngineLost, list[Delta]]:
    """Poll until the engine is lost; also what it said before."""
    deltas: list[Delta] = []
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        for event in engine.poll(0.1):
            if isinstance(event, EngineLost):
                return event, deltas
            assert isinstance(event, Delta), event
            deltas.append(event)
    raise AssertionError(f"not lost within {within_s} s")

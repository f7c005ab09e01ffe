"""A finite job: N requests over several pipelines, simulated, with ramp, drain and tail.

All requests are there at time zero and are pulled by the pipelines or dealt out to them; `simulated_pipeline` says what
a pipeline does with its own.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shuntserve.core.engine_profile import EngineProfile, Precision
from shuntserve.core.model_shape import ModelShape
from shuntserve.core.simulated_pipeline import PipelineRun, PipelineSpec, SimulatedPipeline
from shuntserve.errors import InvalidInput

__all__ = ["DISPATCHES", "Dispatch", "JobEstimate", "PipelineRun", "PipelineSpec", "deal", "job_estimate"]

Dispatch = Literal["pull", "wrr"]
DISPATCHES: tuple[Dispatch, ...] = ("pull", "wrr")


@dataclass(frozen=True, slots=True)
class JobEstimate:
    """A whole job. Times count from the moment all requests are there."""

    makespan_s: float
    job_rps: float
    output_tok_s: float
    ttft_mean_s: float
    pipelines: tuple[PipelineRun, ...]
    steps: int


def job_estimate(
    model: ModelShape,
    pipelines: Sequence[PipelineSpec],
    requests: Sequence[tuple[int, int]],
    engine: EngineProfile,
    precision: Precision | None = None,
    *,
    dispatch: Dispatch = "pull",
    weights: Sequence[float] | None = None,
    in_flight: int | None = None,
) -> JobEstimate:
    """Serve `requests` (prompt tokens, output tokens), all there at time zero.

    "pull": each pipeline takes the next request when it has room. "wrr": requests are dealt out beforehand in weighted
    round robin. With `in_flight` the client sends the next request only while fewer are unfinished, so that under
    "wrr" they gather before the slowest pipeline. Raises `InvalidInput` when a request can never fit a pipeline that
    must take it.
    """
    if not pipelines:
        raise InvalidInput("job", "it has no pipeline", "give at least one")
    if not requests:
        raise InvalidInput("job", "it has no requests", "give at least one")
    if in_flight is not None and in_flight < 1:
        raise InvalidInput(f"in flight {in_flight}", "at least one request must be", "give 1 or more")
    precision = precision or Precision()
    takers = [0] * len(requests) if dispatch == "pull" else _takers(len(requests), _weights(weights, len(pipelines)))
    shared: deque[tuple[int, int]] = deque()
    queues = [shared if dispatch == "pull" else deque[tuple[int, int]]() for _ in pipelines]
    client = _Client(list(zip(requests, takers, strict=True)), queues, in_flight or len(requests))
    runs = [
        SimulatedPipeline(model, spec, queue, engine, precision) for spec, queue in zip(pipelines, queues, strict=True)
    ]
    steps = _simulate(runs, client)
    makespan = max(run.finish_s for run in runs)
    outputs = sum(o for _, o in requests)
    return JobEstimate(
        makespan_s=makespan,
        job_rps=len(requests) / makespan,
        output_tok_s=outputs / makespan,
        ttft_mean_s=sum(run.first_token_s for run in runs) / len(requests),
        pipelines=tuple(run.result() for run in runs),
        steps=steps,
    )


def _simulate(runs: Sequence[SimulatedPipeline], client: _Client) -> int:
    """Run every micro-batch whenever it can, until all requests are served; the number of engine steps."""
    idle = {(k, slot) for k, run in enumerate(runs) for slot in range(len(run.slots))}
    ready: list[tuple[float, int, int]] = []
    steps, now_s = 0, 0.0
    while True:
        if client.send(now_s):
            woken = {(k, slot) for k, slot in idle if runs[k].queue}
            idle -= woken
            for k, slot in sorted(woken):
                heapq.heappush(ready, (now_s, k, slot))
        if not ready:
            if not client.replies:
                return steps
            now_s = client.replies[0][0]
            continue
        now_s, k, slot = heapq.heappop(ready)
        before = runs[k].finished
        again_s = runs[k].step(slot, now_s)
        if runs[k].finished > before:
            client.expect(again_s or runs[k].finish_s, runs[k].finished - before)
        if again_s is None:
            idle.add((k, slot))
        else:
            heapq.heappush(ready, (again_s, k, slot))
            steps += 1


class _Client:
    """Sends requests in order to the queues they are dealt to, while fewer than `in_flight` are unanswered."""

    __slots__ = ("in_flight", "open", "queues", "replies", "unsent")

    def __init__(
        self, dealt: Sequence[tuple[tuple[int, int], int]], queues: Sequence[deque[tuple[int, int]]], in_flight: int
    ) -> None:
        self.unsent, self.queues, self.in_flight = deque(dealt), queues, in_flight
        self.open = 0
        self.replies: list[tuple[float, int]] = []

    def expect(self, at_s: float, count: int) -> None:
        """`count` requests will be answered at `at_s`."""
        heapq.heappush(self.replies, (at_s, count))

    def send(self, now_s: float) -> bool:
        """Take in the answers up to now and send what may be sent; whether anything was."""
        while self.replies and self.replies[0][0] <= now_s:
            self.open -= heapq.heappop(self.replies)[1]
        sent = False
        while self.unsent and self.open < self.in_flight:
            request, taker = self.unsent.popleft()
            self.queues[taker].append(request)
            self.open += 1
            sent = True
        return sent


def deal(count: int, weights: Sequence[float]) -> list[list[int]]:
    """Which of `count` requests each pipeline gets: `_takers` turned round."""
    hands: list[list[int]] = [[] for _ in weights]
    for index, taker in enumerate(_takers(count, weights)):
        hands[taker].append(index)
    return hands


def _takers(count: int, weights: Sequence[float]) -> list[int]:
    """Smooth weighted round robin: every prefix is shared out as near to `weights` as whole requests allow."""
    total = sum(weights)
    credit = [0.0] * len(weights)
    takers = []
    for _ in range(count):
        for k, weight in enumerate(weights):
            credit[k] += weight
        taker = max(range(len(weights)), key=lambda k: credit[k])
        credit[taker] -= total
        takers.append(taker)
    return takers


def _weights(weights: Sequence[float] | None, count: int) -> Sequence[float]:
    if weights is None:
        return [1.0] * count
    if len(weights) != count:
        raise InvalidInput("weights", f"{len(weights)} given for {count} pipelines", "give one per pipeline")
    if any(not math.isfinite(w) or w < 0 for w in weights) or sum(weights) <= 0:
        raise InvalidInput("weights", "they must be numbers ≥ 0 and not all 0", "for instance 2,1")
    return weights

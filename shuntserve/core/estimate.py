"""Steady state of a pipeline under continuous batching: throughput, latency, memory, and what binds.

With S stages the engine keeps S micro-batches in flight. Each holds 1/S of the seats; in one *cycle* every micro-batch
passes every stage once, each resident sequence gains a token, and the share of them that ends is replaced by prompts,
which are prefilled in the same steps. So

    cycle = max(Σ paced stage times + Σ paced hops + host time, S × slowest stage, S × slowest hop at its baseline)
    requests/s = seats / (mean output × cycle)

and seats come from the stage with the least KV cache. Micro-batches follow each other round the pipeline, and none can
overtake: the one with the most prompt tokens sets the pace of the whole round (the bubbles of a deep pipeline), while
the slowest stage only has to do the mean work of all. `batch` asks instead for the same number of equal requests
started together, again and again, as fixed-batch measurements do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from shuntserve.core.engine_profile import EngineProfile, Precision
from shuntserve.core.model_shape import ModelShape
from shuntserve.core.roofline import Step
from shuntserve.core.stage import (
    StageCost,
    StageSpec,
    hop_bytes_per_s,
    stage_cost,
    stage_costs,
    sustained_hop_bytes_per_s,
)
from shuntserve.core.workload import Workload
from shuntserve.errors import InvalidInput

__all__ = [
    "PipelineEstimate",
    "StageCost",
    "StageEstimate",
    "StageSpec",
    "hop_s",
    "pace_step",
    "pipeline_estimate",
    "seat_tokens",
    "stage_cost",
    "stage_costs",
    "steady_step",
]


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """What one stage does; `utilisation` is its share of time at work, `transfer_s` what follows to the next stage."""

    cost: StageCost
    step: Step
    prefill_s: float
    decode_s: float
    step_s: float
    transfer_s: float
    utilisation: float

    @property
    def spec(self) -> StageSpec:
        return self.cost.spec

    @property
    def bottleneck(self) -> str:
        """What most of a step's time goes to."""
        parts = time_parts(self.cost, self.step)
        return max(parts, key=lambda name: parts[name])


@dataclass(frozen=True, slots=True)
class PipelineEstimate:
    """One pipeline under load. `binds` says what limits throughput."""

    throughput_rps: float
    output_tok_s: float
    max_concurrency: float
    kv_blocks: int
    ttft_s: float
    tpot_s: float
    batch_latency_s: float
    cycle_s: float
    micro_batch_seqs: float
    stages: tuple[StageEstimate, ...]
    binds: str


def seat_tokens(workload: Workload, engine: EngineProfile) -> float:
    """KV tokens one resident sequence holds on average: all it will ever need where the engine reserves it."""
    return workload.mean_held if engine.reserves_output else workload.mean_context


def steady_step(workload: Workload, per_micro: float) -> Step:
    """The mixed step of a micro-batch of `per_micro` sequences in steady state."""
    admitted = per_micro / workload.mean_output
    return Step(
        decode_seqs=per_micro,
        context_tokens=per_micro * workload.mean_context,
        prefill_tokens=admitted * workload.mean_input,
        prefill_context=workload.mean_input_squared / workload.mean_input / 2,
        sampled=per_micro + admitted,
    )


def pace_step(workload: Workload, per_micro: float, in_flight: float, engine: EngineProfile) -> Step:
    """The step of the micro-batch that sets the pace among `in_flight`: the one with the most prompt tokens.

    Sequences of unlike lengths end at random moments, so the prompts admitted in one step are Poisson and the most of
    several exceeds the mean. Equal lengths end in the order they began, and all micro-batches stay alike; from there
    to a coefficient of variation of a half the excess is taken to grow in proportion.
    """
    mean = steady_step(workload, per_micro)
    room = engine.max_batched_tokens - per_micro
    randomness = min(1.0, 2.0 * workload.output_cv)
    if in_flight <= 1 or randomness == 0 or room <= 0:
        return mean
    chunk = min(workload.mean_input, room)
    most = min(room, chunk * _most_of_poisson(mean.prefill_tokens / chunk, in_flight))
    return replace(mean, prefill_tokens=mean.prefill_tokens + randomness * max(0.0, most - mean.prefill_tokens))


def _most_of_poisson(mean: float, draws: float) -> float:
    """Expected maximum of `draws` Poisson variables."""
    term = below = math.exp(-mean)
    total, count = 0.0, 0
    while (left := 1.0 - below**draws) > 1e-4 and count < 1000:
        total += left
        count += 1
        term *= mean / count
        below = min(1.0, below + term)
    return total


def hop_s(sender: StageCost, receiver: StageCost, tokens: float, same_machine: bool, engine: EngineProfile) -> float:
    """Seconds to hand `tokens` tokens to the next stage."""
    wire = sender.activation_bytes(tokens) / hop_bytes_per_s(sender.spec, receiver.spec, same_machine)
    return wire if same_machine else wire + engine.remote_stage_s * engine.version_factor


def pipeline_estimate(
    model: ModelShape,
    stages: Sequence[StageSpec],
    workload: Workload,
    engine: EngineProfile,
    precision: Precision | None = None,
    *,
    batch: int | None = None,
    same_machine: Sequence[bool] | None = None,
) -> PipelineEstimate:
    """Steady state with requests always waiting, or with a fixed `batch` served again and again.

    `same_machine[i]` says that stages i and i+1 share a machine (default: never). Raises `InvalidInput` when the
    stages do not hold the model, or leave no room for one mean request.
    """
    precision = precision or Precision()
    if batch is not None and batch < 1:
        raise InvalidInput(f"batch {batch}", "at least one sequence must run", "give 1 or more")
    costs = stage_costs(model, stages, engine, precision)
    shared = tuple(same_machine) if same_machine is not None else (False,) * (len(costs) - 1)
    kv_tokens = _kv_tokens(costs, workload, model)
    room = kv_tokens / seat_tokens(workload, engine)
    seats = max(1.0, min(room, float(engine.max_seqs * len(costs))))
    pipeline = _Pipeline(costs, shared, engine, workload.mean_input)
    if batch is None:
        return pipeline.steady(workload, seats, kv_tokens, "KV cache" if seats == room else "max_seqs")
    if len(set(zip(workload.input_tokens, workload.output_tokens, strict=True))) > 1:
        return pipeline.steady(workload, min(seats, float(batch)), kv_tokens, "batch")
    return pipeline.static(workload, batch, seats, kv_tokens)


def _kv_tokens(costs: Sequence[StageCost], workload: Workload, model: ModelShape) -> int:
    tightest = min(range(len(costs)), key=lambda i: costs[i].kv_tokens)
    cost = costs[tightest]
    need = workload.mean_input + workload.mean_output
    if cost.kv_tokens < need:
        room = f"leave room for {cost.kv_tokens} cached tokens, one request needs {need:.0f}"
        if cost.kv_room_bytes <= 0:
            room = f"exceed what its {cost.spec.gpu.memory_bytes / 1e9:.0f} GB leave beside the engine"
        raise InvalidInput(
            f"{model.name} on stage {tightest} ({cost.spec.place}, {cost.spec.layers} layers)",
            f"{cost.weight_bytes / 1e9:.1f} GB of weights per GPU {room}",
            f"at most {cost.max_layers} layers fit there: add stages, a larger tp or smaller weights",
        )
    return cost.kv_tokens


class _Pipeline:
    """The arithmetic shared by both kinds of load."""

    def __init__(
        self, costs: tuple[StageCost, ...], shared: tuple[bool, ...], engine: EngineProfile, prompt_tokens: float
    ) -> None:
        self.costs, self.shared, self.engine, self.prompt_tokens = costs, shared, engine, prompt_tokens

    def stage_s(self, cost: StageCost, step: Step) -> float:
        """Seconds of one stage; where prompts have steps of their own, theirs come on top of the decoding."""
        if self.engine.mixes_prefill or not (step.prefill_tokens and step.decode_seqs):
            return cost.step_s(step)
        prompt = cost.step_s(Step.prefill(self.prompt_tokens, step.prefill_context))
        decode = cost.step_s(Step.decode(step.decode_seqs, step.context_tokens))
        return decode + step.prefill_tokens / self.prompt_tokens * prompt

    def times(self, step: Step) -> tuple[list[float], list[float]]:
        """Seconds of every stage, and of the hop behind it (0 behind the last)."""
        costs = self.costs
        work = [self.stage_s(cost, step) for cost in costs]
        hops = [hop_s(costs[i], costs[i + 1], step.tokens, self.shared[i], self.engine) for i in range(len(costs) - 1)]
        return work, [*hops, 0.0]

    def sustained_s(self, tokens: float) -> float:
        """Seconds the slowest network needs for `tokens` once its credits are spent."""
        costs = self.costs
        rates = [sustained_hop_bytes_per_s(a.spec, b.spec, self.shared[i]) for i, (a, b) in enumerate(pairwise(costs))]
        return costs[0].activation_bytes(tokens) / min(rates, default=math.inf)

    def cycle(
        self, step: Step, work: Sequence[float], hops: Sequence[float], in_flight: float, per_micro: float,
        pace: Step | None = None,
    ) -> float:  # fmt: skip
        """Seconds of a round; `pace` is the step of the micro-batch the others follow, when they are not alike."""
        host = self.engine.host_s(in_flight, per_micro)
        paced_work, paced_hops = (work, hops) if pace is None else self.times(pace)
        slowest = max(*work, *hops, self.sustained_s(step.tokens))
        return max(sum(paced_work) + sum(paced_hops) + host, in_flight * slowest)

    def steady(self, workload: Workload, seats: float, kv_tokens: int, limit: str) -> PipelineEstimate:
        count = len(self.costs)
        in_flight, per_micro = min(float(count), seats), max(1.0, seats / count)
        step = steady_step(workload, per_micro)
        work, hops = self.times(step)
        pace = pace_step(workload, per_micro, in_flight, self.engine)
        cycle = self.cycle(step, work, hops, in_flight, per_micro, None if pace == step else pace)
        rps = seats / (workload.mean_output * cycle)
        alone, alone_hops = self.times(Step.prefill(workload.mean_input))
        ttft = sum(alone) + sum(alone_hops) + self.engine.host_s(1.0, 1.0)
        latency = ttft + (workload.mean_output - 1) * cycle
        slowest = max(range(count), key=lambda i: work[i])
        network_s = max(*hops, self.sustained_s(step.tokens))
        if in_flight * max(network_s, work[slowest]) < 0.9 * cycle or limit == "batch":
            host_s = self.engine.host_s(in_flight, per_micro)
            binds = "engine host time" if 2 * host_s > cycle else f"seats ({limit})"
        elif network_s > work[slowest]:
            binds = "network"
        else:
            binds = f"stage {slowest}" if count > 1 else f"GPU time and {limit}"
        decode = Step.decode(per_micro, per_micro * workload.mean_context)
        return self._result(
            rps, workload, seats, kv_tokens, ttft, cycle, latency, per_micro, step, work, hops, decode, alone, binds
        )

    def static(self, workload: Workload, batch: int, seats: float, kv_tokens: int) -> PipelineEstimate:
        """Rounds of `batch` equal requests; those that find no seat run in a further wave of the same round."""
        waves = math.ceil(batch / seats)
        running = batch / waves
        count = len(self.costs)
        in_flight = min(float(count), running)
        per_micro = running / in_flight
        tokens = per_micro * workload.mean_input
        chunks = max(1, math.ceil(tokens / self.engine.max_batched_tokens))
        prefill = Step(
            prefill_tokens=tokens / chunks, prefill_context=workload.mean_input / 2, sampled=per_micro / chunks
        )
        work, hops = self.times(prefill)
        host = self.engine.host_s(1.0, per_micro)
        fill = sum(work) + sum(hops) + host
        prefill_s = fill + (in_flight * chunks - 1) * max(*work, *hops)
        step = Step.decode(per_micro, per_micro * (workload.mean_input + workload.mean_output / 2))
        decode_work, decode_hops = self.times(step)
        cycle = self.cycle(step, decode_work, decode_hops, in_flight, per_micro)
        latency = waves * (prefill_s + (workload.mean_output - 1) * cycle)
        alone, _ = self.times(Step.prefill(workload.mean_input))
        return self._result(
            batch / latency, workload, min(seats, float(batch)), kv_tokens, (fill + prefill_s) / 2, cycle, latency,
            per_micro, step, decode_work, decode_hops, step, alone, "batch" if waves == 1 else "seats (KV cache)",
        )  # fmt: skip

    def _result(
        self, rps: float, workload: Workload, seats: float, kv_tokens: int, ttft: float, cycle: float, latency: float,
        per_micro: float, step: Step, work: Sequence[float], hops: Sequence[float], decode: Step,
        alone: Sequence[float], binds: str,
    ) -> PipelineEstimate:  # fmt: skip
        in_flight = min(float(len(self.costs)), seats)
        stages = tuple(
            StageEstimate(
                cost, step, alone[i], cost.step_s(decode), work[i], hops[i], min(1.0, in_flight * work[i] / cycle)
            )
            for i, cost in enumerate(self.costs)
        )
        return PipelineEstimate(
            throughput_rps=rps,
            output_tok_s=rps * workload.mean_output,
            max_concurrency=seats,
            kv_blocks=kv_tokens // self.engine.block_tokens,
            ttft_s=ttft,
            tpot_s=cycle,
            batch_latency_s=latency,
            cycle_s=cycle,
            micro_batch_seqs=per_micro,
            stages=stages,
            binds=binds,
        )


def time_parts(cost: StageCost, step: Step) -> dict[str, float]:
    """Seconds of one step by what they are spent on; the parts of a kernel at its ridge are split by their squares."""
    rates, m = cost.rates, step.tokens
    parts = {"weights": 0.0, "arithmetic": 0.0, "KV cache": 0.0, "all-reduce": 0.0, "overhead": 0.0}
    for shape, count in rates.model.kinds(cost.spec.first, cost.spec.end):
        dense = rates.dense_s(shape, m)
        reduce = 2.0 * rates.link.all_reduce_s(m * shape.hidden * rates.precision.activation_bytes, rates.tp)
        small = rates.engine.layer_s
        kernels = dense - reduce - small
        read = shape.params(rates.tp) * rates.precision.weight_bytes / rates.bandwidth
        if shape.is_moe:
            read *= min(1.0, m * shape.active_params() / shape.params())
        compute = 2.0 * m * shape.active_params() / rates.tp / rates.gemm_flops
        share = read * read / (read * read + compute * compute)
        attention = rates.attention_s(shape, step)
        prefill = rates.attention_s(
            shape, Step(prefill_tokens=step.prefill_tokens, prefill_context=step.prefill_context)
        )
        parts["weights"] += count * kernels * share
        parts["arithmetic"] += count * (kernels * (1 - share) + prefill)
        parts["KV cache"] += count * (attention - prefill)
        parts["all-reduce"] += count * reduce
        parts["overhead"] += count * small
    return parts

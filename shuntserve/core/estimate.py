"""What a pipeline of stages does under load: memory, steady state of continuous batching, and what binds it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from shuntserve.core.engine_profile import EngineProfile, Precision
from shuntserve.core.hardware import Gpu, Instance, Link
from shuntserve.core.model_shape import ModelShape
from shuntserve.core.roofline import StageRates, Step, stage_rates
from shuntserve.core.workload import Workload
from shuntserve.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class StageSpec:
    """One stage: `tp` GPUs of one machine holding layers [first, end). `instance_type` is empty for bare GPUs."""

    gpu: Gpu
    link: Link
    tp: int
    first: int
    end: int
    instance_type: str = ""
    flow_bytes_per_s: float = math.inf

    @property
    def layers(self) -> int:
        return self.end - self.first

    @classmethod
    def on(cls, instance: Instance, tp: int, first: int, end: int) -> StageSpec:
        """A stage on (part of) an EC2 instance."""
        if tp > instance.usable_gpus:
            raise InvalidInput(
                f"{instance.name}:tp={tp}",
                f"the instance has {instance.usable_gpus} GPUs",
                "lower tp or take a larger type",
            )
        return cls(instance.gpu, instance.link, tp, first, end, instance.name, instance.flow_bytes_per_s)


@dataclass(frozen=True, slots=True)
class StageCost:
    """Time and memory of one stage. Bytes are per GPU of the stage."""

    spec: StageSpec
    rates: StageRates
    weight_bytes: float
    kv_bytes_per_token: float
    kv_room_bytes: float
    max_layers: int

    @property
    def is_first(self) -> bool:
        return self.spec.first == 0

    @property
    def is_last(self) -> bool:
        return self.spec.end == self.rates.model.num_layers

    @property
    def kv_tokens(self) -> int:
        """Tokens whose KV fits, in whole blocks."""
        if self.kv_room_bytes <= 0:
            return 0
        block = self.rates.engine.block_tokens
        return int(self.kv_room_bytes / (self.kv_bytes_per_token * block)) * block

    def step_s(self, step: Step) -> float:
        """Seconds this stage takes for one micro-batch step (prefill and decode mixed as the step says)."""
        time = self.rates.time(step, self.spec.first, self.spec.end)
        return time.total(self.spec.layers, self.is_first, self.is_last)

    def decode_step_s(self, batch: float, context_tokens: float) -> float:
        """`batch` sequences, `context_tokens` cached tokens in all."""
        return self.step_s(Step.decode(batch, context_tokens))

    def prefill_s(self, tokens: float, context: float | None = None, prompts: float = 1.0) -> float:
        """`tokens` prompt tokens of `prompts` prompts; `context` = mean tokens attended to (default: causal)."""
        return self.step_s(Step.prefill(tokens, context, prompts))

    def activation_bytes(self, tokens: float) -> float:
        """Bytes sent to the next stage for `tokens` tokens (hidden state and residual)."""
        return 2.0 * tokens * self.rates.model.hidden * self.rates.precision.activation_bytes


@lru_cache(maxsize=65536)
def stage_cost(model: ModelShape, spec: StageSpec, engine: EngineProfile, precision: Precision) -> StageCost:
    """The cost of one stage; cached. Raises `InvalidInput` for a layer range or TP the model cannot have.

    `kv_room_bytes` ≤ 0 means the stage does not fit its GPUs; `max_layers` is how many layers would, with room for at
    least one sequence of the model's mean layer.
    """
    if not 0 <= spec.first < spec.end <= model.num_layers:
        raise InvalidInput(
            f"layers [{spec.first}, {spec.end})", f"{model.name} has {model.num_layers} layers", "cover each layer once"
        )
    rates = stage_rates(model, spec.gpu, spec.link, spec.tp, engine, precision)
    weights = rates.weight_bytes(spec.first, spec.end)
    kv = rates.kv_bytes_per_token(spec.first, spec.end)
    budget = rates.kv_budget_bytes()
    ends = weights - rates.weight_bytes_of_layers(spec.first, spec.end)
    per_layer = (
        rates.layer_weight_bytes()
        + engine.block_tokens * rates.kv_bytes_per_token(0, model.num_layers) / model.num_layers
    )
    return StageCost(spec, rates, weights, kv, budget - weights, max(0, int((budget - ends) / per_layer)))


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """What one stage does in steady state; `utilisation` is its share of time at work."""

    spec: StageSpec
    prefill_s: float
    decode_s: float
    step_s: float
    transfer_s: float
    utilisation: float
    kv_tokens: int
    bottleneck: str


@dataclass(frozen=True, slots=True)
class PipelineEstimate:
    """Steady state of one pipeline. `binds` names what would have to grow for more throughput."""

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


def transfer_s(cost: StageCost, following: StageCost, tokens: float, same_machine: bool = False) -> float:
    """Seconds to hand `tokens` tokens to the next stage: one TCP flow between machines, the GPU link inside one."""
    size = cost.activation_bytes(tokens)
    if same_machine:
        return size / cost.spec.link.bus(max(cost.spec.tp, 2))
    return size / min(cost.spec.flow_bytes_per_s, following.spec.flow_bytes_per_s)


def stage_costs(
    model: ModelShape, stages: Sequence[StageSpec], engine: EngineProfile, precision: Precision
) -> tuple[StageCost, ...]:
    """Costs of a pipeline's stages after checking that they cover every layer once, in order, and fit."""
    expected = 0
    for spec in stages:
        if spec.first != expected:
            raise InvalidInput("pipeline", f"layers jump from {expected} to {spec.first}", "cover each layer once")
        expected = spec.end
    if expected != model.num_layers:
        raise InvalidInput(
            "pipeline", f"its stages hold {expected} layers, {model.name} has {model.num_layers}", "make them add up"
        )
    return tuple(stage_cost(model, spec, engine, precision) for spec in stages)


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
    model does not fit.
    """
    precision = precision or Precision()
    costs = stage_costs(model, stages, engine, precision)
    shared = tuple(same_machine) if same_machine is not None else (False,) * (len(costs) - 1)
    kv_tokens = min(cost.kv_tokens for cost in costs)
    tightest = min(range(len(costs)), key=lambda i: costs[i].kv_tokens)
    if kv_tokens < workload.mean_input + workload.mean_output:
        cost = costs[tightest]
        raise InvalidInput(
            f"{model.name} on stage {tightest} ({cost.spec.instance_type or cost.spec.gpu.name} tp={cost.spec.tp})",
            f"{cost.weight_bytes / 1e9:.1f} GB of weights per GPU leave room for {kv_tokens} cached tokens",
            f"give it at most {cost.max_layers} layers, a larger tp, or smaller weights",
        )
    seats = min(kv_tokens / workload.mean_context, float(engine.max_seqs * len(costs)))
    seats = min(seats, float(batch)) if batch is not None else seats
    per_micro = max(1.0, seats / len(costs))
    outputs = workload.mean_output
    admitted = per_micro / outputs
    step = Step(
        decode_seqs=per_micro,
        context_tokens=per_micro * workload.mean_context,
        prefill_tokens=admitted * workload.mean_input,
        prefill_context=workload.mean_input_squared / workload.mean_input / 2,
        sampled=per_micro + admitted,
    )
    work = [cost.step_s(step) for cost in costs]
    hops = [
        transfer_s(costs[i], costs[i + 1], step.tokens, shared[i])
        + (0.0 if shared[i] else engine.remote_stage_s * engine.version_factor)
        for i in range(len(costs) - 1)
    ] + [0.0]
    host = engine.version_factor * (engine.step_s + engine.seq_s * per_micro)
    cycle = max(sum(work) + sum(hops) + host, max(work) * len(costs), max(hops) * len(costs), host * len(costs))
    rps = seats / (outputs * cycle)
    prefill_once = [cost.prefill_s(workload.mean_input) for cost in costs]
    estimates = tuple(
        StageEstimate(
            spec=cost.spec,
            prefill_s=prefill_once[i],
            decode_s=cost.decode_step_s(per_micro, per_micro * workload.mean_context),
            step_s=work[i],
            transfer_s=hops[i],
            utilisation=work[i] * len(costs) / cycle,
            kv_tokens=cost.kv_tokens,
            bottleneck="memory" if i == tightest else "time",
        )
        for i, cost in enumerate(costs)
    )
    ttft = sum(prefill_once) + sum(hops) + host
    return PipelineEstimate(
        throughput_rps=rps,
        output_tok_s=rps * outputs,
        max_concurrency=seats,
        kv_blocks=kv_tokens // engine.block_tokens,
        ttft_s=ttft,
        tpot_s=cycle,
        batch_latency_s=ttft + (outputs - 1) * cycle,
        cycle_s=cycle,
        micro_batch_seqs=per_micro,
        stages=estimates,
        binds="kv" if seats < engine.max_seqs * len(costs) else "max_seqs",
    )

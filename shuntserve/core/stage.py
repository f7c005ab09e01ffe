"""One stage of a pipeline: which GPUs hold which layers, what a step costs there, and how much KV cache is left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from shuntserve.core.engine_profile import EngineProfile, Precision
from shuntserve.core.hardware import Gpu, Instance, Link
from shuntserve.core.model_shape import ModelShape
from shuntserve.core.roofline import StageRates, Step, stage_rates
from shuntserve.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class StageSpec:
    """`tp` GPUs of one machine holding layers [first, end). `instance_type` is empty for bare GPUs.

    `flow_bytes_per_s` is the rate of one connection for a moment, `sustained_bytes_per_s` what the machine may send on
    and on.
    """

    gpu: Gpu
    link: Link
    tp: int
    first: int
    end: int
    instance_type: str = ""
    flow_bytes_per_s: float = math.inf
    sustained_bytes_per_s: float = math.inf

    @property
    def layers(self) -> int:
        return self.end - self.first

    @property
    def place(self) -> str:
        """What a user would call it."""
        return f"{self.instance_type or self.gpu.name} tp={self.tp}"

    @classmethod
    def on(cls, instance: Instance, tp: int, first: int, end: int) -> StageSpec:
        """A stage on (part of) an EC2 instance."""
        if tp > instance.usable_gpus:
            raise InvalidInput(
                f"{instance.name}:tp={tp}",
                f"the instance has {instance.usable_gpus} GPU(s)",
                "lower tp or take a larger type",
            )
        return cls(
            instance.gpu, instance.link, tp, first, end, instance.name,
            instance.flow_bytes_per_s, instance.network_bytes_per_s,
        )  # fmt: skip


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

    `kv_room_bytes` ≤ 0 means the stage does not fit its GPUs; `max_layers` is how many layers of the model's mean
    would fit with one block of KV cache each.
    """
    if not 0 <= spec.first < spec.end <= model.num_layers:
        raise InvalidInput(
            f"layers [{spec.first}, {spec.end})", f"{model.name} has {model.num_layers} layers", "cover each layer once"
        )
    rates = stage_rates(model, spec.gpu, spec.link, spec.tp, engine, precision)
    weights = rates.weight_bytes(spec.first, spec.end)
    budget = rates.kv_budget_bytes()
    ends = weights - rates.weight_bytes_of_layers(spec.first, spec.end)
    block = engine.block_tokens * rates.kv_bytes_per_token(0, model.num_layers) / model.num_layers
    most = max(0, int((budget - ends) / (rates.layer_weight_bytes() + block)))
    return StageCost(spec, rates, weights, rates.kv_bytes_per_token(spec.first, spec.end), budget - weights, most)


def stage_costs(
    model: ModelShape, stages: Sequence[StageSpec], engine: EngineProfile, precision: Precision
) -> tuple[StageCost, ...]:
    """Costs of a pipeline's stages, after checking that they hold every layer once and in order."""
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


def hop_bytes_per_s(sender: StageSpec, receiver: StageSpec, same_machine: bool) -> float:
    """Bandwidth between two stages: the GPU link inside a machine, else one TCP flow within both networks."""
    if same_machine:
        return sender.link.bus(max(sender.tp, 2))
    return min(sender.flow_bytes_per_s, receiver.flow_bytes_per_s)


def sustained_hop_bytes_per_s(sender: StageSpec, receiver: StageSpec, same_machine: bool) -> float:
    """What may cross between two stages on and on: the networks' baselines, no limit inside a machine."""
    return math.inf if same_machine else min(sender.sustained_bytes_per_s, receiver.sustained_bytes_per_s)

"""One pipeline at work, simulated engine step by engine step.

It keeps as many micro-batches in flight as it has stages. A step of a micro-batch adds a token to each of its sequences
and prefills prompts within the engine's token budget; it then passes the stages in order, waiting where one is busy.
Prompts enter while KV cache is left, sequences that outgrow it are preempted and prefilled anew, all as vLLM schedules.
A step costs a few table look-ups, so hours of serving take seconds.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from shuntserve.core.engine_profile import EngineProfile, Precision
from shuntserve.core.estimate import hop_s
from shuntserve.core.model_shape import ModelShape
from shuntserve.core.stage import StageCost, StageSpec, stage_costs, sustained_hop_bytes_per_s
from shuntserve.errors import InvalidInput

NETWORK_CREDIT_S = 300.0
"""Credits of a machine that has been quiet, as seconds of its baseline: bursts last "5 to 60 minutes" (EC2 guide)."""


@dataclass(frozen=True, slots=True)
class PipelineRun:
    """What one pipeline did: requests it finished, when it ended, how full its slowest stage was until then."""

    requests: int
    output_tokens: int
    finish_s: float
    busy: float
    preemptions: int


@dataclass(frozen=True)
class PipelineSpec:
    """A replica: its stages in order, which neighbours share a machine (default: none), and a cap on its requests."""

    stages: tuple[StageSpec, ...]
    same_machine: tuple[bool, ...] = ()
    max_concurrency: int | None = None


class _StageClock:
    """One stage's step time as table look-ups: what depends on tokens, and what is linear in context."""

    def __init__(self, cost: StageCost) -> None:
        rates, spec = cost.rates, cost.spec
        self._rates, self._first, self._last = rates, cost.is_first, cost.is_last
        self._kinds = rates.model.kinds(spec.first, spec.end)
        self._dense: dict[int, float] = {}
        full = [(shape, count) for shape, count in self._kinds if shape.window is None]
        self.context_s = sum(count * rates.context_token_s(shape) for shape, count in full)
        self.pair_s = sum(count * rates.prefill_pair_s(shape) for shape, count in full)
        self._windowed = [
            (float(shape.window), count * rates.context_token_s(shape), count * rates.prefill_pair_s(shape))
            for shape, count in self._kinds
            if shape.window is not None
        ]
        self.free_s = 0.0
        self.busy_s = 0.0

    def work_s(self, decode: int, context: float, prefill: int, pairs: float, sampled: int) -> float:
        tokens = decode + prefill
        dense = self._dense.get(tokens)
        if dense is None:
            rates = self._rates
            dense = sum(count * rates.dense_s(shape, tokens) for shape, count in self._kinds)
            dense += rates.embed_s(tokens) if self._first else 0.0
            self._dense[tokens] = dense
        total = dense + context * self.context_s + pairs * self.pair_s
        for window, context_s, pair_s in self._windowed:
            total += min(context, decode * window) * context_s + min(pairs, prefill * window) * pair_s
        return total + self._rates.head_s(sampled) if self._last else total


class Hop:
    """What follows a stage: the way to the next one, at the rate of one flow while network credits last."""

    __slots__ = ("fixed_s", "owed_s", "per_token_s", "sustained_s")

    def __init__(self, fixed_s: float, per_token_s: float, sustained_s: float) -> None:
        self.fixed_s, self.per_token_s, self.sustained_s = fixed_s, per_token_s, sustained_s
        self.owed_s = 0.0

    def arrival_s(self, at_s: float, tokens: int) -> float:
        """When `tokens` sent at `at_s` are there."""
        self.owed_s = max(self.owed_s, at_s) + self.sustained_s * tokens
        return max(at_s + self.fixed_s + self.per_token_s * tokens, self.owed_s - NETWORK_CREDIT_S)


class _Sequence:
    """A request in a micro-batch. It decodes until its micro-batch has made `ends_at` steps; 0 while it prefills."""

    __slots__ = ("ends_at", "given_back_at", "gone", "outputs", "prompt", "started", "to_prefill")

    def __init__(self, prompt: int, outputs: int, started: bool) -> None:
        self.prompt, self.outputs, self.started = prompt, outputs, started
        self.to_prefill = prompt
        self.ends_at = 0
        self.gone = False
        self.given_back_at: int | None = None

    def decoded(self, steps: int) -> int:
        """Decode steps done when the micro-batch has made `steps` (prefill gave the first token already)."""
        return self.outputs - 1 - (self.ends_at - steps)


class _Slot:
    """One micro-batch in flight: `context` and `held` are cached tokens of decoding and of all its sequences."""

    __slots__ = ("context", "decoding", "ending", "held", "order", "prefilling", "running", "steps")

    def __init__(self) -> None:
        self.steps = self.running = self.decoding = self.context = self.held = 0
        self.prefilling: deque[_Sequence] = deque()
        self.ending: dict[int, list[_Sequence]] = {}
        self.order: list[_Sequence] = []


class SimulatedPipeline:
    """One pipeline at work."""

    def __init__(
        self, model: ModelShape, spec: PipelineSpec, queue: deque[tuple[int, int]], engine: EngineProfile,
        precision: Precision,
    ) -> None:  # fmt: skip
        costs = stage_costs(model, spec.stages, engine, precision)
        shared = spec.same_machine or (False,) * (len(costs) - 1)
        self.engine, self.queue = engine, queue
        self.preempted: deque[_Sequence] = deque()
        self.stages = [_StageClock(cost) for cost in costs]
        pairs = list(zip(costs, costs[1:], shared, strict=False))
        fixed = [hop_s(a, b, 0.0, same, engine) for a, b, same in pairs]
        per_token = [hop_s(a, b, 1.0, same, engine) - f for (a, b, same), f in zip(pairs, fixed, strict=True)]
        sustained = [a.activation_bytes(1.0) / sustained_hop_bytes_per_s(a.spec, b.spec, same) for a, b, same in pairs]
        hops = [Hop(*times) for times in zip(fixed, per_token, sustained, strict=True)]
        self.path = list(zip(self.stages, [*hops, Hop(0.0, 0.0, 0.0)], strict=True))
        self.slots = [_Slot() for _ in costs]
        self.capacity = min(cost.kv_tokens for cost in costs)
        if engine.splits_cache:
            self.capacity //= len(costs)
        most = spec.max_concurrency or engine.max_seqs * len(costs)
        self.most_running = min(engine.max_seqs, math.ceil(most / len(costs)))
        self.place = " → ".join(cost.spec.place for cost in costs)
        self.active = self.finished = self.preemptions = self.tokens_out = self.grown = 0
        self.finish_s = self.first_token_s = 0.0

    def result(self) -> PipelineRun:
        busiest = max(stage.busy_s for stage in self.stages)
        busy = busiest / self.finish_s if self.finish_s else 0.0
        return PipelineRun(self.finished, self.tokens_out, self.finish_s, busy, self.preemptions)

    def step(self, index: int, now_s: float) -> float | None:
        """Run one step of a micro-batch from `now_s`; when it can run again, or None when it has nothing left."""
        slot = self.slots[index]
        was_idle = not slot.running
        self._admit(slot)
        if not slot.running:
            return None
        self.active += was_idle
        prefill, pairs, ended = self._prefill(slot)
        decoding = slot.decoding if self.engine.mixes_prefill or not prefill else 0
        sampled = decoding + len(ended)
        end_s = self._pass(now_s, decoding, slot.context if decoding else 0, prefill, pairs, sampled)
        again_s = end_s + self.engine.host_s(self.active, sampled)
        self._advance(slot, decoding, ended, end_s)
        self.active -= not slot.running
        return again_s

    def _pass(self, now_s: float, decode: int, context: float, prefill: int, pairs: float, sampled: int) -> float:
        at_s, tokens = now_s, decode + prefill
        for stage, hop in self.path:
            work_s = stage.work_s(decode, context, prefill, pairs, sampled)
            at_s = max(at_s, stage.free_s) + work_s
            stage.free_s = at_s
            stage.busy_s += work_s
            at_s = hop.arrival_s(at_s, tokens)
        return at_s

    def _admit(self, slot: _Slot) -> None:
        mixes = self.engine.mixes_prefill
        budget = self.engine.max_batched_tokens - slot.decoding * mixes - sum(s.to_prefill for s in slot.prefilling)
        while budget > 0 and slot.running < self.most_running:
            if self.preempted:
                sequence = self.preempted[0]
            elif self.queue:
                sequence = _Sequence(*self.queue[0], started=False)
            else:
                return
            if self._held(slot) + self._need(sequence) > self.capacity * (
                1.0 - self.engine.watermark * bool(slot.running)
            ):
                if not self._held(slot) and sequence.prompt + sequence.outputs > self.capacity:
                    raise InvalidInput(
                        f"a request of {sequence.prompt} + {sequence.outputs} tokens",
                        f"its KV cache exceeds the {self.capacity} tokens of a micro-batch on {self.place}",
                        "give that pipeline more memory, or drop the request",
                    )
                return
            (self.preempted if self.preempted else self.queue).popleft()
            if sequence.given_back_at is not None and self.engine.prefix_caching:
                sequence.to_prefill = min(sequence.prompt, max(1, self.grown - sequence.given_back_at))
            slot.order.append(sequence)
            slot.prefilling.append(sequence)
            slot.running += 1
            slot.held += self._holds(sequence, 0)
            budget -= sequence.to_prefill

    def _held(self, slot: _Slot) -> int:
        """Cached tokens that count against the capacity: the micro-batch's own, or everybody's."""
        return slot.held if self.engine.splits_cache else sum(other.held for other in self.slots)

    def _need(self, sequence: _Sequence) -> int:
        """Tokens that must be free to admit it."""
        return sequence.prompt + (sequence.outputs if self.engine.reserves_output else 1)

    def _holds(self, sequence: _Sequence, decoded: int) -> int:
        return sequence.prompt + (sequence.outputs if self.engine.reserves_output else decoded)

    def _prefill(self, slot: _Slot) -> tuple[int, float, list[_Sequence]]:
        """Prompt tokens of this step, (token, attended token) pairs, and the prompts that end in it."""
        budget = max(self.engine.max_batched_tokens - slot.decoding * self.engine.mixes_prefill, 1)
        total, pairs = 0, 0.0
        ended: list[_Sequence] = []
        while slot.prefilling and budget > 0:
            sequence = slot.prefilling[0]
            take = min(sequence.to_prefill, budget)
            pairs += take * (sequence.prompt - sequence.to_prefill + take / 2)
            total += take
            budget -= take
            sequence.to_prefill -= take
            if sequence.to_prefill == 0:
                ended.append(slot.prefilling.popleft())
        return total, pairs, ended

    def _advance(self, slot: _Slot, decoded: int, ended: list[_Sequence], end_s: float) -> None:
        """`decoded` sequences gain a token each, prompts that ended begin to decode, the finished leave."""
        slot.steps += bool(decoded or not slot.decoding)
        slot.context += decoded
        self.grown += decoded
        if not self.engine.reserves_output:
            slot.held += decoded
        for sequence in ended:
            if not sequence.started:
                sequence.started = True
                self.first_token_s += end_s
            sequence.ends_at = slot.steps + sequence.outputs - 1
            slot.decoding += 1
            slot.context += sequence.prompt
            slot.ending.setdefault(sequence.ends_at, []).append(sequence)
        for sequence in slot.ending.pop(slot.steps, ()):
            if not sequence.gone:
                self._leave(slot, sequence)
                self.finished += 1
                self.tokens_out += sequence.outputs
                self.finish_s = max(self.finish_s, end_s)
        while self._held(slot) > self.capacity and slot.running > 1:
            self._preempt(slot)

    def _leave(self, slot: _Slot, sequence: _Sequence) -> None:
        """It stops decoding and gives back its cache."""
        decoded = sequence.decoded(slot.steps)
        slot.decoding -= 1
        slot.context -= sequence.prompt + decoded
        slot.held -= self._holds(sequence, decoded)
        slot.running -= 1
        sequence.gone = True

    def _preempt(self, slot: _Slot) -> None:
        """The latest arrival gives its cache back, to be prefilled again with its output so far.

        With prefix caching, blocks stay until others grow into them: only so many tokens are computed again.
        """
        while slot.order[-1].gone:
            slot.order.pop()
        sequence = slot.order.pop()
        self.preemptions += 1
        given = sequence.decoded(slot.steps) + 1 if sequence.ends_at else 0
        again = _Sequence(sequence.prompt + given, sequence.outputs - given, sequence.started or given > 0)
        if given:
            self._leave(slot, sequence)
            self.tokens_out += given
            again.given_back_at = self.grown
        else:
            slot.prefilling.remove(sequence)
            slot.running -= 1
            slot.held -= self._holds(sequence, 0)
        self.preempted.appendleft(again)

"""The next plan after machines were lost: which pipelines to leave alone and which to build, with what moving costs.

A pipeline that lost nothing serves on from the first second. A new one is silent while its engine starts and its
machines fetch the weights they do not have yet. So what counts is not throughput but requests served until the horizon:

    Σ kept rps·H + Σ new rps·(H − ready)          ready = engine start + most bytes to fetch on one machine / rate

For each set of pipelines left alone, the machines they do not touch are planned anew. All of few sets are tried; of
many, those that give up the pipelines with the least throughput per dollar, and giving up all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from shuntserve.core.planning.plan import Plan, PlannedPipeline, PlannedStage, PlanRequest, plan_fleet
from shuntserve.core.pools import Pool
from shuntserve.errors import InvalidInput

ALL_SETS = 4
"""Up to so many survivors every set of them is tried."""
Machine = tuple[int, int]
"""Pool and number within it."""


@dataclass(frozen=True)
class Moving:
    """What a change costs. The paper measured 65 s of engine start and 62 s of loading a stage's weights."""

    horizon_s: float
    restart_s: float = 65.0
    fetch_bytes_per_s: float = 1e9

    def __post_init__(self) -> None:
        for name in ("horizon_s", "restart_s", "fetch_bytes_per_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InvalidInput(name, f"{value} is not a positive number", "give more than zero")


@dataclass(frozen=True)
class NewPipeline:
    """A pipeline to start: it serves from `ready_s` on, after the slowest machine fetched `fetch_bytes`."""

    pipeline: PlannedPipeline
    ready_s: float
    fetch_bytes: float


@dataclass(frozen=True)
class NextPlan:
    """`served` requests until the horizon; no plan serves more than `bound`. Stages name machines of the old plan's
    numbering; `machines` are those rented from now on.
    """

    kept: tuple[PlannedPipeline, ...]
    new: tuple[NewPipeline, ...]
    machines: tuple[frozenset[int], ...]
    throughput_rps: float
    usd_per_hour: float
    served: float
    bound: float

    @property
    def gap(self) -> float:
        return self.bound / self.served - 1 if self.served > 0 else math.inf


def replan(
    running: Plan,
    lost: Sequence[Machine],
    pools: Sequence[Pool],
    moving: Moving,
    layer_bytes: Callable[[PlannedStage, int, int], float],
    now: Callable[[], float],
) -> NextPlan:
    """The best next plan for `running` without its `lost` machines, out of `pools` as they are now.

    `pools` are the running plan's pools in the same order, possibly with other counts and prices; a count includes the
    machines still running and not the lost ones. `layer_bytes(stage, first, end)` are the bytes of weights that the
    stage's machine holds for layers [first, end). Raises InvalidInput when nothing is left that could serve.
    """
    request = running.request
    if [pool.name for pool in pools] != [pool.name for pool in request.pools]:
        raise InvalidInput("pools", "they are not those of the running plan", "name the same pools in the same order")
    gone = set(lost)
    alive = tuple(p for p in running.pipelines if not any((s.pool, s.machine) in gone for s in p.stages))
    standing = _standing(running, gone)
    held = _held(running, gone)
    best: NextPlan | None = None
    everything = _rest(request, tuple(pools), [0] * len(pools), 0.0)
    fresh = _try(everything[0], now) if everything is not None else None
    bound_rps = fresh.upper_bound_rps if fresh is not None else 0.0  # no fleet serves more at any moment
    for kept in _sets(alive, pools):
        candidate = _with(request, kept, pools, standing, held, moving, layer_bytes, now)
        if candidate is not None and (best is None or candidate.served > best.served):
            best = candidate
    if best is None:
        raise InvalidInput("the machines that are left", "no pipeline fits on them", "add machines to the pools")
    return replace(best, bound=max(best.served, bound_rps * moving.horizon_s))


def _standing(running: Plan, gone: set[Machine]) -> list[list[int]]:
    """Numbers of the machines of each pool that still run."""
    return [
        [machine for machine in range(rented) if (pool, machine) not in gone]
        for pool, rented in enumerate(running.machines)
    ]


def _held(running: Plan, gone: set[Machine]) -> dict[Machine, list[tuple[int, int, int]]]:
    """(tp, first layer, end) that each machine has weights of."""
    held: dict[Machine, list[tuple[int, int, int]]] = {}
    for pipeline in running.pipelines:
        first = 0
        for stage in pipeline.stages:
            if (stage.pool, stage.machine) not in gone:
                held.setdefault((stage.pool, stage.machine), []).append((stage.kind.tp, first, first + stage.layers))
            first += stage.layers
    return held


def _sets(alive: Sequence[PlannedPipeline], pools: Sequence[Pool]) -> Iterator[tuple[PlannedPipeline, ...]]:
    """Sets of pipelines to leave alone."""
    if len(alive) <= ALL_SETS:
        for size in range(len(alive), -1, -1):
            yield from combinations(alive, size)
        return

    def thrift(pipeline: PlannedPipeline) -> float:
        machines = {(stage.pool, stage.machine) for stage in pipeline.stages}
        return pipeline.throughput_rps / sum(pools[pool].usd_per_h for pool, _ in machines)

    ordered = sorted(alive, key=thrift, reverse=True)
    yield tuple(ordered)
    for dropped in (1, 2, 4):
        yield tuple(ordered[:-dropped])
    yield ()


def _with(
    request: PlanRequest,
    kept: tuple[PlannedPipeline, ...],
    pools: Sequence[Pool],
    standing: Sequence[Sequence[int]],
    held: Mapping[Machine, Sequence[tuple[int, int, int]]],
    moving: Moving,
    layer_bytes: Callable[[PlannedStage, int, int], float],
    now: Callable[[], float],
) -> NextPlan | None:
    """Leave these pipelines alone and plan the machines they do not touch."""
    busy: list[set[int]] = [set() for _ in pools]
    for pipeline in kept:
        for stage in pipeline.stages:
            busy[stage.pool].add(stage.machine)
    if any(len(numbers) > pool.count for numbers, pool in zip(busy, pools, strict=True)):
        return None
    spent = sum(len(numbers) * pool.usd_per_h for numbers, pool in zip(busy, pools, strict=True))
    new: list[NewPipeline] = []
    rented = [set(numbers) for numbers in busy]
    rest = _rest(request, pools, [len(numbers) for numbers in busy], spent)
    added = _try(rest[0], now) if rest is not None else None
    if rest is not None and added is not None:
        placed = _placed(added, rest[1], standing, busy, held)
        for pipeline in placed:
            fetch = _fetch_bytes(pipeline, held, layer_bytes)
            new.append(NewPipeline(pipeline, moving.restart_s + fetch / moving.fetch_bytes_per_s, fetch))
            for stage in pipeline.stages:
                rented[stage.pool].add(stage.machine)
    if not kept and not new:
        return None
    served = sum(pipeline.throughput_rps for pipeline in kept) * moving.horizon_s
    served += sum(each.pipeline.throughput_rps * max(0.0, moving.horizon_s - each.ready_s) for each in new)
    rps = sum(p.throughput_rps for p in kept) + sum(each.pipeline.throughput_rps for each in new)
    usd = sum(len(numbers) * pool.usd_per_h for numbers, pool in zip(rented, pools, strict=True))
    return NextPlan(kept, tuple(new), tuple(map(frozenset, rented)), rps, usd, served, served)


def _rest(
    request: PlanRequest, pools: Sequence[Pool], busy: Sequence[int], spent: float
) -> tuple[PlanRequest, tuple[int, ...]] | None:
    """Most throughput from the machines that are not busy, for what is left of the hourly budget and the quotas; and
    the old numbers of its pools.
    """
    left = {
        quota.name: quota.vcpus - sum(busy[pool] * request.vcpus[pool] for pool in quota.pools)
        for quota in request.quotas
    }
    exhausted = {pool for quota in request.quotas if left[quota.name] <= 0 for pool in quota.pools}
    free = tuple(pool for pool, each in enumerate(pools) if each.count > busy[pool] and pool not in exhausted)
    objective = replace(request.objective, name="throughput", requests=None, deadline_s=None, total_usd=None)
    if objective.hourly_usd is not None:
        if objective.hourly_usd <= spent:
            return None
        objective = replace(objective, hourly_usd=objective.hourly_usd - spent)
    if not free:
        return None
    quotas = tuple(
        replace(quota, vcpus=left[quota.name], pools=frozenset(free.index(p) for p in quota.pools if p in free))
        for quota in request.quotas
        if left[quota.name] > 0
    )
    rest = replace(
        request,
        objective=objective,
        pools=tuple(replace(pools[pool], count=pools[pool].count - busy[pool]) for pool in free),
        quotas=quotas,
        vcpus=tuple(request.vcpus[pool] for pool in free) if request.vcpus else (),
        share=1.0,
    )
    return rest, free


def _try(request: PlanRequest, now: Callable[[], float]) -> Plan | None:
    try:
        return plan_fleet(request, now)
    except InvalidInput:
        return None


def _placed(
    added: Plan,
    numbers: Sequence[int],
    standing: Sequence[Sequence[int]],
    busy: Sequence[set[int]],
    held: Mapping[Machine, Sequence[tuple[int, int, int]]],
) -> list[PlannedPipeline]:
    """The new pipelines on the old plan's machines: running ones first, each where it already has most layers."""
    wanted: dict[Machine, list[tuple[int, int, int]]] = {}
    for pipeline in added.pipelines:
        first = 0
        for stage in pipeline.stages:
            key = numbers[stage.pool], stage.machine
            wanted.setdefault(key, []).append((stage.kind.tp, first, first + stage.layers))
            first += stage.layers
    home: dict[Machine, int] = {}
    for pool in sorted({key[0] for key in wanted}):
        here = [machine for machine in standing[pool] if machine not in busy[pool]]
        asking = [key for key in wanted if key[0] == pool]
        pairs = sorted(
            (-_overlap(wanted[key], held.get((pool, machine), ())), key[1], machine)
            for key in asking
            for machine in here
        )
        for _, asker, machine in pairs:
            if (pool, asker) not in home and machine not in {home.get(key) for key in asking}:
                home[pool, asker] = machine
        beyond = max([*standing[pool], *busy[pool], -1]) + 1
        for key in asking:
            if key not in home:
                home[key] = beyond
                beyond += 1
    return [
        replace(
            pipeline,
            stages=tuple(
                replace(stage, pool=numbers[stage.pool], machine=home[numbers[stage.pool], stage.machine])
                for stage in pipeline.stages
            ),
        )
        for pipeline in added.pipelines
    ]


def _overlap(wanted: Sequence[tuple[int, int, int]], held: Sequence[tuple[int, int, int]]) -> int:
    return sum(
        max(0, min(end, there_end) - max(first, there))
        for tp, first, end in wanted
        for there_tp, there, there_end in held
        if tp == there_tp
    )


def _fetch_bytes(
    pipeline: PlannedPipeline,
    held: Mapping[Machine, Sequence[tuple[int, int, int]]],
    layer_bytes: Callable[[PlannedStage, int, int], float],
) -> float:
    """Bytes that the machine with most to fetch has to fetch: layers it has none of at this tensor-parallel size."""
    per_machine: dict[Machine, float] = {}
    first = 0
    for stage in pipeline.stages:
        key, end = (stage.pool, stage.machine), first + stage.layers
        have = [span for span in held.get(key, ()) if span[0] == stage.kind.tp]
        missing = [layer for layer in range(first, end) if not any(a <= layer < b for _, a, b in have)]
        per_machine[key] = per_machine.get(key, 0.0) + sum(layer_bytes(stage, layer, layer + 1) for layer in missing)
        first = end
    return max(per_machine.values())

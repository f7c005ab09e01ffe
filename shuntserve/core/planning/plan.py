"""Plan a fleet: the best set of pipelines within the pools, and a proven bound on how much better any set could be.

Few machines are searched exactly (`lattice`), many by column generation with a proven bound (`fleet_search`). Both
answer with columns; here they become stages on numbered machines, and what is promised is asked of the estimator again
for exactly these stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shuntserve.core.planning.columns import Column, Workshop
from shuntserve.core.planning.fleet_search import Answer, FleetSearch
from shuntserve.core.planning.lattice import Lattice
from shuntserve.core.planning.lattice_plan import lattice_answer
from shuntserve.core.planning.master import Limits, Quota
from shuntserve.core.planning.multisets import how_many
from shuntserve.core.planning.objectives import Objective
from shuntserve.core.planning.packing import packed
from shuntserve.core.planning.relax import no_plan
from shuntserve.core.planning.stage_times import Seat, StageKind, StageTimes
from shuntserve.core.pools import Pool
from shuntserve.errors import InvalidInput

MOST_MULTISETS = 60_000
RECOVERY_S = 150.0
"""Losing a machine silences its pipeline for about this long: the paper's node switch took 121 s (its section 6)."""


@dataclass(frozen=True)
class PlanRequest:
    """What to plan. `share` caps what part of throughput may touch one pool; `vcpus` per pool count towards quotas.

    The answer is within `tolerance` of the best, or what was reached after `time_limit_s`; its gap says which.
    """

    times: StageTimes
    pools: tuple[Pool, ...]
    objective: Objective = field(default_factory=Objective)
    quotas: tuple[Quota, ...] = ()
    vcpus: tuple[float, ...] = ()
    share: float = 1.0
    recovery_s: float = RECOVERY_S
    tolerance: float = 0.01
    time_limit_s: float = 60.0

    def __post_init__(self) -> None:
        if not self.pools:
            raise InvalidInput("pools", "there are none", "give at least one, for instance g6.12xlarge=3")
        if self.vcpus and len(self.vcpus) != len(self.pools):
            raise InvalidInput("vcpus", f"{len(self.vcpus)} given for {len(self.pools)} pools", "give one per pool")
        for name, value, least, most in (
            ("share of one pool", self.share, 0.0, 1.0),
            ("tolerance", self.tolerance, 0.0, 1.0),
            ("time limit", self.time_limit_s, 0.0, math.inf),
        ):
            if not (least < value <= most):
                raise InvalidInput(name, f"{value} is not above {least:g} and at most {most:g}", "give another number")
        if not (math.isfinite(self.recovery_s) and self.recovery_s >= 0):
            raise InvalidInput("recovery time", f"{self.recovery_s} is not a number ≥ 0", "give seconds")

    @property
    def zones(self) -> tuple[tuple[int, ...], ...]:
        """Pools that one pipeline may mix: those of one zone."""
        zones: dict[str, list[int]] = {}
        for number, pool in enumerate(self.pools):
            zones.setdefault(pool.zone, []).append(number)
        return tuple(map(tuple, zones.values()))

    @property
    def limits(self) -> Limits:
        return Limits(quotas=self.quotas, share=self.share)


@dataclass(frozen=True)
class PlannedStage:
    """`layers` layers on `kind.tp` GPUs of machine `machine` (counted from 0) of a pool."""

    pool: int
    machine: int
    kind: StageKind
    layers: int


@dataclass(frozen=True)
class PlannedPipeline:
    """One replica of the model. `throughput_rps` is expected goodput, `steady_rps` what it yields while it is up."""

    stages: tuple[PlannedStage, ...]
    seats: tuple[Seat, ...]
    throughput_rps: float
    steady_rps: float


@dataclass(frozen=True)
class RunnerUp:
    """The best plan without one of the best plan's pipelines."""

    without: int
    throughput_rps: float
    usd_per_hour: float
    merit: float
    pipelines: tuple[tuple[Seat, ...], ...]


@dataclass(frozen=True)
class Plan:
    """`gap`: no plan has a merit above (1 + gap) × this one's; `upper_bound_rps` is the throughput that would take at
    this plan's price. `one_more_rps` is what one more machine of each pool adds at the linear programme's prices.
    """

    request: PlanRequest
    pipelines: tuple[PlannedPipeline, ...]
    machines: tuple[int, ...]
    throughput_rps: float
    usd_per_hour: float
    merit: float
    upper_bound_rps: float
    gap: float
    solve_s: float
    method: str
    one_more_rps: tuple[float, ...]
    runners_up: tuple[RunnerUp, ...]

    @property
    def finish_s(self) -> float:
        return self.request.objective.finish_s(self.throughput_rps)

    @property
    def total_usd(self) -> float:
        return self.request.objective.total(self.usd_per_hour, self.throughput_rps)

    @property
    def pool_shares(self) -> tuple[float, ...]:
        """Share of throughput that would be touched by the loss of each whole pool."""
        touched = [0.0] * len(self.machines)
        for pipeline in self.pipelines:
            for pool in {stage.pool for stage in pipeline.stages}:
                touched[pool] += pipeline.throughput_rps
        return tuple(rps / self.throughput_rps for rps in touched)


def plan_fleet(request: PlanRequest, now: Callable[[], float]) -> Plan:
    """The best plan found. Raises InvalidInput that names the limit to relax, and by how much, when there is none."""
    began = now()
    deadline = began + request.time_limit_s
    answer = solve(request, lambda: now() >= deadline)
    if answer.merit <= 0:
        raise no_plan(request, lambda changed: solve(changed, lambda: now() >= deadline + request.time_limit_s))
    return _plan(request, answer, now() - began)


def solve(request: PlanRequest, out_of_time: Callable[[], bool]) -> Answer:
    """The search behind `plan_fleet`; an answer without merit means that no plan was found."""
    workshop = Workshop(request.times, request.pools, request.recovery_s)
    if not workshop.offers:
        return Answer.nothing(len(request.pools))
    exact = request.share >= 1.0 and Lattice.fits(workshop)
    if exact and how_many(workshop, request.zones) <= MOST_MULTISETS:
        return lattice_answer(
            workshop, request.zones, request.objective, request.quotas, request.vcpus, request.tolerance, out_of_time
        )
    return FleetSearch(
        workshop, request.zones, request.objective, request.limits, request.vcpus, request.tolerance, out_of_time
    ).run()


def _plan(request: PlanRequest, answer: Answer, solve_s: float) -> Plan:
    workshop = Workshop(request.times, request.pools, request.recovery_s)
    # The search counts GPUs; only here it shows whether stages of one pipeline can share machines as it counted on.
    standing = [
        _Standing.of(request, placed_pipelines(workshop, columns, tight))
        for columns in (answer.columns, *answer.alternatives, *(other.columns for other in answer.runners_up))
        for tight in (False, True)
    ]
    best = max(standing, key=lambda each: each.merit)
    pipelines, rps, usd, merit = best.pipelines, best.rps, best.usd, best.merit
    bound = max(answer.bound, merit)
    return Plan(
        request=request,
        pipelines=pipelines,
        machines=best.machines,
        throughput_rps=rps,
        usd_per_hour=usd,
        merit=merit,
        upper_bound_rps=max(rps, request.objective.least_rps(usd, bound)),
        gap=bound / merit - 1 if merit > 0 else math.inf,
        solve_s=solve_s,
        method=answer.method,
        one_more_rps=answer.one_more_rps,
        runners_up=tuple(
            RunnerUp(other.without, other.rps, other.usd_per_h, other.merit, tuple(c.stages for c in other.columns))
            for other in answer.runners_up
        ),
    )


@dataclass(frozen=True)
class _Standing:
    """Pipelines on machines, and what they are worth there."""

    pipelines: tuple[PlannedPipeline, ...]
    machines: tuple[int, ...]
    rps: float
    usd: float
    merit: float

    @classmethod
    def of(cls, request: PlanRequest, pipelines: tuple[PlannedPipeline, ...]) -> _Standing:
        machines = [0] * len(request.pools)
        for pipeline in pipelines:
            for stage in pipeline.stages:
                machines[stage.pool] = max(machines[stage.pool], stage.machine + 1)
        rps = sum(pipeline.throughput_rps for pipeline in pipelines)
        usd = sum(number * pool.usd_per_h for number, pool in zip(machines, request.pools, strict=True))
        return cls(pipelines, tuple(machines), rps, usd, request.objective.merit(usd, rps))


def placed_pipelines(workshop: Workshop, columns: Sequence[Column], tight: bool) -> tuple[PlannedPipeline, ...]:
    """The columns on numbered machines, best first, valued by the estimator as they stand there; see `packed`."""
    result = []
    for placed in packed(workshop, columns, tight):
        kinds = workshop.times.kinds
        stages = tuple(
            PlannedStage(place.pool, place.machine, kinds[seat.kind], seat.layers)
            for seat, place in zip(placed.stages, placed.places, strict=True)
        )
        steady = placed.column.steady_rps if placed.whole else workshop.times.rps(placed.stages)
        machines: dict[int, set[int]] = {}
        for place in placed.places:
            machines.setdefault(place.pool, set()).add(place.machine)
        up = workshop.up_share({pool: len(numbers) for pool, numbers in machines.items()})
        result.append(PlannedPipeline(stages, placed.stages, steady * up, steady))
    return tuple(sorted(result, key=lambda pipeline: -pipeline.throughput_rps))

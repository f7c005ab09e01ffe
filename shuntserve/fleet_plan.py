"""From what a user writes to a plan with a finish time: pools and prices from the catalogue, the planner, a simulation.

The planner counts in steady state. A finite job also fills its pipelines at the start and drains them at the end, when
few sequences are left; the simulation of the job on the planned pipelines says how long, and where that would break the
deadline the planner is asked again with so much less time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from shuntserve.core.catalog import Catalog
from shuntserve.core.engine_profile import EngineProfile, Precision
from shuntserve.core.finite_job import PipelineSpec, job_estimate
from shuntserve.core.model_shape import ModelShape
from shuntserve.core.planning.estimator_times import EstimatorTimes
from shuntserve.core.planning.master import Quota
from shuntserve.core.planning.objectives import Objective
from shuntserve.core.planning.plan import Plan, PlannedPipeline, PlanRequest, plan_fleet
from shuntserve.core.planning.relax import duration
from shuntserve.core.pools import Pool, merged, parse_pool
from shuntserve.core.workload import Workload
from shuntserve.errors import InvalidInput

MOST_SIMULATED = 20_000
FILLS = 8.0
"""A simulated job is this many times what its pipelines hold at once; the rest runs at the steady rate."""
TRIES = 3


@dataclass(frozen=True)
class Wanted:
    """What the user asked for, names resolved."""

    model: ModelShape
    workload: Workload
    engine: EngineProfile
    precision: Precision
    pools: tuple[Pool, ...]
    objective: Objective
    quotas: tuple[Quota, ...] = ()
    share: float = 1.0
    tolerance: float = 0.01
    time_limit_s: float = 60.0
    recovery_s: float = 150.0


@dataclass(frozen=True)
class FleetPlan:
    """A plan, and the finish of its finite job where a number of requests was given.

    `drain_s` is what filling and draining add to requests / throughput; losses of machines are in both.
    """

    wanted: Wanted
    times: EstimatorTimes
    plan: Plan
    drain_s: float
    finish_s: float | None
    total_usd: float | None


def read_pools(catalog: Catalog, texts: Sequence[str]) -> tuple[Pool, ...]:
    """Pools with prices and loss rates from the catalogue where the text has none; spot unless it says otherwise."""
    pools = []
    for text in texts:
        written = parse_pool(text)
        instance = catalog.instance(written.instance_type)
        market = written.market or "spot"
        usd = written.usd_per_h
        if usd is None:
            zone_usd = catalog.spot_usd_per_h(instance.name, written.zone)
            usd = zone_usd if market == "spot" else instance.ondemand_usd_per_h
        if usd is None:
            raise InvalidInput(
                f"pool {text!r}",
                f"the catalogue has no {market} price of {instance.name}",
                f"write {text}@USD_PER_HOUR",
            )
        losses = instance.losses_per_h if market == "spot" else 0.0
        pools.append(Pool(instance.name, written.count, usd, written.zone, market, losses))
    return merged(pools)


def read_quotas(catalog: Catalog, pools: Sequence[Pool], texts: Sequence[str]) -> tuple[Quota, ...]:
    """`CODE=VCPUS` as EC2 names its quotas, for instance L-3819A6DF=192."""
    quotas = []
    codes = [_quota_code(catalog, pool) for pool in pools]
    for text in texts:
        code, _, number = text.partition("=")
        try:
            vcpus = float(number)
        except ValueError:
            vcpus = -1.0
        if not 0 < vcpus < 1e9:
            raise InvalidInput(f"quota {text!r}", "is not CODE=VCPUS", "for instance L-3819A6DF=192")
        within = frozenset(i for i, known in enumerate(codes) if known == code)
        if not within:
            known = ", ".join(sorted({known for known in codes if known})) or "none"
            raise InvalidInput(f"quota {code!r}", "counts none of these pools", f"the quotas of these pools: {known}")
        quotas.append(Quota(code, vcpus, within))
    return tuple(quotas)


def _quota_code(catalog: Catalog, pool: Pool) -> str | None:
    instance = catalog.instance(pool.instance_type)
    return instance.quota_spot if pool.market == "spot" else instance.quota_ondemand


def precision_for(
    catalog: Catalog, pools: Sequence[Pool], shape: ModelShape, engine: EngineProfile, dtype: str, kv_dtype: str
) -> Precision:
    """Types to run with. "auto" is the checkpoint's own type, in fp16 where some GPU of the pools has no bf16."""
    gpus = [catalog.instance(pool.instance_type).gpu for pool in pools]
    weights = shape.weights if dtype == "auto" else dtype
    if dtype == "auto" and weights == "bf16" and any("bf16" not in gpu.weight_dtypes for gpu in gpus):
        weights = "fp16"
    precision = engine.precision(weights, kv_dtype)
    if weights == "fp16" and precision.kv == "bf16":
        precision = engine.precision(weights, "fp16")
    return precision


def plan(catalog: Catalog, wanted: Wanted, now: Callable[[], float]) -> FleetPlan:
    """The best fleet and when it finishes. Raises InvalidInput when no fleet meets the limits."""
    types = [catalog.instance(pool.instance_type) for pool in wanted.pools]
    times = EstimatorTimes(wanted.model, wanted.workload, wanted.engine, wanted.precision, types)
    objective = wanted.objective
    for _ in range(TRIES):
        request = PlanRequest(
            times=times,
            pools=wanted.pools,
            objective=objective,
            quotas=wanted.quotas,
            vcpus=tuple(float(instance.vcpus) for instance in types),
            share=wanted.share,
            recovery_s=wanted.recovery_s,
            tolerance=wanted.tolerance,
            time_limit_s=wanted.time_limit_s,
        )
        found = plan_fleet(request, now)
        answer = _finished(wanted, times, found)
        late_s = (answer.finish_s or 0.0) - (wanted.objective.deadline_s or float("inf"))
        over_usd = (answer.total_usd or 0.0) - (wanted.objective.total_usd or float("inf"))
        if late_s <= 0 and over_usd <= 0:
            return answer
        if objective.deadline_s is not None and wanted.objective.startup_s + answer.drain_s >= objective.deadline_s:
            break
        objective = replace(wanted.objective, startup_s=wanted.objective.startup_s + answer.drain_s * 1.02)
    what = f"deadline {duration(wanted.objective.deadline_s)}" if wanted.objective.deadline_s else "budget"
    raise InvalidInput(
        what,
        f"filling and draining the pipelines takes {duration(answer.drain_s)} beside the work itself",
        f"allow {duration((answer.finish_s or 0.0) * 1.05)} and ${(answer.total_usd or 0.0) * 1.05:.2f}",
    )


def _finished(wanted: Wanted, times: EstimatorTimes, found: Plan) -> FleetPlan:
    requests = wanted.objective.requests
    if requests is None:
        return FleetPlan(wanted, times, found, 0.0, None, None)
    steady = sum(pipeline.steady_rps for pipeline in found.pipelines)
    seats = sum(times.estimate(pipeline.seats).max_concurrency for pipeline in found.pipelines)
    count = max(1, int(min(requests, MOST_SIMULATED, max(500.0, FILLS * seats))))
    job = job_estimate(
        wanted.model,
        [pipeline_spec(times, pipeline) for pipeline in found.pipelines],
        wanted.workload.requests(count),
        wanted.engine,
        wanted.precision,
    )
    drain_s = max(0.0, job.makespan_s - count / steady) * steady / found.throughput_rps
    finish_s = wanted.objective.startup_s + drain_s + requests / found.throughput_rps
    return FleetPlan(wanted, times, found, drain_s, finish_s, finish_s / 3600.0 * found.usd_per_hour)


def pipeline_spec(times: EstimatorTimes, pipeline: PlannedPipeline) -> PipelineSpec:
    """A planned pipeline as the estimator takes it."""
    joined = tuple(seat.joined for seat in pipeline.seats[:-1])
    return PipelineSpec(tuple(times.specs(pipeline.seats)), joined)

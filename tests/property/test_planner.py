"""The planner against trying everything, and properties that any plan and bound must have."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from random import Random

import pytest

from shuntserve.catalog import load_catalog
from shuntserve.core.model_shape import ModelShape
from shuntserve.core.planning import plan as planning
from shuntserve.core.planning.estimator_times import EstimatorTimes
from shuntserve.core.planning.objectives import Objective
from shuntserve.core.planning.plan import Plan, PlanRequest, plan_fleet
from shuntserve.core.pools import Pool
from shuntserve.core.workload import Workload
from shuntserve.errors import InvalidInput
from tests.property.planner_brute import BruteForce

BLOCKS, BLOCK = 20, 26
TOLERANCE = 1e-4
TYPES = ("g5.xlarge", "g6.xlarge", "g6e.xlarge", "g4dn.12xlarge", "g5.12xlarge", "g6.12xlarge", "p5.4xlarge")
MODELS = ("Llama-3.1-70B", "Llama-3.1-405B", "Qwen3-32B", "Mixtral-8x7B")
MOST_GPUS = 5
CATALOG = load_catalog(None)


def shallow(name: str, layers: int) -> ModelShape:
    """A model of the catalogue cut off after so many layers."""
    shape = CATALOG.model(name)
    return replace(shape, name=f"{shape.name}-{layers}", layers=shape.layers[:layers])


def random_pools(random: Random) -> tuple[Pool, ...]:
    """One to three pools of five GPUs together at most."""
    pools: list[Pool] = []
    left = random.choice((3, 4, MOST_GPUS))
    for name in random.sample(TYPES, 3):
        gpus = CATALOG.instance(name).usable_gpus
        if gpus <= left:
            number = random.randint(1, min(3, left // gpus))
            left -= gpus * number
            spot = random.random() < 0.7
            pools.append(
                Pool(
                    name,
                    number,
                    round(random.uniform(0.2, 6.0), 2),
                    zone=random.choice(("", "", "b")),
                    market="spot" if spot else "on-demand",
                    losses_per_h=random.choice((0.0, 0.01, 0.5)) if spot else 0.0,
                )
            )
    return tuple(pools) or random_pools(random)


def random_workload(random: Random) -> Workload:
    if random.random() < 0.5:
        return Workload.fixed(random.choice((64, 763, 4000)), random.choice((16, 232, 1500)))
    pairs = [(random.randint(20, 3000), random.randint(5, 900)) for _ in range(30)]
    return Workload.of(pairs)


def random_times(random: Random, pools: tuple[Pool, ...]) -> EstimatorTimes:
    engine = replace(CATALOG.engine("vllm"), max_seqs=random.choice((4, 16, 64)))
    shape = shallow(random.choice(MODELS), random.randint(2, 6))
    instances = [CATALOG.instance(pool.instance_type) for pool in pools]
    return EstimatorTimes(shape, random_workload(random), engine, engine.precision("fp16", "fp16"), instances)


def random_objective(random: Random, scale_rps: float, most_usd: float) -> Objective:
    """Any objective, with budgets and deadlines from generous to impossible."""
    kind = random.choice(("throughput", "throughput", "cost", "deadline"))
    hourly = random.uniform(0.2, 1.2) * most_usd if random.random() < 0.4 else None
    if kind != "deadline" and random.random() < 0.6:
        return Objective(kind, hourly_usd=hourly)  # type: ignore[arg-type]
    requests = random.uniform(100, 5000)
    deadline_s = 180.0 + requests / scale_rps * random.uniform(0.7, 4.0)
    total = random.uniform(0.3, 3.0) * most_usd * deadline_s / 3600 if random.random() < 0.5 else None
    return Objective(kind, requests=requests, deadline_s=deadline_s, hourly_usd=hourly, total_usd=total)  # type: ignore[arg-type]


def check(plan: Plan) -> None:
    """Layers add up, machines hold their stages, budgets hold, and every number is the estimator's."""
    request = plan.request
    used: dict[tuple[int, int], int] = {}
    for pipeline in plan.pipelines:
        assert sum(stage.layers for stage in pipeline.stages) == request.times.layers
        assert all(stage.layers >= 1 for stage in pipeline.stages)
        assert len({request.pools[stage.pool].zone for stage in pipeline.stages}) == 1
        assert request.times.rps(pipeline.seats) == pytest.approx(pipeline.steady_rps, rel=1e-9)
        for at, stage in enumerate(pipeline.stages):
            assert stage.kind.instance_type == request.pools[stage.pool].instance_type
            key = stage.pool, stage.machine
            used[key] = used.get(key, 0) + stage.kind.tp
            if pipeline.seats[at].joined:
                after = pipeline.stages[at + 1]
                assert (after.pool, after.machine) == key
    for (pool, machine), gpus in used.items():
        assert machine < request.pools[pool].count
        assert gpus <= CATALOG.instance(request.pools[pool].instance_type).usable_gpus
    usd = sum(request.pools[pool].usd_per_h for pool, _ in used)
    assert plan.usd_per_hour == pytest.approx(usd)
    assert plan.throughput_rps == pytest.approx(sum(pipeline.throughput_rps for pipeline in plan.pipelines))
    assert request.objective.allows(plan.usd_per_hour, plan.throughput_rps)
    assert plan.gap >= -1e-12


def planned(times: EstimatorTimes, pools: tuple[Pool, ...], objective: Objective, **options: float) -> Plan | None:
    """The plan, or None when there is none."""
    ticks = count()
    request = PlanRequest(times, pools, objective, tolerance=TOLERANCE, time_limit_s=1e6, **options)  # type: ignore[arg-type]
    try:
        return plan_fleet(request, lambda: next(ticks) * 1e-3)
    except InvalidInput:
        return None


@pytest.mark.parametrize("block", range(BLOCKS))
def test_the_plan_is_the_best_of_all_plans(block: int) -> None:
    """On 520 random small clusters the planner's merit is that of trying everything, and its bound is no lower."""
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        random = Random(seed)
        pools = random_pools(random)
        times = random_times(random, pools)
        brute = BruteForce(times, pools, recovery_s=150.0)
        scale = brute.best_merit(Objective())
        most_usd = sum(pool.count * pool.usd_per_h for pool in pools)
        objective = random_objective(random, max(scale, 1e-3), most_usd)
        best = brute.best_merit(objective)
        plan = planned(times, pools, objective)
        if plan is None:
            assert best == 0.0, f"seed {seed}: a plan of merit {best} exists"
            continue
        check(plan)
        assert plan.merit >= best * (1 - 3 * TOLERANCE), f"seed {seed}: {plan.merit} < {best}"
        assert best <= plan.merit * (1 + plan.gap) * (1 + 1e-6), f"seed {seed}: bound below {best}"


@pytest.mark.parametrize("seed", range(40))
def test_column_generation_never_claims_more_than_it_proves(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way for many machines, forced upon few: valid plans, and a bound that trying everything stays under."""
    monkeypatch.setattr(planning, "MOST_MULTISETS", -1)
    random = Random(1000 + seed)
    pools = random_pools(random)
    times = random_times(random, pools)
    brute = BruteForce(times, pools, recovery_s=150.0)
    for objective in (Objective(), Objective("cost"), Objective(hourly_usd=0.6 * sum(p.usd_per_h for p in pools))):
        best = brute.best_merit(objective)
        plan = planned(times, pools, objective)
        if plan is None:
            continue
        check(plan)
        assert plan.merit <= best * (1 + 1e-6)
        assert best <= plan.merit * (1 + plan.gap) * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_one_more_pool_never_makes_the_plan_worse(seed: int) -> None:
    """Adding a pool loses nothing beyond the gap, whatever the objective."""
    random = Random(2000 + seed)
    pools = random_pools(random)
    while len(pools) < 2:
        pools = random_pools(random)
    times = random_times(random, pools)
    for objective in (Objective(), Objective("cost")):
        fewer, more = planned(times, pools[:-1], objective), planned(times, pools, objective)
        if fewer is not None:
            assert more is not None
            assert more.merit >= fewer.merit * (1 - 3 * TOLERANCE)


@pytest.mark.parametrize("seed", range(12))
def test_no_pool_carries_more_than_its_share(seed: int) -> None:
    """With a cap of correlated loss, no pool touches more of the throughput than the cap, and a bound still stands."""
    random = Random(3000 + seed)
    pools = tuple(
        Pool(name, random.randint(1, 2), random.uniform(0.5, 2.0), zone=str(number % 2))
        for number, name in enumerate(("g5.xlarge", "g6.xlarge", "g6e.xlarge", "g5.xlarge"))
    )
    times = random_times(random, pools)
    share = random.choice((0.4, 0.5, 0.7))
    plan = planned(times, pools, Objective(), share=share)
    if plan is not None:
        check(plan)
        assert max(plan.pool_shares) <= share * (1 + 1e-6)
        assert plan.upper_bound_rps >= plan.throughput_rps

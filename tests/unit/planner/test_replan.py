"""Replanning: what is left alone, what is built, what that costs, and the bound on it."""

from __future__ import annotations

import pytest

from shuntserve.catalog import load_catalog
from shuntserve.core.planning.estimator_times import estimator_times
from shuntserve.core.planning.objectives import Objective
from shuntserve.core.planning.plan import Plan, PlannedStage, PlanRequest, plan_fleet
from shuntserve.core.planning.replan import Moving, NextPlan, replan
from shuntserve.core.pools import Pool
from shuntserve.core.workload import Workload
from shuntserve.errors import InvalidInput

CATALOG = load_catalog(None)
MODEL = CATALOG.model("Qwen3-32B")
POOLS = (Pool("g5.12xlarge", 1, 2.3), Pool("g6.12xlarge", 2, 1.9), Pool("g6e.xlarge", 4, 0.8))


def layer_bytes(stage: PlannedStage, first: int, end: int) -> float:
    """Every layer of the model weighs the same; a stage's machine holds all of its shards."""
    return MODEL.params * 2 / MODEL.num_layers * (end - first)


@pytest.fixture(scope="module")
def running() -> Plan:
    """The fleet before anything is lost."""
    engine = CATALOG.engine("vllm")
    times = estimator_times(
        CATALOG, MODEL, Workload.fixed(763, 232), engine, engine.precision("bf16"), [p.instance_type for p in POOLS]
    )
    request = PlanRequest(times, POOLS, Objective(), tolerance=0.01, time_limit_s=1e6)
    return plan_fleet(request, iter(range(10**9)).__next__)


def after_losing(running: Plan, lost: list[tuple[int, int]], horizon_s: float, **moving: float) -> NextPlan:
    pools = tuple(
        Pool(p.instance_type, p.count - sum(1 for pool, _ in lost if pool == number), p.usd_per_h)
        for number, p in enumerate(POOLS)
        if p.count - sum(1 for pool, _ in lost if pool == number) > 0
    )
    assert len(pools) == len(POOLS), "these tests lose no whole pool"
    return replan(running, lost, pools, Moving(horizon_s, **moving), layer_bytes, iter(range(10**9)).__next__)


def check(next_plan: NextPlan, lost: list[tuple[int, int]]) -> None:
    """No GPU is used twice, no lost machine is used, every pipeline holds the model."""
    used: dict[tuple[int, int], int] = {}
    for pipeline in [*next_plan.kept, *(each.pipeline for each in next_plan.new)]:
        assert sum(stage.layers for stage in pipeline.stages) == MODEL.num_layers
        for stage in pipeline.stages:
            used[stage.pool, stage.machine] = used.get((stage.pool, stage.machine), 0) + stage.kind.tp
            assert (stage.pool, stage.machine) not in lost
    for (pool, machine), gpus in used.items():
        assert gpus <= CATALOG.instance(POOLS[pool].instance_type).usable_gpus
        assert machine in next_plan.machines[pool]
    assert next_plan.served <= next_plan.bound


def test_nothing_lost_and_little_time_changes_nothing(running: Plan) -> None:
    """With no loss, leaving everything alone serves most before a short horizon."""
    next_plan = after_losing(running, [], horizon_s=600)
    check(next_plan, [])
    assert next_plan.kept == running.pipelines
    assert next_plan.served == pytest.approx(running.throughput_rps * 600)


def test_pipelines_on_lost_machines_are_not_kept(running: Plan) -> None:
    """What stood on a lost machine is gone; what did not may stay; the rest of its machines serves again."""
    stage = running.pipelines[0].stages[0]
    lost = [(stage.pool, stage.machine)]
    next_plan = after_losing(running, lost, horizon_s=3600)
    check(next_plan, lost)
    assert all((s.pool, s.machine) not in lost for pipeline in next_plan.kept for s in pipeline.stages)
    survivors = [
        p for p in running.pipelines if (stage.pool, stage.machine) not in {(s.pool, s.machine) for s in p.stages}
    ]
    assert next_plan.served >= sum(p.throughput_rps for p in survivors) * 3600


@pytest.mark.parametrize("horizon_s", [200.0, 1800.0, 36000.0])
def test_it_is_no_worse_than_leaving_alone_and_than_starting_anew(running: Plan, horizon_s: float) -> None:
    """Neither keeping every survivor and nothing else, nor a fresh plan with its start-up, serves more."""
    lost = [(2, 0)]
    next_plan = after_losing(running, lost, horizon_s)
    check(next_plan, lost)
    survivors = [p for p in running.pipelines if all((s.pool, s.machine) not in lost for s in p.stages)]
    assert next_plan.served >= sum(p.throughput_rps for p in survivors) * horizon_s * (1 - 1e-9)
    pools = (POOLS[0], POOLS[1], Pool("g6e.xlarge", 3, 0.8))
    fresh = plan_fleet(
        PlanRequest(running.request.times, pools, Objective(), time_limit_s=1e6), iter(range(10**9)).__next__
    )
    most_fetch_s = MODEL.params * 2 / 1e9
    anew = fresh.throughput_rps * max(0.0, horizon_s - 65.0 - most_fetch_s)
    assert next_plan.served >= anew * (1 - 0.011)
    assert next_plan.served <= fresh.upper_bound_rps * horizon_s


def test_moving_that_takes_longer_than_the_horizon_is_not_done(running: Plan) -> None:
    """A new pipeline that could never serve adds nothing to what is served."""
    lost = [(2, 0)]
    next_plan = after_losing(running, lost, horizon_s=60.0)
    survivors = [p for p in running.pipelines if all((s.pool, s.machine) not in lost for s in p.stages)]
    assert next_plan.served == pytest.approx(sum(p.throughput_rps for p in survivors) * 60.0)


def test_weights_that_a_machine_has_are_not_fetched_again(running: Plan) -> None:
    """What has to be fetched is at most the layers of the stages on one machine, and less where it held them."""
    lost = [(2, 0)]
    next_plan = after_losing(running, lost, horizon_s=36000.0)
    for each in next_plan.new:
        per_machine: dict[tuple[int, int], int] = {}
        for stage in each.pipeline.stages:
            key = stage.pool, stage.machine
            per_machine[key] = per_machine.get(key, 0) + stage.layers
        assert each.fetch_bytes <= MODEL.params * 2 / MODEL.num_layers * max(per_machine.values()) + 1
        assert each.ready_s == pytest.approx(65.0 + each.fetch_bytes / 1e9)


def test_other_pools_than_the_running_ones_are_refused(running: Plan) -> None:
    """Machines are numbered by the running plan's pools."""
    with pytest.raises(InvalidInput, match="not those of the running plan"):
        replan(running, [], POOLS[:1], Moving(600.0), layer_bytes, iter(range(10**9)).__next__)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_costs_of_moving_must_be_numbers(bad: float) -> None:
    """No horizon, start or rate of zero, of less, or of nothing at all."""
    with pytest.raises(InvalidInput):
        Moving(horizon_s=bad)
    with pytest.raises(InvalidInput):
        Moving(600.0, fetch_bytes_per_s=bad)

"""Plans against baselines on clusters that once went wrong, and on machines whose parts must be packed."""

from __future__ import annotations

from random import Random

import pytest

from shuntserve.catalog import load_catalog
from shuntserve.core.planning.baselines.alpaserve import alpaserve
from shuntserve.core.planning.baselines.hexgen import hexgen
from shuntserve.core.planning.estimator_times import estimator_times
from shuntserve.core.planning.objectives import Objective
from shuntserve.core.planning.plan import Plan, PlanRequest, plan_fleet
from shuntserve.core.pools import Pool
from shuntserve.core.workload import Workload
from shuntserve.errors import InvalidInput

CATALOG = load_catalog(None)
FIXED = Workload.fixed(763, 232)


def planned(
    model: str, pools: tuple[Pool, ...], workload: Workload, objective: Objective, time_limit_s: float = 1e6
) -> Plan:
    engine = CATALOG.engine("vllm")
    names = [pool.instance_type for pool in pools]
    times = estimator_times(CATALOG, CATALOG.model(model), workload, engine, engine.precision("bf16"), names)
    request = PlanRequest(times, pools, objective, time_limit_s=time_limit_s)
    return plan_fleet(request, iter(range(10**9)).__next__)


def mixed_lengths() -> Workload:
    random = Random(49)
    return Workload.of([(random.randint(50, 3000), random.randint(5, 900)) for _ in range(50)])


@pytest.mark.parametrize(
    ("model", "pools", "workload", "objective"),
    [
        ("Llama-3.1-70B", (Pool("g6e.12xlarge", 3, 6.0),), mixed_lengths(), "throughput"),
        ("Qwen3-32B", (Pool("g6.48xlarge", 4, 5.0),), FIXED, "cost"),
        ("Llama-3.1-70B", (Pool("p4d.24xlarge", 2, 10.0), Pool("g5.2xlarge", 3, 0.5)), FIXED, "cost"),
        ("Llama-3.1-8B", (Pool("g6.xlarge", 3, 0.4), Pool("g5.xlarge", 2, 0.5, zone="b")), FIXED, "throughput"),
    ],
)
def test_no_baseline_beats_the_bound(model: str, pools: tuple[Pool, ...], workload: Workload, objective: str) -> None:
    """Whatever another planner finds under the same estimator is worth at most (1 + gap) of the plan."""
    goal = Objective(objective)  # type: ignore[arg-type]
    plan = planned(model, pools, workload, goal)
    times = plan.request.times
    others = [alpaserve(times, pools, goal), hexgen(times, pools, Random(1), 24, 20, goal)]
    for other in others:
        assert other.merit(pools, goal) <= plan.merit * (1 + plan.gap) * (1 + 1e-6), other.name


def test_parts_of_machines_are_packed_onto_the_fewest_machines_that_pay() -> None:
    """Pipelines of six GPUs each on machines of eight: cost does not pay for GPUs that stand idle by packing alone."""
    plan = planned("Qwen3-32B", (Pool("g6.48xlarge", 4, 5.0),), FIXED, Objective("cost"))
    used = sum(stage.kind.tp for pipeline in plan.pipelines for stage in pipeline.stages)
    assert sum(plan.machines) == -(-used // 8)
    assert plan.gap < 0.05


def test_a_search_that_ran_out_of_time_does_not_say_that_the_model_does_not_fit() -> None:
    """The error names the time limit, not the memory."""
    pools = (Pool("g6e.48xlarge", 4, 10.0), Pool("p4d.24xlarge", 1, 10.0))
    with pytest.raises(InvalidInput, match="time limit"):
        planned("Qwen3-32B", pools, Workload.fixed(128, 1024), Objective(), time_limit_s=1.0)

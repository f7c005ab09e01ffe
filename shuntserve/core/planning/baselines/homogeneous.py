"""Plain vLLM: for each type on its own one pipeline over all its machines, tensor-parallel in each, layers even."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from shuntserve.core.planning.baselines.lines import Lines
from shuntserve.core.planning.baselines.placement import Placement, best_subset
from shuntserve.core.planning.columns import Place
from shuntserve.core.planning.objectives import Objective
from shuntserve.core.planning.stage_times import StageTimes
from shuntserve.core.pools import Pool


def homogeneous(times: StageTimes, pools: Sequence[Pool], objective: Objective | None = None) -> Placement:
    """One even pipeline per type and zone; a type that cannot hold the model so contributes nothing.

    With more machines than the model has layers only as many are used.
    """
    lines = Lines(times)
    pipelines = []
    for machines in machines_by_type(times, pools):
        kinds = [
            (kind.tp, number)
            for number, kind in enumerate(times.kinds)
            if kind.instance_type == pools[machines[0].pool].instance_type
        ]
        tp, widest = max(kinds)
        each = times.kinds[widest].machine_gpus // tp
        used = machines[: max(1, min(times.layers, times.max_stages) // each)]
        line = lines.even(tuple((widest,) * each for _ in used))
        if line is not None:
            pipelines.append((line.stages, [used[number] for number in line.load_of]))
    placement = Placement.of("homogeneous", times, pipelines)
    return placement if objective is None else best_subset(placement, times, pools, objective)


def machines_by_type(times: StageTimes, pools: Sequence[Pool]) -> list[list[Place]]:
    """The machines of every type that can run the model, each zone for itself."""
    usable = {kind.instance_type for kind in times.kinds}
    groups: dict[tuple[str, str], list[Place]] = defaultdict(list)
    for number, pool in enumerate(pools):
        if pool.instance_type in usable:
            groups[pool.zone, pool.instance_type] += [Place(number, machine) for machine in range(pool.count)]
    return list(groups.values())

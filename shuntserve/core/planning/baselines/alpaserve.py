"""AlpaServe's way: each type is cut into equal groups, all with the same tensor and pipeline parallelism.

Every (groups, TP, PP) is tried; in a group the layers are split evenly or so that the slowest stage is fastest (Li et
al., OSDI 2023, sections 4.1 and 4.2, for one model under saturating load).
"""

from __future__ import annotations

from collections.abc import Sequence

from shuntserve.core.planning.baselines.homogeneous import machines_by_type
from shuntserve.core.planning.baselines.lines import Line, Lines
from shuntserve.core.planning.baselines.placement import Placement, best_subset
from shuntserve.core.planning.columns import Place
from shuntserve.core.planning.objectives import Objective
from shuntserve.core.planning.stage_times import Seat, StageTimes
from shuntserve.core.pools import Pool


def alpaserve(times: StageTimes, pools: Sequence[Pool], objective: Objective | None = None) -> Placement:
    """The best equal groups of every type, and of those the types worth having."""
    goal = objective or Objective()
    lines = Lines(times)
    pipelines: list[tuple[Sequence[Seat], Sequence[Place]]] = []
    for machines in machines_by_type(times, pools):
        best = Placement("alpaserve", (), (), 0.0)
        for number, kind in enumerate(times.kinds):
            if kind.instance_type == pools[machines[0].pool].instance_type:
                each = kind.machine_gpus // kind.tp
                for stages in range(1, min(times.max_stages, times.layers, each * len(machines)) + 1):
                    trial = _equal_groups(times, lines, machines, number, stages, goal, pools)
                    best = max(best, trial, key=lambda p: (p.merit(pools, goal), p.rps))
        pipelines += zip(best.pipelines, best.machines, strict=True)
    return best_subset(Placement.of("alpaserve", times, pipelines), times, pools, goal)


def _equal_groups(
    times: StageTimes,
    lines: Lines,
    machines: Sequence[Place],
    kind: int,
    stages: int,
    objective: Objective,
    pools: Sequence[Pool],
) -> Placement:
    """As many groups of `stages` stages as are worth having, laid out machine after machine."""
    each = times.kinds[kind].machine_gpus // times.kinds[kind].tp
    places = [place for place in machines for _ in range(each)]
    chosen: list[tuple[Line, list[Place]]] = []
    best: tuple[float, float] = (0.0, 0.0)
    answer = Placement("alpaserve", (), (), 0.0)
    for start in range(0, len(places) - stages + 1, stages):
        group = places[start : start + stages]
        used = list(dict.fromkeys(group))
        loads = tuple((kind,) * group.count(place) for place in used)
        able = [line for line in (lines.best(loads), lines.even(loads)) if line is not None]
        if not able:
            break
        line = max(able, key=lambda line: line.rps)
        chosen.append((line, [used[number] for number in line.load_of]))
        trial = Placement(
            "alpaserve",
            tuple(line.stages for line, _ in chosen),
            tuple(tuple(at) for _, at in chosen),
            sum(line.rps for line, _ in chosen),
        )
        score = (trial.merit(pools, objective), trial.rps)
        if score > best:
            best, answer = score, trial
    return answer

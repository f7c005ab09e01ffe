"""What a baseline answers: pipelines, the machines they stand on, and the throughput the estimator gives them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from shuntserve.core.planning.columns import Place
from shuntserve.core.planning.objectives import Objective
from shuntserve.core.planning.stage_times import Seat, StageTimes
from shuntserve.core.pools import Pool
from shuntserve.errors import InvalidInput

FEW_PIPELINES = 12
"""So many pipelines may have all their subsets tried."""


@dataclass(frozen=True)
class Placement:
    """Pipelines and, for each of their stages, its pool and the number of its machine within that pool.

    `rps` is the sum of the estimator's requests/s.
    """

    name: str
    pipelines: tuple[tuple[Seat, ...], ...]
    machines: tuple[tuple[Place, ...], ...]
    rps: float

    @classmethod
    def of(cls, name: str, times: StageTimes, pairs: Iterable[tuple[Sequence[Seat], Sequence[Place]]]) -> Placement:
        """From (stages, places) of each pipeline."""
        listed = [(tuple(stages), tuple(places)) for stages, places in pairs]
        return cls(
            name,
            tuple(stages for stages, _ in listed),
            tuple(places for _, places in listed),
            math.fsum(times.rps(stages) for stages, _ in listed),
        )

    def usd_per_h(self, pools: Sequence[Pool]) -> float:
        """Price of every machine that carries a stage; a machine is paid whole."""
        used = {place for places in self.machines for place in places}
        return math.fsum(pools[place.pool].usd_per_h for place in used)

    def merit(self, pools: Sequence[Pool], objective: Objective) -> float:
        """How good it is under `objective`; 0 for an empty one."""
        return objective.merit(self.usd_per_h(pools), self.rps)


def best_subset(placement: Placement, times: StageTimes, pools: Sequence[Pool], objective: Objective) -> Placement:
    """The pipelines worth keeping: the best of all subsets, or of greedy removals when there are many.

    Returns the placement as it is when no subset has any merit.
    """
    pairs = list(zip(placement.pipelines, placement.machines, strict=True))

    def kept(indices: Iterable[int]) -> Placement:
        return Placement.of(placement.name, times, [pairs[i] for i in indices])

    best = placement
    if len(pairs) <= FEW_PIPELINES:
        subsets = [indices for size in range(1, len(pairs)) for indices in combinations(range(len(pairs)), size)]
        return max([best, *map(kept, subsets)], key=lambda p: p.merit(pools, objective))
    left = list(range(len(pairs)))
    while len(left) > 1:
        trials = [[i for i in left if i != gone] for gone in left]
        left = max(trials, key=lambda trial: kept(trial).merit(pools, objective))
        if kept(left).merit(pools, objective) <= best.merit(pools, objective):
            break
        best = kept(left)
    return best


def by_zone(pools: Sequence[Pool]) -> list[list[int]]:
    """Numbers of the pools of each zone, zones in the order they appear."""
    zones: dict[str, list[int]] = defaultdict(list)
    for number, pool in enumerate(pools):
        zones[pool.zone].append(number)
    return list(zones.values())


def validate(placement: Placement, times: StageTimes, pools: Sequence[Pool]) -> None:
    """Raises `InvalidInput` unless the placement can be run as it stands and yields what it says."""
    if len(placement.pipelines) != len(placement.machines):
        raise _broken(placement, f"{len(placement.pipelines)} pipelines, {len(placement.machines)} lists of machines")
    taken: dict[Place, int] = defaultdict(int)
    for stages, places in zip(placement.pipelines, placement.machines, strict=True):
        _check_pipeline(placement, stages, places, times, pools)
        for seat, place in zip(stages, places, strict=True):
            taken[place] += times.kinds[seat.kind].tp
    gpus = {kind.instance_type: kind.machine_gpus for kind in times.kinds}
    for place, used in taken.items():
        pool = pools[place.pool]
        if not 0 <= place.machine < pool.count:
            raise _broken(placement, f"machine {place.machine} of {pool.count} in pool {pool.name}")
        if used > gpus[pool.instance_type]:
            raise _broken(placement, f"{used} GPUs taken of machine {place.machine} in pool {pool.name}")
    total = math.fsum(times.rps(stages) for stages in placement.pipelines)
    if not math.isclose(total, placement.rps, rel_tol=1e-9, abs_tol=1e-12):
        raise _broken(placement, f"it claims {placement.rps} requests/s, the estimator gives {total}")


def _check_pipeline(
    placement: Placement, stages: Sequence[Seat], places: Sequence[Place], times: StageTimes, pools: Sequence[Pool]
) -> None:
    if not stages or len(stages) != len(places):
        raise _broken(placement, f"a pipeline has {len(stages)} stages on {len(places)} machines")
    if sum(seat.layers for seat in stages) != times.layers or min(seat.layers for seat in stages) < 1:
        raise _broken(placement, f"layers {[seat.layers for seat in stages]} are not {times.layers} in all")
    for seat, place in zip(stages, places, strict=True):
        if not 0 <= place.pool < len(pools):
            raise _broken(placement, f"pool {place.pool} of {len(pools)}")
        if times.kinds[seat.kind].instance_type != pools[place.pool].instance_type:
            raise _broken(placement, f"a stage of {times.kinds[seat.kind]} in pool {pools[place.pool].name}")
    if len({pools[place.pool].zone for place in places}) > 1:
        raise _broken(placement, "a pipeline spans zones")
    together = [a == b for a, b in pairwise(places)] + [False]
    if together != [seat.joined for seat in stages]:
        raise _broken(placement, "`joined` does not say which neighbours share a machine")
    if times.rps(stages) <= 0:
        raise _broken(placement, "a pipeline does not fit its GPUs")


def _broken(placement: Placement, cause: str) -> InvalidInput:
    return InvalidInput(f"placement {placement.name!r}", cause, "report it together with the pools and the model")

"""Every plan of a tiny cluster, tried one by one, for comparison with the planner.

Machines are real machines here: which stage stands where, in which order, with which layers, and which machines are
paid for. Nothing of the planner's is used but the estimator behind `StageTimes.rps`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise, permutations, product

from shuntserve.core.planning.objectives import Objective
from shuntserve.core.planning.stage_times import Seat, StageTimes
from shuntserve.core.pools import Pool

Load = tuple[int, ...]
"""The tensor-parallel sizes of the stages on one machine."""


class BruteForce:
    """All plans over `pools`; `recovery_s` as in the planner's request."""

    def __init__(self, times: StageTimes, pools: Sequence[Pool], recovery_s: float) -> None:
        self.times, self.pools, self.recovery_s = times, pools, recovery_s
        self.machines = [number for number, pool in enumerate(pools) for _ in range(pool.count)]
        kinds = times.kinds
        self.kind_of = {(kind.instance_type, kind.tp): number for number, kind in enumerate(kinds)}
        self.gpus = {kind.instance_type: kind.machine_gpus for kind in kinds}
        self.rps = lru_cache(None)(times.rps)
        self.options = {pool.instance_type: list(self._loads(pool.instance_type)) for pool in pools}
        self._best = lru_cache(None)(self._value)
        self.pipelines = self._pipelines()

    def _loads(self, instance_type: str) -> Iterator[Load]:
        """What one pipeline may have on one machine."""
        gpus = self.gpus.get(instance_type, 0)
        sizes = [tp for name, tp in self.kind_of if name == instance_type]

        def more(left: int, most: int) -> Iterator[Load]:
            yield ()
            for size in sizes:
                if size <= min(left, most):
                    for rest in more(left - size, size):
                        yield (size, *rest)

        yield from more(gpus, gpus)

    def _pipelines(self) -> list[tuple[tuple[int, ...], float]]:
        """(GPUs taken of each machine, goodput) of every pipeline worth having."""
        best: dict[tuple[int, ...], float] = {}
        for loads in product(*(self.options[self.pools[pool].instance_type] for pool in self.machines)):
            zones = {self.pools[pool].zone for pool, load in zip(self.machines, loads, strict=True) if load}
            stages = sum(map(len, loads))
            if len(zones) != 1 or stages > self.times.layers:
                continue
            by_pool = tuple(sorted((pool, load) for pool, load in zip(self.machines, loads, strict=True) if load))
            value = self._best(by_pool)
            taken = tuple(map(sum, loads))
            if value > best.get(taken, 0.0):
                best[taken] = value
        return list(best.items())

    def _value(self, loads: tuple[tuple[int, Load], ...]) -> float:
        """Best goodput of these stages over all their orders and all splits of the layers."""
        stages = [
            (machine, self.kind_of[self.pools[pool].instance_type, tp])
            for machine, (pool, load) in enumerate(loads)
            for tp in load
        ]
        losses_per_h = sum(self.pools[pool].losses_per_h for pool, _ in loads)
        up = 1.0 / (1.0 + losses_per_h / 3600.0 * self.recovery_s)
        splits = list(compositions(self.times.layers, len(stages)))
        best = 0.0
        for order in sorted(set(permutations(stages))):
            joined = [a[0] == b[0] for a, b in pairwise(order)] + [False]
            for split in splits:
                seats = tuple(
                    Seat(kind, layers, join) for (_, kind), layers, join in zip(order, split, joined, strict=True)
                )
                best = max(best, self.rps(seats))
        return best * up

    def best_merit(self, objective: Objective) -> float:
        """The most that any plan on any of the machines is worth."""
        full = tuple(self.gpus.get(self.pools[pool].instance_type, 0) for pool in self.machines)

        @lru_cache(None)
        def most(free: tuple[int, ...]) -> float:
            best = 0.0
            for taken, rps in self.pipelines:
                if all(t <= f for t, f in zip(taken, free, strict=True)):
                    best = max(best, rps + most(tuple(f - t for f, t in zip(free, taken, strict=True))))
            return best

        best = 0.0
        for rented in product((False, True), repeat=len(full)):
            usd = sum(self.pools[pool].usd_per_h for pool, on in zip(self.machines, rented, strict=True) if on)
            rps = most(tuple(gpus if on else 0 for gpus, on in zip(full, rented, strict=True)))
            best = max(best, objective.merit(usd, rps))
        return best


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every way to write `total` as a sum of `parts` positive numbers, in order."""
    if parts == 1:
        yield (total,)
        return
    for first in range(1, total - parts + 2):
        for rest in compositions(total - first, parts - 1):
            yield (first, *rest)

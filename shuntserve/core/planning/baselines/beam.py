"""Greedy beam search: one pipeline after the other, each grown stage by stage, the best per resource kept.

A part of a pipeline is judged by what whole repetitions of it would yield per unit of what they take, as if more of the
same were to follow; a whole one by what it really yields. What stages take is told in three ways, and the best outcome
of them counts: the price of their GPUs, the speed of their GPUs, the price of the machines they are the first to use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from shuntserve.core.planning.baselines.lines import Line, Lines
from shuntserve.core.planning.baselines.placement import Placement, best_subset, by_zone
from shuntserve.core.planning.baselines.yard import Yard
from shuntserve.core.planning.columns import Offer, Place, offers_of
from shuntserve.core.planning.objectives import Objective
from shuntserve.core.planning.stage_times import MIDDLE, Seat, StageTimes
from shuntserve.core.pools import Pool

LONGER = (1.0, 1.25, 1.5, 2.0)
"""Repetitions tried, as multiples of the fewest that hold the model."""
REFERENCE_STAGES = 4
PATIENCE = 4
"""Stages added to a pipeline without finding a better whole before it is let be."""
PAID_WORTH = 0.01
"""What a GPU of a machine that is paid for anyway counts, as a share of its price."""

Part = tuple[int, ...]
"""Numbers of offers, ascending."""


def beam(times: StageTimes, pools: Sequence[Pool], width: int = 8, objective: Objective | None = None) -> Placement:
    """The best outcome of the three valuations; `width` parts are kept for each number of stages."""
    goal = objective or Objective()
    offers = offers_of(times, pools)
    lines = Lines(times)
    placements = []
    by_price, by_speed = _by_price(pools, offers), _by_speed(times, offers)
    for worth, whole_machines in ((by_price, False), (by_speed, False), (by_price, True)):
        search = _Search(times, pools, offers, worth, whole_machines, lines, width)
        pairs = [pair for zone in by_zone(pools) for pair in search.pipelines(zone)]
        placements.append(best_subset(Placement.of("beam", times, pairs), times, pools, goal))
    return max(placements, key=lambda p: (p.merit(pools, goal), p.rps))


def _by_price(pools: Sequence[Pool], offers: Sequence[Offer]) -> list[float]:
    return [pools[offer.pool].usd_per_h * offer.machine_share for offer in offers]


def _by_speed(times: StageTimes, offers: Sequence[Offer]) -> list[float]:
    """GPUs times the layers per second of one GPU of the type, at a tenth of the most seats."""
    stages = min(REFERENCE_STAGES, times.max_stages)
    seats = np.array([max(1.0, times.most_seats(stages) / 10)])
    layer_s = times.regimes(stages, seats, seats).layer_s[0]
    single = {
        kind.instance_type: 1.0 / float(layer_s[number]) for number, kind in enumerate(times.kinds) if kind.tp == 1
    }
    return [offer.gpus * single[times.kinds[offer.kind].instance_type] for offer in offers]


@dataclass(frozen=True)
class _Whole:
    """A pipeline that can be built now."""

    density: float
    line: Line
    places: tuple[Place, ...]


@dataclass
class _Search:
    times: StageTimes
    pools: Sequence[Pool]
    offers: Sequence[Offer]
    worth: Sequence[float]
    whole_machines: bool
    lines: Lines
    width: int
    opened: set[Place] = field(default_factory=set)

    def pipelines(self, zone: Sequence[int]) -> list[tuple[tuple[Seat, ...], tuple[Place, ...]]]:
        """One pipeline after the other until none can be built from what is left of the zone."""
        yard = Yard(self.times, self.pools, zone)
        offers = [number for number, offer in enumerate(self.offers) if offer.pool in zone]
        answer = []
        while (whole := self._next(yard, offers)) is not None:
            self.opened.update(whole.places)
            yard.take(whole.places, [self.times.kinds[seat.kind].tp for seat in whole.line.stages])
            answer.append((whole.line.stages, whole.places))
        return answer

    def _next(self, yard: Yard, offers: Sequence[int]) -> _Whole | None:
        parts: list[Part] = [()]
        best: _Whole | None = None
        for _ in range(min(self.times.max_stages, self.times.layers)):
            if best is not None and len(parts[0]) >= len(best.line.stages) + PATIENCE:
                break
            longer = sorted({tuple(sorted((*part, offer))) for part in parts for offer in offers})
            fitting = [(part, places) for part in longer if (places := self._places(yard, part)) is not None]
            fitting.sort(key=lambda pair: -self._promise(pair[0]))
            for part, places in fitting[: self.width]:
                whole = self._whole(part, places)
                if whole is not None and (best is None or whole.density > best.density):
                    best = whole
            parts = [part for part, _ in fitting[: self.width]]
            if not parts:
                break
        return best

    def _places(self, yard: Yard, part: Part) -> list[Place] | None:
        return yard.fit([(self.offers[number].pool, self.offers[number].gpus) for number in part])

    def _promise(self, part: Part) -> float:
        """Most requests/s per worth over repetitions of the part."""
        kinds = [self.offers[number].kind for number in part]
        few = np.array([1.0])
        longest = min(self.times.max_stages, self.times.layers) // len(kinds)
        room = float(self.times.regimes(max(2, len(kinds)), few, few).room[0, MIDDLE, kinds].sum())
        least = max(1, math.ceil(self.times.layers / room)) if room > 0 else longest + 1
        worth = sum(self.worth[number] for number in part)
        copies = sorted({min(longest, math.ceil(least * more)) for more in LONGER})
        return max(
            (self.lines.density(kinds, number) / (number * worth) for number in copies if number >= least), default=0.0
        )

    def _whole(self, part: Part, places: Sequence[Place]) -> _Whole | None:
        machines = list(dict.fromkeys(places))
        loads = [
            tuple(sorted(self.offers[number].kind for number, at in zip(part, places, strict=True) if at == machine))
            for machine in machines
        ]
        line = self.lines.best(tuple(loads))
        if line is None:
            return None
        worth = sum(self.worth[number] for number in part)
        if self.whole_machines:
            new = sum(self.pools[place.pool].usd_per_h for place in machines if place not in self.opened)
            worth = new + PAID_WORTH * worth
        return _Whole(line.rps / worth, line, tuple(machines[number] for number in line.load_of))

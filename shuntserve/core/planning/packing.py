"""Which machine of a pool each stage goes to: what a pipeline has on one machine stays together where possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shuntserve.core.planning.columns import Column, Place, Workshop
from shuntserve.core.planning.stage_times import Seat


@dataclass(frozen=True)
class Placed:
    """A column on machines of the plan: `places` number the machines of each pool across all pipelines."""

    column: Column
    stages: tuple[Seat, ...]
    places: tuple[Place, ...]

    @property
    def whole(self) -> bool:
        """Whether every stage has the neighbours its column counted on."""
        return self.stages == self.column.stages


def packed(workshop: Workshop, columns: Sequence[Column]) -> tuple[Placed, ...]:
    """Machines for all stages, as few as their GPUs allow.

    First whole loads (what a pipeline has on one machine) are packed, largest first, each where it fits best. If that
    takes more machines than counting GPUs says, loads are taken apart: parts of powers of two always pack.
    """
    where: dict[tuple[int, int, int], int] = {}  # (column, pool, its machine) -> machine
    apart: dict[int, dict[tuple[int, int], int]] = {}  # pool -> (column, stage) -> machine
    for pool in sorted({pool for column in columns for pool in column.pools}):
        loads: dict[tuple[int, int], int] = {}
        for number, column in enumerate(columns):
            for seat, place in zip(column.stages, column.places, strict=True):
                if place.pool == pool:
                    key = (number, place.machine)
                    loads[key] = loads.get(key, 0) + workshop.times.kinds[seat.kind].tp
        gpus = next(row.per_machine for row in workshop.slots if row.pool == pool and row.block == 1)
        whole = _best_fit(loads, gpus)
        if max(whole.values()) < workshop.pools[pool].count:
            where |= {(number, pool, machine): at for (number, machine), at in whole.items()}
        else:
            apart[pool] = _by_parts(workshop, columns, pool, gpus)
    return tuple(_placed(number, column, where, apart) for number, column in enumerate(columns))


def _best_fit(loads: dict[tuple[int, int], int], gpus: int) -> dict[tuple[int, int], int]:
    free: list[int] = []
    result = {}
    for key, load in sorted(loads.items(), key=lambda item: (-item[1], item[0])):
        fitting = [(left, at) for at, left in enumerate(free) if left >= load]
        if fitting:
            at = min(fitting)[1]
        else:
            at = len(free)
            free.append(gpus)
        free[at] -= load
        result[key] = at
    return result


def _by_parts(workshop: Workshop, columns: Sequence[Column], pool: int, gpus: int) -> dict[tuple[int, int], int]:
    """Largest parts first, those of one pipeline one after the other."""
    parts = [
        (-workshop.times.kinds[seat.kind].tp, number, place.machine, stage)
        for number, column in enumerate(columns)
        for stage, (seat, place) in enumerate(zip(column.stages, column.places, strict=True))
        if place.pool == pool
    ]
    free: list[int] = []
    result = {}
    for minus_tp, number, _, stage in sorted(parts):
        at = next((at for at, left in enumerate(free) if left >= -minus_tp), len(free))
        if at == len(free):
            free.append(gpus)
        free[at] += minus_tp
        result[number, stage] = at
    return result


def _placed(
    number: int,
    column: Column,
    where: dict[tuple[int, int, int], int],
    apart: dict[int, dict[tuple[int, int], int]],
) -> Placed:
    places = []
    for stage, place in enumerate(column.places):
        if place.pool in apart:
            places.append(Place(place.pool, apart[place.pool][number, stage]))
        else:
            places.append(Place(place.pool, where[number, place.pool, place.machine]))
    stages = tuple(
        Seat(seat.kind, seat.layers, at + 1 < len(places) and places[at + 1] == places[at])
        for at, seat in enumerate(column.stages)
    )
    return Placed(column, stages, tuple(places))

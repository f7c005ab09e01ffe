"""Which machine of a pool each stage goes to: what a pipeline has on one machine stays together where possible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shuntserve.core.planning.columns import Column, Place, Workshop
from shuntserve.core.planning.stage_times import Seat

Loads = dict[tuple[int, int], list[tuple[int, int]]]
"""(column, its machine) -> (GPUs, stage) of each stage there."""


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


def packed(workshop: Workshop, columns: Sequence[Column], tight: bool) -> tuple[Placed, ...]:
    """Machines for all stages.

    What a pipeline has on one machine stays together where the pool has enough machines for that. If it has not, or
    with `tight`, only the fewest machines that hold the GPUs are used, and what does not fit into one is taken apart:
    parts of powers of two always pack.
    """
    where: dict[tuple[int, int, int], int] = {}  # (column, pool, its machine) -> machine
    apart: dict[int, dict[tuple[int, int], int]] = {}  # pool -> (column, stage) -> machine
    for pool in sorted({pool for column in columns for pool in column.pools}):
        loads: Loads = {}
        for number, column in enumerate(columns):
            for stage, (seat, place) in enumerate(zip(column.stages, column.places, strict=True)):
                if place.pool == pool:
                    loads.setdefault((number, place.machine), []).append((workshop.times.kinds[seat.kind].tp, stage))
        gpus = next(row.per_machine for row in workshop.slots if row.pool == pool and row.block == 1)
        whole = _best_fit({key: sum(tp for tp, _ in parts) for key, parts in loads.items()}, gpus)
        used, fewest = max(whole.values()) + 1, _fewest(workshop, columns, pool)
        if used <= (fewest if tight else workshop.pools[pool].count):
            where |= {(number, pool, machine): at for (number, machine), at in whole.items()}
        else:
            apart[pool] = _tight(loads, gpus, fewest) or _by_parts(loads, gpus)
    return tuple(_placed(number, column, where, apart) for number, column in enumerate(columns))


def _fewest(workshop: Workshop, columns: Sequence[Column], pool: int) -> int:
    """Machines that hold all stages of a pool, by counting GPUs in blocks."""
    total: dict[int, float] = {}
    for column in columns:
        for row, blocks in column.usage:
            if workshop.slots[row].pool == pool:
                total[row] = total.get(row, 0.0) + blocks
    return max(math.ceil(blocks / workshop.slots[row].per_machine - 1e-9) for row, blocks in total.items())


def _tight(loads: Loads, gpus: int, machines: int) -> dict[tuple[int, int], int] | None:
    """Whole loads first, largest first, then the parts of those that fit nowhere; None when some part finds no room."""
    free = [gpus] * machines
    result: dict[tuple[int, int], int] = {}
    left: list[tuple[int, int, int]] = []
    for (number, _), parts in sorted(loads.items(), key=lambda item: (-sum(tp for tp, _ in item[1]), item[0])):
        load = sum(tp for tp, _ in parts)
        fitting = [(room, at) for at, room in enumerate(free) if room >= load]
        if fitting:
            at = min(fitting)[1]
            free[at] -= load
            result |= {(number, stage): at for _, stage in parts}
        else:
            left += [(-tp, number, stage) for tp, stage in parts]
    for minus_tp, number, stage in sorted(left):
        fitting = [(room, at) for at, room in enumerate(free) if room >= -minus_tp]
        if not fitting:
            return None
        at = min(fitting)[1]
        free[at] += minus_tp
        result[number, stage] = at
    return result


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


def _by_parts(loads: Loads, gpus: int) -> dict[tuple[int, int], int]:
    """Largest parts first, those of one pipeline one after the other."""
    parts = [(-tp, number, machine, stage) for (number, machine), load in loads.items() for tp, stage in load]
    free: list[int] = []
    result = {}
    for minus_tp, number, _, stage in sorted(parts):
        at = next((at for at, room in enumerate(free) if room >= -minus_tp), len(free))
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

"""Which GPUs of which machines are still free."""

from __future__ import annotations

from collections.abc import Sequence

from shuntserve.core.planning.columns import Place
from shuntserve.core.planning.stage_times import StageTimes
from shuntserve.core.pools import Pool


class Yard:
    """Free GPUs on every machine of some pools; machines of types that cannot run the model have none."""

    def __init__(self, times: StageTimes, pools: Sequence[Pool], numbers: Sequence[int]) -> None:
        gpus = {kind.instance_type: kind.machine_gpus for kind in times.kinds}
        self.free = {
            Place(number, machine): gpus.get(pools[number].instance_type, 0)
            for number in numbers
            for machine in range(pools[number].count)
        }

    def fit(self, parts: Sequence[tuple[int, int]]) -> list[Place] | None:
        """A machine for each (pool, GPUs), the fullest that still has room, largest parts first; None if one has none.

        Takes nothing.
        """
        free = dict(self.free)
        answer: dict[int, Place] = {}
        for index in sorted(range(len(parts)), key=lambda i: (-parts[i][1], i)):
            pool, gpus = parts[index]
            able = [place for place, left in free.items() if place.pool == pool and left >= gpus]
            if not able:
                return None
            place = min(able, key=lambda place: (free[place], place.machine))
            free[place] -= gpus
            answer[index] = place
        return [answer[index] for index in range(len(parts))]

    def take(self, places: Sequence[Place], gpus: Sequence[int]) -> None:
        """Mark GPUs as used."""
        for place, number in zip(places, gpus, strict=True):
            self.free[place] -= number

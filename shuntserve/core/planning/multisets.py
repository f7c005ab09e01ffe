"""All multisets of stages that a small set of pools allows, each with an optimistic bound on its requests/s.

The bound leaves out which stage leads and which closes and takes the least hops any order could pay; ranges of seats
are cut fine enough that what is lost is a few per cent, and only multisets that could matter are looked at closer
(`best_run`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shuntserve.core.planning.columns import Counts, Workshop
from shuntserve.core.planning.covering import ROUNDING
from shuntserve.core.planning.stage_times import FIRST, LAST, MIDDLE, ONLY, Regimes

RANGE_RATIO = 1.1
LOWEST_SHARE = 0.03
"""Seats under this share of the most are one range: such pipelines are rarely worth a second look."""
ROUNDS = 9


def parts_of(gpus: int, sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Every way to take parts of the given sizes out of `gpus` GPUs."""
    ranges = [range(gpus // size + 1) for size in sizes]
    return [take for take in itertools.product(*ranges) if sum(n * s for n, s in zip(take, sizes, strict=True)) <= gpus]


def how_many(workshop: Workshop, zones: Sequence[Sequence[int]]) -> float:
    """Number of multisets over pools of one zone at a time, or infinity when it is hopeless to count."""
    total = 0.0
    for zone in zones:
        ways = 1.0
        for pool in zone:
            sizes = [offer.gpus for offer in workshop.offers if offer.pool == pool]
            gpus = workshop.pools[pool].count * _machine_gpus(workshop, pool)
            estimate = math.prod(gpus / size + 1 for size in sizes)
            if estimate > 1e6:
                return math.inf
            ways *= len(parts_of(gpus, sizes)) if sizes else 1
        total += ways - 1
    return total


def _machine_gpus(workshop: Workshop, pool: int) -> int:
    return next(row.per_machine for row in workshop.slots if row.pool == pool and row.block == 1)


@dataclass(frozen=True)
class Multisets:
    """[m, offers] stages of each multiset and [m] bounds on its goodput."""

    counts: np.ndarray
    bound_rps: np.ndarray

    def counts_of(self, row: int) -> Counts:
        """One multiset as the workshop takes it."""
        taken = self.counts[row]
        return tuple((int(offer), int(taken[offer])) for offer in np.flatnonzero(taken))


def enumerate_multisets(workshop: Workshop, zones: Sequence[Sequence[int]]) -> Multisets:
    """All multisets within each zone that could hold the model."""
    blocks = []
    for zone in zones:
        per_pool, columns = [], []
        for pool in zone:
            offers = [i for i, offer in enumerate(workshop.offers) if offer.pool == pool]
            if offers:
                sizes = [workshop.offers[i].gpus for i in offers]
                gpus = workshop.pools[pool].count * _machine_gpus(workshop, pool)
                per_pool.append(np.array(parts_of(gpus, sizes), dtype=np.int16))
                columns.append(offers)
        if not per_pool:
            continue
        index = np.indices([len(ways) for ways in per_pool]).reshape(len(per_pool), -1)
        block = np.zeros((index.shape[1], len(workshop.offers)), dtype=np.int16)
        for ways, offers, rows in zip(per_pool, columns, index, strict=True):
            block[:, offers] = ways[rows]
        blocks.append(block)
    counts = np.concatenate(blocks) if blocks else np.zeros((0, len(workshop.offers)), dtype=np.int16)
    stages = counts.sum(axis=1)
    counts = counts[(stages > 0) & (stages <= workshop.times.max_stages)]
    bound = bounds(workshop, counts)
    keep = bound > 0
    return Multisets(counts[keep], bound[keep])


def bounds(
    workshop: Workshop, counts: np.ndarray, ratio: float = RANGE_RATIO, floors: np.ndarray | None = None
) -> np.ndarray:
    """Optimistic goodput of each row of [m, offers] stages, or its floor where that is more.

    0 where the model cannot fit. Ranges of seats span a factor `ratio`; the finer, the tighter.
    """
    result = np.zeros(len(counts)) if floors is None else np.maximum(floors, 0.0)
    stages = counts.sum(axis=1)
    for number in np.unique(stages):
        rows = np.flatnonzero(stages == number)
        bounding = _Bounding(workshop, int(number), counts[rows].astype(np.float64))
        result[rows] = bounding.run(ratio, result[rows])
    return result


class _Bounding:
    """Bounds for multisets of equally many stages."""

    def __init__(self, workshop: Workshop, stages: int, counts: np.ndarray) -> None:
        self.workshop, self.stages, self.counts = workshop, stages, counts
        self.kinds = np.array([offer.kind for offer in workshop.offers], dtype=np.intp)
        self.pool_of = np.array([offer.pool for offer in workshop.offers], dtype=np.intp)
        self.pools = sorted({int(pool) for pool in self.pool_of})
        self.machines = self._machines()
        losses = np.array([workshop.pools[pool].losses_per_h for pool in self.pools])
        self.up = 1.0 / (1.0 + self.machines @ losses / 3600.0 * workshop.recovery_s)

    def _machines(self) -> np.ndarray:
        """[m, pools] fewest machines."""
        result = np.zeros((len(self.counts), len(self.pools)))
        gpus = np.array([offer.gpus for offer in self.workshop.offers])
        for slot in self.workshop.slots:
            mine = (self.pool_of == slot.pool) & (gpus >= slot.block)
            if mine.any():
                blocks = self.counts[:, mine] @ (gpus[mine] // slot.block)
                at = self.pools.index(slot.pool)
                result[:, at] = np.maximum(result[:, at], np.ceil(blocks / slot.per_machine - 1e-9))
        return result

    def run(self, ratio: float, floors: np.ndarray) -> np.ndarray:
        times, stages = self.workshop.times, self.stages
        top = times.most_seats(stages)
        steps = max(1, math.ceil(math.log(1 / LOWEST_SHARE) / math.log(ratio)))
        edges = np.concatenate(([1.0], top * np.geomspace(LOWEST_SHARE, 1.0, steps + 1)))
        edges = np.unique(np.maximum(edges, 1.0))
        regimes = times.regimes(stages, edges[:-1], edges[1:])
        best = floors / self.up
        for i in range(len(edges) - 2, -1, -1):
            self._improve(regimes, i, best)
        return best * self.up

    def _improve(self, regimes: Regimes, i: int, best: np.ndarray) -> None:
        """Raise `best` where range i allows more: only periods that would beat it are looked at."""
        kinds, stages, counts = self.kinds, self.stages, self.counts
        order = np.argsort(regimes.pace_layer_s[i, kinds], kind="stable")
        kinds = kinds[order]
        position = ONLY if stages == 1 else MIDDLE
        fixed, layer = regimes.fixed_s[i, position, kinds], regimes.layer_s[i, kinds]
        paced = (regimes.pace_fixed_s[i, position, kinds], regimes.pace_layer_s[i, kinds])
        room = regimes.room[i, position, kinds].astype(np.float64)
        counts = counts[:, order]
        used = counts > 0
        fits = ~np.any(used & (room < 1), axis=1) & (counts @ room >= self.workshop.times.layers)
        rows = np.flatnonzero(fits)
        if not len(rows):
            return
        counts, used = counts[rows], used[rows]
        lost, floor = self._lost(regimes, i, rows, used, kinds)
        floor = np.maximum(floor, np.where(used, fixed + layer, 0.0).max(axis=1))
        work, in_flight = regimes.work[i], float(regimes.in_flight[i])
        target = best[rows]
        above = np.where(target > 0, work / np.maximum(target, 1e-300), np.inf)
        full = np.maximum(
            np.where(used, fixed + layer * room, 0.0).max(axis=1),
            (lost + counts @ (paced[0] + paced[1] * room)) / in_flight,
        )
        above = np.minimum(above, np.maximum(full, floor) * (1 + 1e-9))
        alive = (above > floor) & self._possible(above, counts, used, fixed, layer, paced, room, lost, in_flight)
        rows, counts, used, lost = rows[alive], counts[alive], used[alive], lost[alive]
        above, below = above[alive], floor[alive].copy()
        for _ in range(ROUNDS):
            if not len(rows):
                return
            middle = np.sqrt(below * above)
            able = self._possible(middle, counts, used, fixed, layer, paced, room, lost, in_flight)
            above = np.where(able, middle, above)
            below = np.where(able, below, middle)
        best[rows] = np.maximum(best[rows], work / below)

    def _possible(
        self,
        period: np.ndarray,
        counts: np.ndarray,
        used: np.ndarray,
        fixed: np.ndarray,
        layer: np.ndarray,
        paced: tuple[np.ndarray, np.ndarray],
        room: np.ndarray,
        lost: np.ndarray,
        in_flight: float,
    ) -> np.ndarray:
        """Whether the layers fit within the period, fastest stages filled first."""
        capacity = np.minimum(room, np.floor((period[:, None] - fixed) / layer + ROUNDING))
        able = ~np.any(used & (capacity < 1), axis=1)
        spare = counts * np.maximum(capacity - 1, 0)
        filled = np.cumsum(spare, axis=1)
        left = self.workshop.times.layers - self.stages
        able &= filled[:, -1] >= left
        taken = np.clip(left - (filled - spare), 0.0, spare)
        work = counts @ (paced[0] + paced[1]) + taken @ paced[1]
        return able & (work + lost <= in_flight * period * (1 + 1e-12))

    def _lost(
        self, regimes: Regimes, i: int, rows: np.ndarray, used: np.ndarray, kinds: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Least seconds a round loses to hops, host and the ends; least period that host and longest hop allow."""
        machines = self.machines[rows]
        one = {pool: int(self.kinds[np.flatnonzero(self.pool_of == pool)[0]]) for pool in self.pools}
        remote = np.array([regimes.remote_hop_s[i, one[pool]] for pool in self.pools])
        paced = np.array([regimes.pace_remote_hop_s[i, one[pool]] for pool in self.pools])
        present = machines > 0
        smallest = np.where(present, paced, np.inf).min(axis=1)
        total = machines.sum(axis=1)
        lost = machines @ paced - smallest
        local = np.array([regimes.pace_local_hop_s[i, self.kinds[self.pool_of == pool]].min() for pool in self.pools])
        per_pool = np.stack([self.counts[rows][:, self.pool_of == pool].sum(axis=1) for pool in self.pools], axis=1)
        lost = lost + (per_pool - machines) @ local + regimes.round_s[i]
        if self.stages > 1:
            for position in (FIRST, LAST):
                extra = regimes.pace_fixed_s[i, position, kinds] - regimes.pace_fixed_s[i, MIDDLE, kinds]
                lost = lost + np.where(used, extra, np.inf).min(axis=1)
        longest = np.where(total > 1, np.where(present, remote, 0.0).max(axis=1), 0.0)
        return lost, longest

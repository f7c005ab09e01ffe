"""Exact planning when the pools are few: every amount of GPUs taken from every pool is a point of a small lattice.

What a set of pipelines yields depends on the pools only through the GPUs it takes, so the most throughput within every
point is an unbounded knapsack over the lattice, and every objective, budget and quota can be read off it. The search is
optimistic: multisets stand at their bounds until the best plan on paper is made of multisets whose value is known. A
multiset that could not reach the best known plan, whatever stood beside it, is never looked at closer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shuntserve.core.planning.columns import Column, Workshop
from shuntserve.core.planning.multisets import Multisets

MAX_POINTS = 4000
BATCH = 64


@dataclass(frozen=True)
class Frontier:
    """The most throughput within every point, and the pipeline that comes first in a best set (−1: none)."""

    rps: np.ndarray
    first: np.ndarray


@dataclass(frozen=True)
class Judge:
    """An objective over points: [points] merit for given throughputs, and the least throughput for a given merit."""

    merit: Callable[[np.ndarray], np.ndarray]
    least_rps: Callable[[float], np.ndarray]


@dataclass(frozen=True)
class Found:
    """The best plan, the merit no plan can exceed, and every column that was looked at."""

    columns: tuple[Column, ...]
    merit: float
    bound: float
    known: tuple[Column, ...]


class Lattice:
    """Points are GPUs taken per pool; one axis per pool."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self.gpus = [
            next(row.per_machine for row in workshop.slots if row.pool == p) for p in range(len(workshop.pools))
        ]
        self.shape = tuple(pool.count * gpus + 1 for pool, gpus in zip(workshop.pools, self.gpus, strict=True))
        self.size = math.prod(self.shape)

    @staticmethod
    def fits(workshop: Workshop) -> bool:
        """Whether the lattice is small, and parts pack into machines by counting GPUs alone."""
        return Lattice(workshop).size <= MAX_POINTS and all(slot.block == 1 for slot in workshop.slots)

    def taken(self, counts: np.ndarray) -> np.ndarray:
        """The point that each multiset takes."""
        use = np.zeros((len(self.workshop.offers), len(self.shape)), dtype=np.int64)
        for number, offer in enumerate(self.workshop.offers):
            use[number, offer.pool] = offer.gpus
        return np.ravel_multi_index(tuple((counts.astype(np.int64) @ use).T), self.shape)

    def machines(self) -> np.ndarray:
        """[points, pools] fewest machines that hold each point."""
        points = np.stack(np.unravel_index(np.arange(self.size), self.shape), axis=1)
        return -(-points // np.array(self.gpus))

    def frontier(self, value: np.ndarray) -> Frontier:
        """Best sets of pipelines, one that takes point v being worth `value[v]`."""
        best, first = np.zeros(self.shape), np.full(self.shape, -1, dtype=np.int64)
        each, flat = value.reshape(self.shape), np.arange(self.size).reshape(self.shape)
        for point in np.ndindex(*self.shape):
            window = tuple(slice(0, p + 1) for p in point)
            mirror = tuple(slice(None, None, -1) for _ in point)
            total = best[window][mirror] + each[window]
            total.flat[0] = 0.0  # a pipeline that takes nothing is none
            top = int(total.argmax())
            gain, choice = float(total.flat[top]), int(flat[window].flat[top])
            if gain <= 0:
                choice = -1
            for axis, p in enumerate(point):  # or one GPU stays idle
                if p:
                    below = tuple(q - (a == axis) for a, q in enumerate(point))
                    if best[below] >= gain:
                        gain, choice = float(best[below]), int(first[below])
            best[point], first[point] = gain, choice
        return Frontier(best.reshape(-1), first.reshape(-1))

    def members(self, frontier: Frontier, point: int) -> list[int]:
        """Points taken by the pipelines of a best set within `point`."""
        members = []
        while frontier.first[point] >= 0:
            step = int(frontier.first[point])
            members.append(step)
            rest = np.array(np.unravel_index(point, self.shape)) - np.array(np.unravel_index(step, self.shape))
            point = int(np.ravel_multi_index(tuple(rest), self.shape))
        return members

    def needed(self, least_rps: np.ndarray, frontier: Frontier) -> np.ndarray:
        """What a pipeline taking v must yield so that, with the best beside it, some point reaches `least_rps`."""
        need = np.full(self.shape, np.inf)
        least, rest = least_rps.reshape(self.shape), frontier.rps.reshape(self.shape)
        for point in np.ndindex(*self.shape):
            if np.isfinite(least[point]):
                window = tuple(slice(0, p + 1) for p in point)
                mirror = tuple(slice(None, None, -1) for _ in point)
                np.minimum(need[window], least[point] - rest[window][mirror], out=need[window])
        return need.reshape(-1)


class LatticeSearch:
    """The search proper; `run` may stop early, the bound then says how far it got."""

    def __init__(self, workshop: Workshop, multisets: Multisets, judge: Judge) -> None:
        self.workshop, self.multisets, self.judge = workshop, multisets, judge
        self.lattice = Lattice(workshop)
        self.taken = self.lattice.taken(multisets.counts)
        self.bound = multisets.bound_rps.copy()
        self.value = np.zeros(len(self.bound))
        self.open = np.ones(len(self.bound), dtype=bool)
        self.columns: dict[int, Column] = {}

    def run(self, gap: float, out_of_time: Callable[[], bool]) -> Found:
        """The best plan within `gap`."""
        while True:
            hopes, plans = self._frontier(self.bound), self._frontier(self.value)
            hope, merit = self.judge.merit(hopes.rps), self.judge.merit(plans.rps)
            best, bound = float(merit.max()), float(hope.max())
            if bound <= best * (1 + gap) or out_of_time():
                break
            need = self.lattice.needed(self.judge.least_rps(best), hopes)[self.taken]
            rows = np.flatnonzero(self.open & (self.bound > need * (1 + 1e-9)))
            if not len(rows):
                bound = best
                break
            if best <= 0:
                rows = self._rows_of(self.lattice.members(hopes, int(hope.argmax())))
            else:
                rows = rows[np.argsort(need[rows] - self.bound[rows])][:BATCH]
            self._look(rows, need[rows])
        point = int(merit.argmax())
        chosen = self._rows_of(self.lattice.members(plans, point), self.value) if best > 0 else np.zeros(0, np.intp)
        return Found(tuple(self.columns[int(row)] for row in chosen), best, bound, tuple(self.columns.values()))

    def without(self, column: Column) -> tuple[list[Column], int] | None:
        """The best plan on what is known that has no such pipeline, and its point."""
        values = self.value.copy()
        for row, known in self.columns.items():
            if known.counts == column.counts:
                values[row] = 0.0
        plans = self._frontier(values)
        merit = self.judge.merit(plans.rps)
        point = int(merit.argmax())
        if merit[point] <= 0:
            return None
        rows = self._rows_of(self.lattice.members(plans, point), values)
        return [self.columns[int(row)] for row in rows], point

    def _frontier(self, values: np.ndarray) -> Frontier:
        each = np.zeros(self.lattice.size)
        np.maximum.at(each, self.taken, values)
        return self.lattice.frontier(each)

    def _rows_of(self, points: list[int], values: np.ndarray | None = None) -> np.ndarray:
        """The best multiset of each point."""
        values = self.bound if values is None else values
        rows = []
        for point in points:
            here = np.flatnonzero(self.taken == point)
            rows.append(here[values[here].argmax()])
        return np.array(rows, dtype=np.intp)

    def _look(self, rows: np.ndarray, need: np.ndarray) -> None:
        """Find out what these multisets are really worth, or that it is less than needed."""
        rows, first = np.unique(rows, return_index=True)
        floors = [max(0.0, float(least)) if np.isfinite(least) else 0.0 for least in need[first]]
        counts = [self.multisets.counts_of(int(row)) for row in rows]
        for row, floor, column in zip(rows, floors, self.workshop.columns(counts, floors), strict=True):
            self.open[row] = False
            self.bound[row] = min(float(self.bound[row]), column.bound_rps if column else floor)
            if column is not None:
                self.value[row] = column.rps
                self.columns[int(row)] = column

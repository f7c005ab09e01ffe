"""Planning when machines are many: column generation bounds what any fleet could do, integer programmes find fleets.

Whatever a fleet spends an hour (P) and serves a second (R), the linear programme of `max R − λ·P` proves a *cut*
R ≤ λ·P + B for all fleets at once, and prices of whole machines prove R ≤ λ·P. A few such cuts wrap the frontier of R
over P from outside; every merit grows with R and falls with P, so its best value along the wrap bounds it (Kelley's
method). At the prices where the wrap promises most, an integer programme over the known pipelines looks for a fleet,
and both go on until they meet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from shuntserve.core.planning.column_generation import Pond, Relaxation
from shuntserve.core.planning.columns import Column, Workshop
from shuntserve.core.planning.master import FleetLine, Goal, Limits, LpDuals, Master, MasterData, MipSolution
from shuntserve.core.planning.objectives import Objective

WRAP_POINTS = 4000
MOST_CUTS = 8
MOST_REFINEMENTS = 4
MIP_SHARE_S = 15.0
"""Longest that one integer programme may take."""


@dataclass(frozen=True)
class Other:
    """A fleet without the pipeline numbered `without`."""

    without: int
    columns: tuple[Column, ...]
    rps: float
    usd_per_h: float
    merit: float


@dataclass(frozen=True)
class Answer:
    """Columns of the best fleet found, its merit, and what no fleet's merit exceeds.

    `alternatives` are fleets that may turn out better once their stages stand on machines.
    """

    columns: tuple[Column, ...]
    merit: float
    bound: float
    method: str
    one_more_rps: tuple[float, ...]
    runners_up: tuple[Other, ...] = ()
    alternatives: tuple[tuple[Column, ...], ...] = ()

    @classmethod
    def nothing(cls, pools: int, bound: float = 0.0) -> Answer:
        """No fleet was found."""
        return cls((), 0.0, bound, "none", (0.0,) * pools)


@dataclass(frozen=True)
class Cut:
    """R ≤ slope·P + offset holds for every fleet."""

    slope: float
    offset: float


@dataclass(frozen=True)
class _Fleet:
    x: np.ndarray
    columns: tuple[Column, ...]
    rps: float
    usd_per_h: float
    merit: float


class FleetSearch:
    """One search; `run` stops within `tolerance` or when time is up."""

    def __init__(
        self,
        workshop: Workshop,
        zones: Sequence[Sequence[int]],
        objective: Objective,
        limits: Limits,
        vcpus: Sequence[float],
        tolerance: float,
        out_of_time: Callable[[], bool],
    ) -> None:
        self.workshop, self.zones, self.objective = workshop, zones, objective
        self.tolerance, self.out_of_time = tolerance, out_of_time
        lines = [line for line in objective.lines() if line.name == "hourly budget"]
        self.limits = limits.plus(*lines)
        self.data = MasterData(workshop.pools, workshop.slots, tuple(vcpus) or (0.0,) * len(workshop.pools))
        self.pond = Pond(workshop)
        self.cuts: list[Cut] = []
        self.best: _Fleet | None = None
        self.margin_rps = (0.0,) * len(workshop.pools)
        most = sum(pool.count * pool.usd_per_h for pool in workshop.pools)
        self.most_usd = min(most, objective.hourly_usd or math.inf)
        self.least_usd = min(pool.usd_per_h for pool in workshop.pools)

    def run(self) -> Answer:
        self.pond.seed()
        if not self.pond.columns or self.least_usd > self.most_usd:
            return Answer.nothing(len(self.workshop.pools))
        self._cut(0.0)
        if self._priced():
            self._cut_through_zero()
        while True:
            self._refine()
            bound, usd, rps = self._wrap()
            merit = self.best.merit if self.best else 0.0
            if bound <= merit * (1 + self.tolerance) or self.out_of_time() or len(self.cuts) >= MOST_CUTS:
                break
            slope = self._next_slope(usd, rps)
            if slope is None:
                break
            self._cut(slope)
        if self.best is None:
            return Answer.nothing(len(self.workshop.pools), bound)
        return Answer(
            columns=self.best.columns,
            merit=self.best.merit,
            bound=bound,
            method=f"column generation over {len(self.pond.columns)} pipelines, {len(self.cuts)} cuts",
            one_more_rps=self.margin_rps,
            runners_up=self._others(),
        )

    # --- bounds ---

    def _priced(self) -> bool:
        """Whether dollars matter beyond the hourly budget."""
        return self.objective.name != "throughput" or self.objective.total_usd is not None

    def _cut(self, slope: float) -> None:
        relaxation = Relaxation(self.pond, self.zones, self.data, Goal(1.0, slope), self.limits)
        relaxed = relaxation.solve(self.tolerance / 2, self.out_of_time)
        if not relaxed.feasible:
            return
        self.cuts.append(Cut(slope, relaxed.bound))
        if slope == 0.0:
            margin = relaxed.duals.machine_margin(self.data, Goal(1.0, 0.0), self.limits)
            self.margin_rps = tuple(map(float, margin))

    def _cut_through_zero(self) -> None:
        """R ≤ θ·λ·P, slots priced at λ times what their machines cost."""
        relaxation = Relaxation(self.pond, self.zones, self.data, Goal(1.0, 0.0), Limits())
        slope = self._best_ratio()
        while True:
            slot = np.zeros(len(self.data.rows))
            for number, row in enumerate(self.data.rows):
                if row.block == 1:
                    slot[number] = slope * self.data.pools[row.pool].usd_per_h / row.per_machine
            free = LpDuals(slot, np.zeros(0), np.zeros(0), np.zeros(len(self.data.pools)))
            quote = relaxation.quote(free, 1 + self.tolerance / 2, self.out_of_time)
            before = slope
            self.pond.look(quote.counts)
            slope = self._best_ratio()
            if slope <= before * (1 + 1e-6) or self.out_of_time():
                self.cuts.append(Cut(before * quote.theta, 0.0))
                return

    def _best_ratio(self) -> float:
        """Most requests/s per $/h of any known pipeline that pays for its GPUs only."""
        best = 0.0
        for column in self.pond.columns.values():
            usd = sum(
                amount * self.data.pools[self.data.rows[row].pool].usd_per_h / self.data.rows[row].per_machine
                for row, amount in column.usage
                if self.data.rows[row].block == 1
            )
            best = max(best, column.rps / usd)
        return best

    def _wrap(self) -> tuple[float, float, float]:
        """Most merit along the wrap, and (P, R) where it is."""
        usd = np.geomspace(self.least_usd, max(self.most_usd, self.least_usd) * (1 + 1e-9), WRAP_POINTS)
        rps = np.min([cut.slope * usd + cut.offset for cut in self.cuts], axis=0)
        merits = [self.objective.merit(low, float(r)) for low, r in zip(usd[:-1], rps[1:], strict=True)]
        at = int(np.argmax(merits))
        return float(merits[at]), float(usd[at + 1]), float(rps[at + 1])

    def _next_slope(self, usd: float, rps: float) -> float | None:
        """λ of the next cut: along the line of equal merit, kept apart from the slopes known on either side."""
        if not self._priced():
            return None
        slopes = sorted(cut.slope for cut in self.cuts if cut.offset or cut.slope)
        slopes = sorted({0.0, *slopes})
        wanted = self._exchange(usd, rps)
        below = max((slope for slope in slopes if slope <= wanted), default=0.0)
        above = min((slope for slope in slopes if slope > wanted), default=wanted * 2)
        if min(wanted - below, above - wanted) < 0.05 * (above - below):
            wanted = (below + above) / 2
        return wanted if above - below > 1e-3 * above else None

    def _exchange(self, usd: float, rps: float) -> float:
        """How many requests/s are worth one more $/h."""
        if self.objective.name == "cost":
            return rps / usd
        requests = self.objective.requests or 0.0
        return (self.objective.startup_s + requests / rps) * rps * rps / (usd * requests) if requests else rps / usd

    # --- fleets ---

    def _refine(self) -> None:
        """Integer programmes along lines of equal merit, from the best fleet known."""
        columns = list(self.pond.columns.values())
        for _ in range(MOST_REFINEMENTS if self._priced() else 1):
            slope, rps = 0.0, self._wrap()[2]
            if self.best is not None:
                slope, rps = self._slope_at_best(), self.best.rps
            fleet = self._fleet(columns, slope, rps)
            better = fleet is not None and fleet.merit > (self.best.merit * (1 + 1e-9) if self.best else 0.0)
            if better:
                self.best = fleet
            if self.out_of_time() or not better:
                return

    def _slope_at_best(self) -> float:
        return self._exchange(self.best.usd_per_h, self.best.rps) if self.best and self._priced() else 0.0

    def _master(self, columns: Sequence[Column], slope: float, rps: float) -> Master:
        lines = [line for line in self.objective.lines() if line.name != "hourly budget"]
        if self.objective.total_usd is not None:
            by_rps, limit = self.objective.tangent(self.objective.total_usd, rps)
            lines.append(FleetLine("total budget", -by_rps, 1.0, limit))
        master = Master(self.data, Goal(1.0, slope), self.limits.plus(*lines))
        for column in columns:
            master.add(column.master)
        return master

    def _fleet(
        self, columns: Sequence[Column], slope: float, rps: float, upper: np.ndarray | None = None
    ) -> _Fleet | None:
        master = self._master(columns, slope, rps)
        start = None
        if self.best is not None and upper is None:
            start = np.zeros(len(columns))
            start[: len(self.best.x)] = self.best.x
        found = master.solve_mip(MIP_SHARE_S, self.tolerance / 10, start, upper)
        return None if not len(found.x) else self._taken(columns, found)

    def _taken(self, columns: Sequence[Column], found: MipSolution) -> _Fleet:
        chosen = tuple(columns[i] for i in np.flatnonzero(found.x) for _ in range(int(found.x[i])))
        rps = sum(column.rps for column in chosen)
        usd = float(sum(n * pool.usd_per_h for n, pool in zip(found.machines, self.data.pools, strict=True)))
        return _Fleet(found.x, chosen, rps, usd, self.objective.merit(usd, rps))

    def _others(self) -> tuple[Other, ...]:
        """The best fleet without the most valuable kind of pipeline."""
        if self.best is None or self.out_of_time():
            return ()
        columns = list(self.pond.columns.values())
        value = np.array([column.rps for column in columns[: len(self.best.x)]]) * self.best.x
        most = int(value.argmax())
        upper = np.full(len(columns), 1e6)
        upper[most] = 0.0
        fleet = self._fleet(columns, self._slope_at_best(), self.best.rps, upper)
        if fleet is None or fleet.merit <= 0:
            return ()
        without = next(i for i, column in enumerate(self.best.columns) if column.counts == columns[most].counts)
        return (Other(without, fleet.columns, fleet.rps, fleet.usd_per_h, fleet.merit),)


def one_more(workshop: Workshop, known: Sequence[Column]) -> tuple[float, ...]:
    """Requests/s that one more machine of each pool is worth in the linear programme over these pipelines."""
    data = MasterData(workshop.pools, workshop.slots, (0.0,) * len(workshop.pools))
    master = Master(data, Goal(1.0, 0.0), Limits())
    for column in known:
        master.add(column.master)
    duals = master.solve_lp().duals
    return tuple(float(gain) for gain in duals.machine_margin(data, Goal(1.0, 0.0), Limits()))

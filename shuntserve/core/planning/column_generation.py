"""Column generation: the linear programme over all pipelines, solved by asking the pricing problem for better ones.

Every round yields a proven bound on the goal of any plan, whole or fractional; the least of them counts. Few and loose
rounds come first, the last ones certify.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from shuntserve.core.planning.columns import Column, Counts, Workshop
from shuntserve.core.planning.master import Goal, Limits, LpDuals, LpSolution, Master, MasterData
from shuntserve.core.planning.pricing import Pricer, Prices, Quote
from shuntserve.core.planning.stage_times import MIDDLE, ONLY

TARGETS = (1.06, 1.02)
"""θ at which a round's pricing stops cutting; the last one is the caller's."""
FEW_CELLS, MOST_CELLS = 6_000, 400_000
WANTED = 50
STEP = 0.5
"""How far from the centre towards the latest duals pipelines are priced."""
PRIOR_STAGES, PRIOR_SEATS = (2, 4, 8, 16), (8, 32, 64, 128, 256)
MOST_TWINS = 6
LEAST_PRICE = 0.2
"""Least slot price as a share of the mean one, in tolerances: what a pool with more than enough charges for its stages.
It lifts the bound by less than this share and spares the search pipelines of next to nothing for next to nothing.
"""


@dataclass(frozen=True)
class Relaxed:
    """Outcome of the linear programme: `bound` on the goal of every plan, and the duals it was proven with."""

    feasible: bool
    objective: float
    bound: float
    theta: float
    duals: LpDuals
    rounds: int
    cells: int


@dataclass
class Pond:
    """All columns known so far, shared by every master over the same pools."""

    workshop: Workshop
    columns: dict[Counts, Column] = field(default_factory=dict)
    pricer: Pricer = field(init=False)

    def __post_init__(self) -> None:
        self.pricer = Pricer(self.workshop)

    def look(self, wanted: Iterable[Counts], floors: Sequence[float] | None = None) -> list[Column]:
        """Build what is not known yet; the new columns worth more than their floors."""
        wanted = list(wanted)
        asked = [
            (counts, floor)
            for counts, floor in dict(zip(wanted, floors or [0.0] * len(wanted), strict=True)).items()
            if counts not in self.columns
        ]
        built = self.workshop.columns([counts for counts, _ in asked], [floor for _, floor in asked])
        new = [column for column in built if column is not None]
        self.columns.update((column.counts, column) for column in new)
        return new

    def seed(self) -> None:
        """Pipelines of one kind of stage, as short as memory allows and somewhat longer."""
        times = self.workshop.times
        few = np.array([1.0])
        wanted: list[Counts] = []
        for number, offer in enumerate(self.workshop.offers):
            alone = int(times.regimes(1, few, few).room[0, ONLY, offer.kind])
            room = int(times.regimes(2, few, few).room[0, MIDDLE, offer.kind])
            if room < 1:
                continue
            shortest = 1 if alone >= times.layers else max(2, math.ceil(times.layers / room))
            lengths = {shortest, shortest + 1, math.ceil(shortest * 1.4), shortest * 2}
            wanted += [((number, stages),) for stages in sorted(lengths) if stages <= times.max_stages]
        self.look(wanted)


class Relaxation:
    """The linear programme of one goal under given limits, over a pond that it fills."""

    def __init__(
        self, pond: Pond, zones: Sequence[Sequence[int]], data: MasterData, goal: Goal, limits: Limits
    ) -> None:
        self.pond, self.zones, self.data, self.goal, self.limits = pond, zones, data, goal, limits
        self.pricer = pond.pricer
        self.master = Master(data, goal, limits)
        self.numbers: list[Column] = []
        for column in pond.columns.values():
            self._add(column)

    def _add(self, column: Column) -> None:
        self.numbers.append(column)
        self.master.add(column.master)

    def solve(self, tolerance: float, out_of_time: Callable[[], bool]) -> Relaxed:
        """Generate columns until the bound is within `tolerance` of the linear programme, or time is up.

        Dual prices swing widely while few pipelines are known. So pipelines are priced between the latest duals and
        those of the best bound so far; when that finds nothing new, at the latest duals themselves.
        """
        best, theta, rounds, cells = math.inf, math.inf, 0, 0
        targets = [*(target for target in TARGETS if target > 1 + 2 * tolerance), 1 + tolerance]
        centre, step = self._prior(), STEP
        while True:
            lp = self.master.solve_lp()
            if not lp.feasible:
                return Relaxed(False, -math.inf, -math.inf, math.inf, lp.duals, rounds, cells)
            least = self._least_price(lp, LEAST_PRICE * tolerance)
            latest = lp.duals.lifted(least)
            if centre is None:
                step = 1.0
            priced = (
                latest if centre is None or step == 1 else self._scaled(centre, lp).towards(latest, step).lifted(least)
            )
            last = len(targets) == 1 and step == 1
            most_cells = MOST_CELLS if last else FEW_CELLS
            prices = self._prices(priced)
            quote = self.pricer.quote(self.zones, prices, targets[0], most_cells, WANTED, out_of_time)
            rounds, cells = rounds + 1, cells + quote.cells
            bound = priced.bound(self.data, self.goal, self.limits, quote.theta)
            if bound < best:
                best, theta, centre = bound, quote.theta, priced
            new = self._grow(quote.counts, latest)
            if best <= lp.objective * (1 + tolerance) or out_of_time() or (not new and last):
                return Relaxed(True, lp.objective, best, theta, centre or latest, rounds, cells)
            settled = quote.theta <= targets[0] * 1.001
            if len(targets) > 1 and (settled or (not new and step == 1)):
                targets = targets[1:]
            step = STEP if new else 1.0

    def _prior(self) -> LpDuals | None:
        """What a GPU of each pool could be worth: requests/s of balanced stages on it. None where dollars count."""
        if self.goal.per_usd or self.limits.lines or self.limits.share < 1:
            return None
        times = self.pond.workshop.times
        stages, each = (grid.ravel() for grid in np.meshgrid(PRIOR_STAGES, PRIOR_SEATS))
        regimes = times.regimes(stages, (stages * each).astype(float), (stages * each).astype(float))
        value = regimes.work[:, None] / (times.layers * regimes.layer_s * np.array([kind.tp for kind in times.kinds]))
        per_gpu = np.where(regimes.room[:, MIDDLE] >= 1, value, 0.0).max(axis=0)
        slot = np.zeros(len(self.data.rows))
        for number, row in enumerate(self.data.rows):
            name = self.data.pools[row.pool].instance_type
            if row.block == 1:
                slot[number] = max(
                    (per_gpu[k] for k, kind in enumerate(times.kinds) if kind.instance_type == name), default=0.0
                )
        quotas = np.zeros(len(self.limits.quotas))
        return LpDuals(slot, np.zeros(0), quotas, np.zeros(len(self.data.pools)))

    def _scaled(self, duals: LpDuals, lp: LpSolution) -> LpDuals:
        """The same, worth as much over all pools as the linear programme's optimum where only slots are priced."""
        if duals.line.any() or duals.quota.any() or self.goal.per_usd:
            return duals
        worth = duals.bound(self.data, self.goal, self.limits, 1.0)
        return replace(duals, slot=duals.slot * (lp.objective / worth)) if worth > 0 and lp.objective > 0 else duals

    def quote(self, duals: LpDuals, target: float, out_of_time: Callable[[], bool]) -> Quote:
        """Price pipelines at these duals, to the end."""
        return self.pricer.quote(self.zones, self._prices(duals), target, MOST_CELLS, WANTED, out_of_time)

    def _least_price(self, lp: LpSolution, share: float) -> float:
        total = sum(
            pool.count * row.per_machine
            for row in self.data.rows
            if row.block == 1
            for pool in [self.data.pools[row.pool]]
        )
        worth = float(lp.duals.slot @ np.array([r.per_machine * self.data.pools[r.pool].count for r in self.data.rows]))
        return max(share * worth / total, 1e-12)

    def _prices(self, duals: LpDuals) -> Prices:
        workshop = self.pond.workshop
        stage = np.zeros(len(workshop.offers))
        for number, offer in enumerate(workshop.offers):
            for price, row in zip(duals.slot, workshop.slots, strict=True):
                if row.pool == offer.pool and offer.gpus >= row.block:
                    stage[number] += price * (offer.gpus // row.block)
        return Prices(stage, duals.rps_weight(self.goal, self.limits), duals.share)

    def _twins(self, counts: Counts, duals: LpDuals) -> Iterator[Counts]:
        """The multiset itself, and the same with every offer replaced by its first, second … cheapest equal.

        The pricing problem names only the cheapest of offers that do the same.
        """
        workshop = self.pond.workshop
        yield counts
        prices = self._prices(duals).stage
        equals = []
        for number, _ in counts:
            offer = workshop.offers[number]
            zone = workshop.pools[offer.pool].zone
            same = [
                other
                for other, each in enumerate(workshop.offers)
                if workshop.pools[each.pool].zone == zone
                and workshop.times.kinds[each.kind].tp == offer.gpus
                and each.machine_share == offer.machine_share
                and workshop.times.no_slower(each.kind, offer.kind)
            ]
            equals.append(sorted(same, key=lambda other: prices[other]))
        for rank in range(min(MOST_TWINS, max(map(len, equals)))):
            taken: dict[int, int] = {}
            for same, (_, stages) in zip(equals, counts, strict=True):
                other = same[rank % len(same)]
                taken[other] = taken.get(other, 0) + stages
            if all(stages <= workshop.offers[other].most for other, stages in taken.items()):
                yield tuple(sorted(taken.items()))

    def _grow(self, wanted: Sequence[Counts], duals: LpDuals) -> int:
        """Add those of the wanted multisets that are worth more than they cost; how many."""
        every = dict.fromkeys(twin for counts in wanted for twin in self._twins(counts, duals))
        fresh = [counts for counts in every if counts not in self.pond.columns]
        weight = duals.rps_weight(self.goal, self.limits)
        floors = []
        for counts in fresh:
            cost = sum(duals.slot[row] * amount for row, amount in self.pond.workshop.usage(counts))
            pools = {self.pond.workshop.offers[offer].pool for offer, _ in counts}
            worth = weight - float(sum(duals.share[pool] for pool in pools))
            floors.append(cost / worth * (1 - 0.02) if worth > 0 else math.inf)
        new = self.pond.look(fresh, floors)
        for column in new:
            self._add(column)
        return sum(
            column.rps * (weight - float(sum(duals.share[pool] for pool in column.pools)))
            > (1 + 1e-6) * sum(duals.slot[row] * amount for row, amount in column.usage)
            for column in new
        )

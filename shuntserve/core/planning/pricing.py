"""The pricing problem: is any pipeline worth more than its stages cost at the dual prices, and by what factor at most?

Pipelines fall into *cells*: a number of stages S, a range of seats C and a range of requests/s. A pipeline of the cell
has at most the period that its least requests/s allow, so every stage kind holds at most so many layers, and the
cheapest pipeline is a dynamic programme over stages and layers; none is worth more than the cell's most requests/s.
Cells whose best worth stays under their cost are closed for good; the others are cut in two until they are small.

Two things tie the stages of a pipeline together. Stage times and hops of a round must fit in q periods: that enters
with a multiplier ν ≥ 0 (Lagrange), any value of which leaves a lower bound on cost. And worth falls with the risk of
the machines as 1/(1 + risk), which is convex and so lies under its chord, and the chord charges each stage its part.
A second multiplier, on layers, gives a bound without the programme that closes most cells.

All of this is optimistic, never pessimistic: `Quote.theta` times the dual prices covers the worth of every pipeline.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from shuntserve.core.planning.columns import Counts, Workshop
from shuntserve.core.planning.covering import ROUNDING
from shuntserve.core.planning.stage_times import FIRST, LAST, MIDDLE, ONLY, Regimes, StageTimes

SEAT_RATIO = 1.5
RATE_RATIO = 1.25
SMALLEST_RATE = 1.001
"""Cells of one step between marks and narrower than this in requests/s are cut no further."""
QUICK_SHARES = (0.0, 0.5, 0.9, 1.2)
FIRST_STEPS = (0.5, 0.9, 1.2)
NEXT_STEPS = (0.0, 0.15, -0.15)
"""Values of ν tried, as shares of the pipeline's worth per second of a round; the next ones from the parent's best."""
LAYER_STEPS = 9
BATCH = 1024
BEAM = 384
REMEMBERED = 40
PROGRAMME_RATE = 1.07
PROGRAMME_SEATS = 1.2
"""Cells up to this wide go through the programme; wider ones only through the quick bound."""
MOST_CHARGED = 6


@dataclass(frozen=True)
class Prices:
    """What the master charges: `stage` per offer, more than nothing; one request/s is worth `rps` less `touch` of each
    pool touched.
    """

    stage: np.ndarray
    rps: float
    touch: np.ndarray


@dataclass(frozen=True)
class Entry:
    """One way to buy a stage that no other way of the same kind beats in both price and risk."""

    offer: int
    kind: int
    price: float
    risk: float
    share: float


@dataclass(frozen=True)
class Market:
    """Entries that one pipeline may mix, and what a request/s of such a pipeline is worth at most.

    `mixed` means that stages come from two pools or more.
    """

    entries: tuple[Entry, ...]
    worth: float
    most_stages: int
    mixed: bool


def markets(workshop: Workshop, zones: Sequence[Sequence[int]], prices: Prices) -> Iterator[Market]:
    """Markets that together hold every pipeline.

    Each pool is one by itself: there a pipeline may do without network hops. Pipelines over several pools of a zone
    make a market for each set of charged pools that they may touch, and for each speed of network that their fastest
    machine can have, since a pipeline pays the hop of every machine but that one.
    """
    mark = workshop.times.seat_marks(2)[-1:]
    hop_s = workshop.times.regimes(2, mark, mark).remote_hop_s[0]
    longest = workshop.times.max_stages
    for zone in zones:
        for pool in zone:
            worth = prices.rps - float(prices.touch[pool])
            entries = _entries(workshop, {pool}, prices)
            if worth > 0 and entries:
                yield Market(entries, worth, min(longest, _gpus(workshop, {pool})), False)
        if len(zone) < 2:
            continue
        charged = sorted((pool for pool in zone if prices.touch[pool] > 1e-12), key=lambda pool: -prices.touch[pool])
        charged = charged[:MOST_CHARGED]  # charging fewer pools is optimistic, so the bound holds
        for mask in range(1 << len(charged)):
            touched = {pool for bit, pool in enumerate(charged) if mask >> bit & 1}
            allowed = {pool for pool in zone if pool not in charged or pool in touched}
            worth = prices.rps - sum(float(prices.touch[pool]) for pool in touched)
            entries = _entries(workshop, allowed, prices)
            if worth > 0 and len(allowed) > 1 and entries:
                for fastest in np.unique([hop_s[entry.kind] for entry in entries]):
                    slower = tuple(entry for entry in entries if hop_s[entry.kind] >= fastest)
                    yield Market(slower, worth, min(longest, _gpus(workshop, allowed)), True)


def _gpus(workshop: Workshop, pools: set[int]) -> int:
    """GPUs of the pools together: no pipeline has more stages."""
    most = dict.fromkeys(pools, 0)
    for offer in workshop.offers:
        if offer.pool in most:
            most[offer.pool] = max(most[offer.pool], offer.most)
    return sum(most.values())


def _entries(workshop: Workshop, pools: set[int], prices: Prices) -> tuple[Entry, ...]:
    by_kind: dict[int, list[Entry]] = {}
    for number, offer in enumerate(workshop.offers):
        if offer.pool in pools:
            risk = workshop.pools[offer.pool].losses_per_h / 3600.0 * workshop.recovery_s * offer.machine_share
            entry = Entry(number, offer.kind, float(prices.stage[number]), risk, offer.machine_share)
            by_kind.setdefault(offer.kind, []).append(entry)
    kept: list[Entry] = []
    for entries in by_kind.values():
        least_risk = math.inf
        for entry in sorted(entries, key=lambda entry: (entry.price, entry.risk)):
            if entry.risk < least_risk:
                kept.append(entry)
                least_risk = entry.risk
    return tuple(kept)


@dataclass
class Cells:
    """Cells of one number of stages in one market, [n] each.

    Seats lie between two marks, requests/s between `slow` and `fast`; `nu` is the best multiplier so far (< 0: none
    yet) and `ratio` the θ that covers the cell.
    """

    low: np.ndarray
    high: np.ndarray
    slow: np.ndarray
    fast: np.ndarray
    nu: np.ndarray
    ratio: np.ndarray

    def take(self, rows: np.ndarray) -> Cells:
        return Cells(*(getattr(self, name)[rows] for name in _FIELDS))

    def __len__(self) -> int:
        return len(self.low)


_FIELDS = ("low", "high", "slow", "fast", "nu", "ratio")


def _joined(parts: Sequence[Cells]) -> Cells:
    return Cells(*(np.concatenate([getattr(part, name) for part in parts]) for name in _FIELDS))


@dataclass(frozen=True)
class Quote:
    """`theta` × dual prices cover every pipeline's worth; `counts` are promising multisets, best first."""

    theta: float
    counts: tuple[Counts, ...]
    cells: int


@dataclass
class Pricer:
    """Prices pipelines of one workshop."""

    workshop: Workshop
    _levels: dict[int, Levels] = field(default_factory=dict, repr=False)

    def quote(
        self, zones: Sequence[Sequence[int]], prices: Prices, target: float, most_cells: int, wanted: int
    ) -> Quote:
        """Cut cells until none could hold a pipeline beyond `target`, or `most_cells` have been looked at."""
        theta, seen = 1.0, 0
        found: list[tuple[float, Counts]] = []
        for market in markets(self.workshop, zones, prices):
            search = _Search(self, market, target)
            search.run(most_cells)
            theta, seen = max(theta, search.theta()), seen + search.seen
            found += search.promising(wanted)
        found.sort(key=lambda pair: -pair[0])
        return Quote(theta, tuple(dict.fromkeys(counts for _, counts in found)), seen)

    def levels(self, stages: int) -> Levels:
        """Marks of seats for pipelines of `stages` stages, remembered for the lengths used last."""
        levels = self._levels.pop(stages, None)
        if levels is None:
            marks = self.workshop.times.seat_marks(stages)
            levels = Levels(marks, self.workshop.times.regimes(stages, marks, marks))
        self._levels[stages] = levels
        while len(self._levels) > REMEMBERED:
            self._levels.pop(next(iter(self._levels)))
        return levels


@dataclass(frozen=True)
class Levels:
    """What is known at every mark; a range between two takes room from the lower one and times from the upper one."""

    seats: np.ndarray
    at: Regimes

    def between(self, low: np.ndarray, high: np.ndarray, kinds: np.ndarray) -> Regimes:
        """The ranges between marks, for these kinds only."""
        at, few = self.at, self.seats[low] < self.at.stages
        rows = high[:, None]
        return Regimes(
            stages=at.stages,
            low=self.seats[low],
            high=self.seats[high],
            work=at.work[high],
            in_flight=at.in_flight[high],
            round_s=np.where(few, np.minimum(at.round_s[low], at.round_s[high]), at.round_s[high]),
            layer_s=at.layer_s[rows, kinds],
            fixed_s=at.fixed_s[high][:, :, kinds],
            room=at.room[low][:, :, kinds],
            pace_layer_s=at.pace_layer_s[rows, kinds],
            pace_fixed_s=at.pace_fixed_s[high][:, :, kinds],
            remote_hop_s=at.remote_hop_s[rows, kinds],
            pace_remote_hop_s=at.pace_remote_hop_s[rows, kinds],
            pace_local_hop_s=at.pace_local_hop_s[rows, kinds],
        )


class _Search:
    """The cells of one market."""

    def __init__(self, pricer: Pricer, market: Market, target: float) -> None:
        self.pricer, self.market, self.target = pricer, market, target
        self.times: StageTimes = pricer.workshop.times
        self.kinds = np.array([entry.kind for entry in market.entries], dtype=np.intp)
        self.price = np.array([entry.price for entry in market.entries])
        self.risk = np.array([entry.risk for entry in market.entries])
        self.share = np.array([entry.share for entry in market.entries])
        self.cells: dict[int, Cells] = {}
        self.closed = 1.0
        self.seen = 0

    def theta(self) -> float:
        return max([self.closed, *(float(cells.ratio.max(initial=0.0)) for cells in self.cells.values())])

    def run(self, most_cells: int) -> None:
        """Bound the first cells of every number of stages, then cut open ones, the most promising first."""
        for stages in range(2 if self.market.mixed else 1, self.market.most_stages + 1):
            cells = self._first_cells(stages)
            if len(cells):
                self._keep(stages, self._bounded(stages, cells))
        most_cells += self.seen
        while self.seen < most_cells:
            open_ = {n: (cells.ratio > self.target) & ~self._smallest(cells) for n, cells in self.cells.items()}
            ratios = np.concatenate([np.zeros(0), *(self.cells[n].ratio[rows] for n, rows in open_.items())])
            if not len(ratios):
                return
            beam = max(BEAM, len(ratios) // 4)
            bar = np.partition(ratios, len(ratios) - beam)[len(ratios) - beam] if len(ratios) > beam else 0.0
            for stages, rows in open_.items():
                chosen = np.flatnonzero(rows & (self.cells[stages].ratio >= bar))
                if len(chosen):
                    cells = self.cells[stages]
                    self.cells[stages] = cells.take(np.setdiff1d(np.arange(len(cells)), chosen))
                    self._keep(stages, self._bounded(stages, self._halves(stages, cells.take(chosen))))

    def _keep(self, stages: int, cells: Cells) -> None:
        """Remember the cells that are open or nearly so."""
        kept = cells.take(np.flatnonzero(cells.ratio > 0.9))
        self.cells[stages] = _joined([self.cells[stages], kept]) if stages in self.cells else kept

    @staticmethod
    def _smallest(cells: Cells) -> np.ndarray:
        return (cells.high - cells.low <= 1) & (cells.fast <= cells.slow * SMALLEST_RATE)

    def _first_cells(self, stages: int) -> Cells:
        times, levels = self.times, self.pricer.levels(stages)
        marks = levels.seats
        edges = [len(marks) - 1]
        while edges[-1] > 0:
            below = int(np.searchsorted(marks, marks[edges[-1]] / SEAT_RATIO))
            edges.append(max(0, min(below, edges[-1] - 1)) if marks[edges[-1]] > stages / 2 else 0)
        edges.reverse()
        low, high = np.array(edges[:-1]), np.array(edges[1:])
        regimes = levels.between(low, high, self.kinds)
        position = ONLY if stages == 1 else MIDDLE
        deepest = math.ceil(times.layers / stages)  # some stage holds at least the mean
        time_s = regimes.fixed_s[:, position] + regimes.layer_s * deepest
        time_s = np.where(regimes.room[:, position] >= deepest, time_s, np.inf).min(axis=1)
        fastest = regimes.work / time_s
        slowest = stages * self.price.min() / self.market.worth * 0.999  # slower ones never repay their stages
        result = []
        for a, b, most in zip(low, high, fastest, strict=True):
            if most > slowest > 0:
                count = max(1, math.ceil(math.log(most / slowest) / math.log(RATE_RATIO)))
                rates = np.geomspace(slowest, most * (1 + 1e-12), count + 1)
                ones = np.ones(count)
                result.append(Cells(a * ones, b * ones, rates[:-1], rates[1:], -ones, np.inf * ones))
        return _joined(result) if result else Cells(*(np.zeros(0) for _ in _FIELDS))

    def _halves(self, stages: int, cells: Cells) -> Cells:
        """Each cell cut in two across its longer side."""
        marks = self.pricer.levels(stages).seats
        low, high = cells.low.astype(np.intp), cells.high.astype(np.intp)
        seats = np.log(marks[high] / np.maximum(marks[low], 0.3))
        across = (high - low > 1) & ((seats * 0.5 > np.log(cells.fast / cells.slow)) | self._narrow(cells))
        middle, rate = (low + high) // 2, np.sqrt(cells.slow * cells.fast)
        split_low, split_high = np.where(across, middle, low), np.where(across, middle, high)
        split_slow, split_fast = np.where(across, cells.slow, rate), np.where(across, cells.fast, rate)
        upper = Cells(split_low, high, split_slow, cells.fast, cells.nu, cells.ratio)
        lower = Cells(low, split_high, cells.slow, split_fast, cells.nu, cells.ratio)
        return _joined([upper, lower])

    @staticmethod
    def _narrow(cells: Cells) -> np.ndarray:
        return cells.fast <= cells.slow * SMALLEST_RATE

    def _bounded(self, stages: int, cells: Cells) -> Cells:
        """The same cells with the best multiplier found and the ratio it proves."""
        batches = [np.arange(at, min(at + BATCH, len(cells))) for at in range(0, len(cells), BATCH)]
        return _joined([self._bound_batch(stages, cells.take(batch)) for batch in batches])

    def _bound_batch(self, stages: int, cells: Cells) -> Cells:
        self.seen += len(cells)
        best, nu = cells.ratio.copy(), cells.nu.copy()
        tableau = _Tableau(self, stages, cells)
        for share in QUICK_SHARES:
            best = np.minimum(best, tableau.ratio(tableau.quick(np.full(len(cells), share))))
        marks = self.pricer.levels(stages).seats
        narrow = marks[cells.high.astype(np.intp)] <= marks[cells.low.astype(np.intp)] * PROGRAMME_SEATS
        narrow = (narrow & (cells.fast <= cells.slow * PROGRAMME_RATE)) | (stages <= 2)
        rows = np.flatnonzero((best > self.target) & narrow)
        steps: tuple[float, ...] = FIRST_STEPS if (cells.nu[rows] < 0).all() else NEXT_STEPS
        start = np.maximum(nu, 0.0)
        for step in steps:
            if not len(rows):
                break
            share = np.maximum(start[rows] + step, 0.0)
            exact = _Tableau(self, stages, cells.take(rows))
            ratio = exact.ratio(exact.cheapest(share))
            better = (ratio < best[rows]) | (nu[rows] < 0)
            nu[rows] = np.where(better, share, nu[rows])
            best[rows] = np.minimum(best[rows], ratio)
            rows = rows[best[rows] > self.target]
        return Cells(cells.low, cells.high, cells.slow, cells.fast, nu, best)

    def promising(self, wanted: int) -> list[tuple[float, Counts]]:
        """Cheapest multisets of the best narrow cells, from several numbers of stages."""
        ranked = [
            (float(cells.ratio[row]), stages, int(row))
            for stages, cells in self.cells.items()
            for row in np.argsort(-cells.ratio)[: 2 * wanted]
            if cells.nu[row] >= 0 and cells.ratio[row] > 0.97
        ]
        ranked.sort(reverse=True)
        result: dict[Counts, float] = {}
        for ratio, stages, row in ranked[: 4 * wanted]:
            one = self.cells[stages].take(np.array([row]))
            counts = _Tableau(self, stages, one).multiset(float(one.nu[0]))
            if counts is not None:
                result.setdefault(counts, ratio)
            if len(result) >= wanted:
                break
        return [(ratio, counts) for counts, ratio in result.items()]


class _Tableau:
    """Costs of stages by position and layers in `n` cells of one number of stages, and the bounds drawn from them."""

    def __init__(self, search: _Search, stages: int, cells: Cells) -> None:
        self.search, self.stages, self.cells = search, stages, cells
        levels = search.pricer.levels(stages)
        regimes = levels.between(cells.low.astype(np.intp), cells.high.astype(np.intp), search.kinds)
        self.layers = search.times.layers
        self.positions = (ONLY,) if stages == 1 else (FIRST, MIDDLE, LAST)
        self.period_s = regimes.work / cells.slow
        self.layer_s = regimes.pace_layer_s
        self.fixed_s = {p: regimes.pace_fixed_s[:, p] for p in self.positions}
        self.capacity = {p: self._capacity(regimes, p) for p in self.positions}
        chord, slope = self._chord()
        worth = search.market.worth
        self.worth = cells.fast * worth * chord
        self.cost = search.price + (cells.fast * worth * slope)[:, None] * search.risk
        self.risk_most = cells.fast * worth * slope * stages * search.risk.max()
        self.round_periods_s = regimes.in_flight * self.period_s
        self.hops = self._hops(regimes)
        self.host_s = regimes.round_s - self.round_periods_s

    def _hops(self, regimes: Regimes) -> list[tuple[np.ndarray, np.ndarray]]:
        """Lower bounds on all hops of a round: (seconds per stage [n, e], seconds per pipeline [n]) of each.

        Either every stage pays for its part of a machine (a machine pays one remote hop, its other hops are local, and
        the fastest machine pays none); or stages pay local hops, and a mixed pipeline one remote hop.
        """
        remote, local = regimes.pace_remote_hop_s, regimes.pace_local_hop_s
        stages, mixed = self.stages, self.search.market.mixed
        if stages == 1:
            return [(np.zeros_like(remote), np.zeros(len(remote)))]
        share = np.maximum(self.search.share, 1.0 / (stages - 1 if mixed else stages))
        by_share = (share * remote + (1 - share) * local, -remote.min(axis=1))
        longest = local.max(axis=1)
        if mixed:
            once = (local, remote.min(axis=1) - 2 * longest)
            return [by_share] if share.min() >= 1 else [by_share, once]
        once = (local, -longest)
        return [once] if stages * self.search.share.max() <= 1 else [by_share, once]

    def _capacity(self, regimes: Regimes, position: int) -> np.ndarray:
        by_time = np.floor((self.period_s[:, None] - regimes.fixed_s[:, position]) / regimes.layer_s + ROUNDING)
        return np.clip(np.minimum(regimes.room[:, position], by_time), 0, self.layers).astype(np.int64)

    def _chord(self) -> tuple[float, float]:
        """Share of time up lies under `chord − slope × risk`, risk being the sum over stages."""
        least = self.stages * float(self.search.risk.min())
        most = self.stages * float((self.search.risk / self.search.share).max())
        at_least, at_most = 1 / (1 + least), 1 / (1 + most)
        slope = (at_least - at_most) / (most - least) if most > least else 0.0
        return at_least + slope * least, slope

    def ratio(self, cost: np.ndarray) -> np.ndarray:
        """θ that covers the cells' worth, given a lower bound on what their pipelines cost.

        What a pipeline pays the pools is at least its cost less the charge for risk, and only that grows with θ.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            beyond = (self.worth - cost) / (cost - self.risk_most)
        ratio = np.where(cost > self.risk_most, 1 + beyond, np.inf)
        ratio = np.where(self.worth <= cost, np.minimum(ratio, 1.0), ratio)
        return np.where(np.isfinite(cost), ratio, 0.0)

    def _nu(self, share: np.ndarray) -> np.ndarray:
        return share * self.worth / self.round_periods_s

    def quick(self, share: np.ndarray) -> np.ndarray:
        """A lower bound on cost without the programme: a price ρ per layer, and each stage at its cheapest.

        With any ρ, cost ≥ ρ·layers + stages × min over stages of (cost − ρ × its layers); the best ρ is searched for.
        """
        return np.maximum.reduce([self._quick(share, hop_s, once_s) for hop_s, once_s in self.hops])

    def _quick(self, share: np.ndarray, hop_s: np.ndarray, once_s: np.ndarray) -> np.ndarray:
        nu = self._nu(share)[:, None]
        position = ONLY if self.stages == 1 else MIDDLE
        capacity = self.capacity[position].astype(np.float64)
        able = capacity >= 1
        base = np.where(able, self.cost + nu * (self.fixed_s[position] + hop_s), np.inf)
        slope = nu * self.layer_s
        one, full = base + slope, base + slope * capacity
        extra = np.zeros(len(share))
        if self.stages > 1:
            for end in (FIRST, LAST):
                more = np.where(able, self.fixed_s[end] - self.fixed_s[MIDDLE], np.inf).min(axis=1)
                extra += nu[:, 0] * np.where(np.isfinite(more), more, 0.0)

        def at(rho: np.ndarray) -> np.ndarray:
            least = np.minimum(one - rho[:, None], full - rho[:, None] * capacity).min(axis=1)
            return rho * self.layers + self.stages * least

        with np.errstate(invalid="ignore"):
            left, right = np.zeros(len(share)), 2.5 * self.worth / self.layers
            best = np.maximum(at(left), at(right))
            for _ in range(LAYER_STEPS):
                third = (right - left) * 0.381966
                a, b = left + third, right - third
                at_a, at_b = at(a), at(b)
                best = np.maximum(best, np.maximum(at_a, at_b))
                left, right = np.where(at_a < at_b, a, left), np.where(at_a < at_b, right, b)
        enough = capacity.max(axis=1) * self.stages >= self.layers
        return np.where(enough & able.any(axis=1), best + extra + nu[:, 0] * (self.host_s + once_s), np.inf)

    # --- the programme ---

    def _columns(self, position: int, nu: np.ndarray, hop_s: np.ndarray, deepest: int) -> np.ndarray:
        """[n, deepest + 1] least cost of one stage at this position by layers."""
        layers = np.arange(deepest + 1)
        result = np.full((len(nu), deepest + 1), np.inf)
        capacity = self.capacity[position]
        base = self.cost + nu[:, None] * (self.fixed_s[position] + hop_s)
        slope = nu[:, None] * self.layer_s
        for entry in range(base.shape[1]):
            most = int(capacity[:, entry].max(initial=0))
            if most >= 1:
                line = base[:, entry, None] + slope[:, entry, None] * layers[: most + 1]
                line[layers[: most + 1] > capacity[:, entry, None]] = np.inf
                np.minimum(result[:, : most + 1], line, out=result[:, : most + 1])
        result[:, 0] = np.inf
        return result

    def _deepest(self) -> int:
        return int(max(self.capacity[p].max(initial=0) for p in self.positions))

    def cheapest(self, share: np.ndarray) -> np.ndarray:
        """Lower bound on the cost of any pipeline of each cell; infinite where none exists."""
        return np.maximum.reduce([self._cheapest(share, hop_s, once_s) for hop_s, once_s in self.hops])

    def _cheapest(self, share: np.ndarray, hop_s: np.ndarray, once_s: np.ndarray) -> np.ndarray:
        nu, deepest, layers, stages = self._nu(share), self._deepest(), self.layers, self.stages
        if deepest * stages < layers:
            return np.full(len(nu), np.inf)
        if stages == 1:
            total = self._columns(ONLY, nu, hop_s, layers)[:, layers]
        else:
            held = np.full((len(nu), layers + 1), np.inf)
            last = self._columns(LAST, nu, hop_s, deepest)
            held[:, : deepest + 1] = last[:, : layers + 1]
            if stages > 2:
                middle = self._columns(MIDDLE, nu, hop_s, deepest)
                for placed in range(2, stages):
                    held = self._further(held, middle, placed, deepest)
            first = self._columns(FIRST, nu, hop_s, deepest)
            total = np.full(len(nu), np.inf)
            for depth in range(1, min(deepest, layers - 1) + 1):
                np.minimum(total, first[:, depth] + held[:, layers - depth], out=total)
        return total + nu * (self.host_s + once_s)

    def _further(self, held: np.ndarray, stage: np.ndarray, placed: int, deepest: int) -> np.ndarray:
        """One more stage in front: least cost of `placed` stages by layers, where the rest could still be held."""
        layers = self.layers
        least = max(placed, layers - (self.stages - placed) * deepest)
        most = min(layers - (self.stages - placed), placed * deepest)
        result = np.full_like(held, np.inf)
        for depth in range(1, deepest + 1):
            start = max(least, depth + placed - 1)
            if start <= most:
                window = result[:, start : most + 1]
                np.minimum(window, stage[:, depth, None] + held[:, start - depth : most + 1 - depth], out=window)
        return result

    def multiset(self, share: float) -> Counts | None:
        """The stages behind `cheapest` of a single cell."""
        nu, deepest, layers, stages = self._nu(np.array([share])), self._deepest(), self.layers, self.stages
        if deepest * stages < layers:
            return None
        costs = [float(self._cheapest(np.array([share]), *hops)[0]) for hops in self.hops]
        hop_s = self.hops[int(np.argmax(costs))][0]
        tables = {p: self._columns(p, nu, hop_s, layers if stages == 1 else deepest) for p in self.positions}
        order = [ONLY] if stages == 1 else [LAST, *[MIDDLE] * (stages - 2), FIRST]
        held = np.full(layers + 1, np.inf)
        held[0] = 0.0
        choices = []
        for position in order:
            table = tables[position][0]
            grid = np.full((len(table), layers + 1), np.inf)
            for depth in range(1, len(table)):
                grid[depth, depth:] = table[depth] + held[: layers + 1 - depth]
            choices.append(grid.argmin(axis=0))
            held = grid.min(axis=0)
        if not np.isfinite(held[layers]):
            return None
        taken: dict[int, int] = {}
        left = layers
        for position, choice in zip(reversed(order), reversed(choices), strict=True):
            depth = int(choice[left])
            cost = self.cost[0] + nu[0] * (self.fixed_s[position][0] + hop_s[0] + self.layer_s[0] * depth)
            entry = int(np.where(self.capacity[position][0] >= depth, cost, np.inf).argmin())
            offer = self.search.market.entries[entry].offer
            taken[offer] = taken.get(offer, 0) + 1
            left -= depth
        return tuple(sorted(taken.items()))

"""The pricing problem: is any pipeline worth more than its stages cost at the dual prices, and by what factor at most?

Pipelines fall into *cells*: a number of stages S, a range of seats C and a range of requests/s. A pipeline of the cell
has at most the period that its least requests/s allow, so every stage kind holds at most so many layers, and the
cheapest pipeline is a dynamic programme over stages and layers; none is worth more than the cell's most requests/s.
Cells whose best worth stays under their cost are closed for good; the others are cut in two until they are small.

Two things tie the stages of a pipeline together. Stage times and hops of a round must fit in q periods: that enters
with a multiplier ν ≥ 0 (Lagrange), any value of which leaves a lower bound on cost. And worth falls with the risk of
the machines as 1/(1 + risk), which is convex and so lies under its chord, and the chord charges each stage its part.
A second multiplier, on layers, gives a bound without the programme (`programme`) that closes most cells.

Cells outlive a question: at other prices the same cells are bounded anew, and only what is open then is cut further.
All of this is optimistic, never pessimistic: `Quote.theta` times the dual prices covers the worth of every pipeline.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from shuntserve.core.planning.columns import Counts, Workshop
from shuntserve.core.planning.programme import cheapest_s, multiset
from shuntserve.core.planning.stage_times import MIDDLE, ONLY, StageTimes
from shuntserve.core.planning.tableau import Cells, Entry, Market, Mixture, Tableau, joined

SEAT_RATIO = 1.6
RATE_RATIO = 1.5
"""Width of the first cells."""
SMALLEST_RATE = 1.001
"""Cells of one step between marks and narrower than this in requests/s are cut no further."""
FIRST_SHARES = (0.0, 0.5, 0.9, 1.2)
NEXT_STEPS = (0.0, 0.15, -0.15)
"""Values of ν tried, as shares of the pipeline's worth per second of a round; the next ones from the parent's best."""
LAYER_STEPS = 10
BATCH = 2048
BEAM = 768
MOST_LEAVES = 120_000
PROGRAMME_RATE = 1.07
PROGRAMME_SEATS = 1.2
FEW_STAGES = 8
LAST_RATE, LAST_SEATS = 1.015, 1.05
"""Cells up to this wide go through the programme, the latter ones whatever their number of stages; the quick bound
loses at most about one stage of the pipeline, so it is nearly as good for many stages.
"""
MOST_CHARGED = 6


@dataclass(frozen=True)
class Prices:
    """What the master charges: `stage` per offer, more than nothing; one request/s is worth `rps` less `touch` of each
    pool touched.
    """

    stage: np.ndarray
    rps: float
    touch: np.ndarray


def markets(workshop: Workshop, zones: Sequence[Sequence[int]], prices: Prices) -> Iterator[Market]:
    """Markets that together hold every pipeline.

    Each pool is one by itself: there a pipeline may do without network hops. Pipelines over several pools of a zone
    make markets for each set of charged pools that they may touch, and for each speed of network that their fastest
    machine can have, since a pipeline pays the hop of every machine but that one.
    """
    most = 2 * workshop.times.marks[-1:]
    hop_s = workshop.times.regimes(2, most, most).pace_remote_hop_s[0]
    longest = workshop.times.max_stages
    for zone in zones:
        for pool in zone:
            worth = prices.rps - float(prices.touch[pool])
            entries = _entries(workshop, {pool}, prices)
            if worth > 0 and entries:
                yield Market(
                    ("one pool", frozenset({pool}), 0.0), entries, worth, min(longest, _gpus(workshop, {pool}))
                )
        if len(zone) < 2:
            continue
        charged = sorted((pool for pool in zone if prices.touch[pool] > 1e-12), key=lambda pool: -prices.touch[pool])
        charged = charged[:MOST_CHARGED]  # charging fewer pools is optimistic, so the bound holds
        for mask in range(1 << len(charged)):
            touched = {pool for bit, pool in enumerate(charged) if mask >> bit & 1}
            allowed = {pool for pool in zone if pool not in charged or pool in touched}
            worth = prices.rps - sum(float(prices.touch[pool]) for pool in touched)
            entries = _entries(workshop, allowed, prices)
            if worth <= 0 or len(allowed) < 2:
                continue
            most_stages = min(longest, _gpus(workshop, allowed))
            for fastest in np.unique([hop_s[entry.kind] for entry in entries]):
                slower = tuple(entry for entry in entries if hop_s[entry.kind] >= fastest)
                whole = tuple(entry for entry in slower if entry.share >= 1)
                pools = frozenset(allowed), float(fastest)
                if whole:
                    yield Market(("whole", *pools), whole, worth, most_stages)
                if len(whole) < len(slower):
                    yield Market(("parts", *pools), slower, worth, most_stages)


def _gpus(workshop: Workshop, pools: set[int]) -> int:
    """GPUs of the pools together: no pipeline has more stages."""
    most = dict.fromkeys(pools, 0)
    for offer in workshop.offers:
        if offer.pool in most:
            most[offer.pool] = max(most[offer.pool], offer.most)
    return sum(most.values())


def _entries(workshop: Workshop, pools: set[int], prices: Prices) -> tuple[Entry, ...]:
    """The offers of these pools that no other beats: cheaper or as cheap, as safe, and no slower."""
    entries = [
        Entry(
            number,
            offer.kind,
            float(prices.stage[number]),
            workshop.pools[offer.pool].losses_per_h / 3600.0 * workshop.recovery_s * offer.machine_share,
            offer.machine_share,
        )
        for number, offer in enumerate(workshop.offers)
        if offer.pool in pools
    ]
    kept: list[Entry] = []
    for entry in sorted(entries, key=lambda entry: (entry.price, entry.risk, entry.offer)):
        if not any(other.risk <= entry.risk and workshop.times.no_slower(other.kind, entry.kind) for other in kept):
            kept.append(entry)
    return tuple(sorted(kept, key=lambda entry: entry.offer))


@dataclass(frozen=True)
class Quote:
    """`theta` × dual prices cover every pipeline's worth; `counts` are promising multisets, best first."""

    theta: float
    counts: tuple[Counts, ...]
    cells: int


@dataclass
class Pricer:
    """Prices pipelines of one workshop, again and again."""

    workshop: Workshop
    _leaves: dict[tuple[Mixture, frozenset[int], float], tuple[Cells, np.ndarray]] = field(
        default_factory=dict, repr=False
    )

    def quote(
        self,
        zones: Sequence[Sequence[int]],
        prices: Prices,
        target: float,
        most_cells: int,
        wanted: int,
        out_of_time: Callable[[], bool],
    ) -> Quote:
        """Cut cells until none could hold a pipeline beyond `target`, or `most_cells` were looked at, or time is up."""
        theta, seen = 1.0, 0
        found: list[tuple[float, Counts]] = []
        for market in markets(self.workshop, zones, prices):
            search = _Search(self.workshop.times, market, target, self._leaves.get(market.key))
            search.run(most_cells, out_of_time)
            self._leaves[market.key] = search.leaves()
            theta, seen = max(theta, search.theta()), seen + search.seen
            found += search.promising(max(4, wanted // 8) if market.mixture == "one pool" else wanted)
        found.sort(key=lambda pair: -pair[0])
        return Quote(theta, tuple(dict.fromkeys(counts for _, counts in found)), seen)


class _Search:
    """The cells of one market at one set of prices."""

    def __init__(
        self, times: StageTimes, market: Market, target: float, leaves: tuple[Cells, np.ndarray] | None
    ) -> None:
        self.times, self.market, self.target = times, market, target
        self.kinds = np.array([entry.kind for entry in market.entries], dtype=np.intp)
        self.marks = times.marks
        self.seen = 0
        if leaves is None or len(leaves[0]) > MOST_LEAVES:
            leaves = Cells.none(), np.full(times.max_stages + 1, np.inf)
        self.cells, self.covered = leaves

    def theta(self) -> float:
        return max(1.0, float(self.cells.ratio.max(initial=0.0)))

    def leaves(self) -> tuple[Cells, np.ndarray]:
        """What the next search of this market starts from."""
        return self.cells, self.covered

    def run(self, most_cells: int, out_of_time: Callable[[], bool]) -> None:
        """Bound all cells at these prices, then cut open ones, the most promising first."""
        self.cells = self._bounded(joined([self.cells, self._roots()]))
        most_cells += self.seen
        while self.seen < most_cells and not out_of_time():
            cells = self.cells
            open_ = np.flatnonzero((cells.ratio > self.target) & ~self._smallest(cells))
            if not len(open_):
                return
            beam = max(BEAM, len(open_) // 4)
            if len(open_) > beam:
                open_ = open_[np.argpartition(cells.ratio[open_], len(open_) - beam)[len(open_) - beam :]]
            rest = np.ones(len(cells), dtype=bool)
            rest[open_] = False
            self.cells = joined([cells.take(np.flatnonzero(rest)), self._bounded(self._halves(cells.take(open_)))])

    @staticmethod
    def _smallest(cells: Cells) -> np.ndarray:
        return (cells.high - cells.low <= 1) & (cells.fast <= cells.slow * SMALLEST_RATE)

    def _roots(self) -> Cells:
        """Cells that no earlier search had: for every number of stages down to the rate that repays them no more."""
        times, market, marks = self.times, self.market, self.marks
        edges = [len(marks) - 1]
        while edges[-1] > 0:
            below = int(np.searchsorted(marks, marks[edges[-1]] / SEAT_RATIO))
            edges.append(max(0, min(below, edges[-1] - 1)) if marks[edges[-1]] > 0.5 else 0)
        edges.reverse()
        first = 1 if market.mixture == "one pool" else 2
        stages = np.repeat(np.arange(first, market.most_stages + 1), len(edges) - 1)
        low = np.tile(np.array(edges[:-1], dtype=np.intp), market.most_stages + 1 - first)
        high = np.tile(np.array(edges[1:], dtype=np.intp), market.most_stages + 1 - first)
        if not len(stages):
            return Cells.none()
        alive = stages * marks[high] >= 1.0
        stages, low, high = stages[alive], low[alive], high[alive]
        regimes = times.regimes(
            stages, np.maximum(1.0, stages * marks[low]), np.maximum(1.0, stages * marks[high]), self.kinds
        )
        position = np.where(stages == 1, ONLY, MIDDLE)
        here = np.arange(len(stages))
        deepest = np.ceil(times.layers / stages)[:, None]  # some stage holds at least the mean
        time_s = regimes.fixed_s[here, position] + regimes.layer_s * deepest
        fastest = regimes.work / np.where(regimes.room[here, position] >= deepest, time_s, np.inf).min(axis=1)
        price = min(entry.price for entry in market.entries)
        # Rates are powers of one ratio; slower than `least` ones never repay their stages, faster than `most` none is.
        every = np.arange(times.max_stages + 1)
        least = np.floor(np.log(np.maximum(every, 1) * price / market.worth * 0.999) / math.log(RATE_RATIO))
        most = np.ceil(np.log(np.maximum(fastest, 1e-300)) / math.log(RATE_RATIO))
        counts = np.maximum(0, np.minimum(self.covered[stages], most) - least[stages]).astype(np.int64)
        self.covered = np.minimum(self.covered, least)
        rows = np.repeat(here, counts)
        step = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(least[stages], counts)
        return Cells(
            stages[rows], low[rows], high[rows], RATE_RATIO**step, RATE_RATIO ** (step + 1),
            np.full(len(rows), -1.0), np.full(len(rows), np.inf),
        )  # fmt: skip

    def _halves(self, cells: Cells) -> Cells:
        """Each cell cut in two across its longer side."""
        marks, low, high = self.marks, cells.low, cells.high
        seats = np.log(marks[high] / marks[low])
        narrow = cells.fast <= cells.slow * SMALLEST_RATE
        across = (high - low > 1) & ((seats * 0.5 > np.log(cells.fast / cells.slow)) | narrow)
        middle, rate = (low + high) // 2, np.sqrt(cells.slow * cells.fast)
        upper = Cells(
            cells.stages, np.where(across, middle, low), high, np.where(across, cells.slow, rate), cells.fast,
            cells.share, cells.ratio,
        )  # fmt: skip
        lower = Cells(
            cells.stages, low, np.where(across, middle, high), cells.slow, np.where(across, cells.fast, rate),
            cells.share, cells.ratio,
        )  # fmt: skip
        return joined([upper, lower])

    def _bounded(self, cells: Cells) -> Cells:
        """The same cells with the best multiplier found and the ratio it proves."""
        self.seen += len(cells)
        batches = [np.arange(at, min(at + BATCH, len(cells))) for at in range(0, len(cells), BATCH)]
        quick = joined([self._quick(cells.take(batch)) for batch in batches])
        marks = self.marks
        seats, rates = marks[quick.high] / marks[quick.low], quick.fast / quick.slow
        narrow = (seats <= PROGRAMME_SEATS) & (rates <= PROGRAMME_RATE) & (quick.stages <= FEW_STAGES)
        narrow |= (seats <= LAST_SEATS) & (rates <= LAST_RATE) | (quick.stages <= 2)
        rows = np.flatnonzero((quick.ratio > self.target) & narrow)
        for stages in np.unique(quick.stages[rows]):
            same = rows[quick.stages[rows] == stages]
            for at in range(0, len(same), BATCH):
                self._programme(quick, same[at : at + BATCH])
        return quick

    def _quick(self, cells: Cells) -> Cells:
        """Bounds without the programme; `share` −1 marks cells that were never bounded."""
        tableau = Tableau(self.times, self.market, cells)
        best, share = np.full(len(cells), np.inf), cells.share.copy()
        fresh = np.flatnonzero(share < 0)
        trials = [np.maximum(share + step, 0.0) for step in NEXT_STEPS]
        for number, first in enumerate(FIRST_SHARES):
            if number < len(trials):
                trials[number][fresh] = first
            elif len(fresh):
                trials.append(np.where(cells.share < 0, first, np.maximum(share, 0.0)))
        for trial in trials:
            ratio = tableau.ratio(tableau.quick(trial))
            better = ratio < best
            best, share = np.where(better, ratio, best), np.where(better, trial, share)
        return Cells(cells.stages, cells.low, cells.high, cells.slow, cells.fast, np.maximum(share, 0.0), best)

    def _programme(self, cells: Cells, rows: np.ndarray) -> None:
        """Tighten the bounds of some cells of one number of stages."""
        start = cells.share[rows]
        for step in NEXT_STEPS:
            if not len(rows):
                return
            some = cells.take(rows)
            tableau = Tableau(self.times, self.market, some)
            share = np.maximum(start + step, 0.0)
            ratio = tableau.ratio(cheapest_s(tableau, int(some.stages[0]), share))
            better = ratio < cells.ratio[rows]
            cells.share[rows] = np.where(better, share, cells.share[rows])
            cells.ratio[rows] = np.minimum(cells.ratio[rows], ratio)
            still = cells.ratio[rows] > self.target
            rows, start = rows[still], start[still]

    def promising(self, wanted: int) -> list[tuple[float, Counts]]:
        """Cheapest multisets of the best narrow cells, from several numbers of stages."""
        cells = self.cells
        good = np.flatnonzero((cells.ratio > 1.0 + 1e-6) & (cells.fast <= cells.slow * PROGRAMME_RATE))
        good = good[np.argsort(-cells.ratio[good], kind="stable")]
        turn: dict[int, int] = defaultdict(int)
        order = []
        for row in good[: 50 * wanted]:  # the best of every number of stages, then the second best of each, …
            turn[int(cells.stages[row])] += 1
            order.append((turn[int(cells.stages[row])], row))
        result: dict[Counts, float] = {}
        for _, row in sorted(order, key=lambda pair: pair[0])[: 2 * wanted]:
            one = cells.take(np.array([row]))
            tableau = Tableau(self.times, self.market, one)
            counts = multiset(tableau, int(one.stages[0]), float(one.share[0]))
            if counts is not None:
                result.setdefault(counts, float(cells.ratio[row]))
            if len(result) >= wanted:
                break
        return [(ratio, counts) for counts, ratio in result.items()]

"""Costs of stages in many cells of the pricing problem at once, and the quick bound drawn from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from shuntserve.core.planning.covering import ROUNDING
from shuntserve.core.planning.stage_times import FIRST, LAST, MIDDLE, ONLY, Regimes, StageTimes

LAYER_STEPS = 10


@dataclass(frozen=True)
class Entry:
    """One way to buy a stage that no other way of the same kind beats in both price and risk."""

    offer: int
    kind: int
    price: float
    risk: float
    share: float


Mixture = Literal["one pool", "whole", "parts"]


@dataclass(frozen=True)
class Market:
    """Entries that one pipeline may mix, and what a request/s of such a pipeline is worth at most.

    Pipelines are of one pool; or of several and every stage fills its machine ("whole"); or of several and some stage
    does not ("parts"). `key` names the market whatever the prices.
    """

    key: tuple[Mixture, frozenset[int], float]
    entries: tuple[Entry, ...]
    worth: float
    most_stages: int

    @property
    def mixture(self) -> Mixture:
        return self.key[0]


@dataclass
class Cells:
    """Cells of one market, [n] each.

    `stages` stages; seats lie between two marks, requests/s between `slow` and `fast`; `share` is the best multiplier
    so far (< 0: none yet) and `ratio` the θ that covers the cell.
    """

    stages: np.ndarray
    low: np.ndarray
    high: np.ndarray
    slow: np.ndarray
    fast: np.ndarray
    share: np.ndarray
    ratio: np.ndarray

    @classmethod
    def none(cls) -> Cells:
        """No cells."""
        whole = np.zeros(0, dtype=np.intp)
        return cls(whole, whole, whole, *(np.zeros(0) for _ in range(4)))

    def take(self, rows: np.ndarray) -> Cells:
        return Cells(*(getattr(self, item.name)[rows] for item in fields(self)))

    def __len__(self) -> int:
        return len(self.low)


def joined(parts: Sequence[Cells]) -> Cells:
    """All cells of the parts, in their order."""
    if not parts:
        return Cells.none()
    return Cells(*(np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(Cells)))


class Tableau:
    """Costs by entry in `n` cells; arrays are [n, entries] unless said otherwise."""

    def __init__(self, times: StageTimes, market: Market, cells: Cells) -> None:
        entries, worth, marks = market.entries, market.worth, times.marks
        self.entries, self.mixture, self.cells, self.layers = entries, market.mixture, cells, times.layers
        self.stages = cells.stages.astype(np.float64)
        kinds = np.array([entry.kind for entry in entries], dtype=np.intp)
        self.risk = np.array([entry.risk for entry in entries])
        self.part = np.array([entry.share for entry in entries])
        low, high = np.maximum(1.0, self.stages * marks[cells.low]), np.maximum(1.0, self.stages * marks[cells.high])
        regimes = times.regimes(cells.stages, low, high, kinds)
        self.regimes = regimes
        self.period_s = regimes.work / cells.slow
        self.layer_s = regimes.pace_layer_s
        chord, slope = self._chord()
        self.worth = cells.fast * worth * chord
        self.cost = np.array([entry.price for entry in entries]) + (cells.fast * worth * slope)[:, None] * self.risk
        self.risk_most = cells.fast * worth * slope * self.stages * self.risk.max()
        self.round_periods_s = regimes.in_flight * self.period_s
        self.hops = self._hops(regimes)
        self.host_s = regimes.round_s - self.round_periods_s
        self._capacity: dict[int, np.ndarray] = {}

    def fixed_s(self, position: int) -> np.ndarray:
        """Seconds of a stage at this position before its first layer."""
        return self.regimes.pace_fixed_s[:, position]

    def capacity(self, position: int) -> np.ndarray:
        """Most layers a stage holds within the cell's longest period and beside the cache of its fewest seats."""
        if position not in self._capacity:
            regimes = self.regimes
            by_time = (self.period_s[:, None] - regimes.fixed_s[:, position]) / regimes.layer_s + ROUNDING
            if self.mixture != "one pool":
                by_time = np.where(regimes.remote_hop_s <= self.period_s[:, None] * (1 + ROUNDING), by_time, 0.0)
            by_time = np.clip(by_time, 0, self.layers).astype(np.int64)
            self._capacity[position] = np.minimum(regimes.room[:, position], by_time)
        return self._capacity[position]

    def _hops(self, regimes: Regimes) -> list[tuple[np.ndarray, np.ndarray]]:
        """Lower bounds on all hops of a round: (seconds per stage, seconds per pipeline [n]) of each.

        A machine pays one remote hop, the fastest none; all other hops are local. Either every stage pays for its part
        of a machine; or stages pay local hops, and the pipeline as many remote ones as it has machines at least, less
        one; or stages that fill a machine pay a remote hop, the others a local one, and one of the others a remote one.
        """
        remote, local = regimes.pace_remote_hop_s, regimes.pace_local_hop_s
        several = self.stages > 1
        fastest, longest = remote.min(axis=1), local.max(axis=1)
        by_part = (self.part * remote + (1 - self.part) * local) * several[:, None], -fastest * several
        if self.mixture == "whole":
            return [by_part]
        machines = np.maximum(np.ceil(self.stages * self.part.min() - 1e-9), 2.0 if self.mixture == "parts" else 1.0)
        further = (machines - 1) * np.maximum(fastest - longest, 0.0)
        result = [by_part, (local * several[:, None], (further - longest) * several)]
        if self.mixture == "parts":
            partial = self.part < 1
            filling = np.where(partial, local, remote) * several[:, None]
            one = remote[:, partial].min(axis=1) - local[:, partial].max(axis=1)
            result.append((filling, (one - fastest) * several))
        return result

    def _chord(self) -> tuple[np.ndarray, np.ndarray]:
        """[n] Share of time up lies under `chord − slope × risk`, risk being the sum over stages."""
        least = self.stages * float(self.risk.min())
        most = self.stages * float((self.risk / self.part).max())
        at_least, at_most = 1 / (1 + least), 1 / (1 + most)
        span = most - least
        slope = np.where(span > 0, (at_least - at_most) / np.where(span > 0, span, 1.0), 0.0)
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

    def nu(self, share: np.ndarray) -> np.ndarray:
        """[n] The multiplier on seconds of a round that this share stands for."""
        return share * self.worth / self.round_periods_s

    def quick(self, share: np.ndarray) -> np.ndarray:
        """A lower bound on cost without the programme: a price ρ per layer, and each stage at its cheapest.

        With any ρ, cost ≥ ρ·layers + stages × min over stages of (cost − ρ × its layers), concave in ρ; its slope says
        on which side the best ρ lies.
        """
        return np.maximum.reduce([self._quick(share, hop_s, once_s) for hop_s, once_s in self.hops])

    def _main(self) -> tuple[np.ndarray, np.ndarray]:
        """Capacity and fixed seconds of middle stages, or of the only one."""
        alone = self.cells.stages == 1
        if not alone.any():
            return self.capacity(MIDDLE), self.fixed_s(MIDDLE)
        one = alone[:, None]
        return (
            np.where(one, self.capacity(ONLY), self.capacity(MIDDLE)),
            np.where(one, self.fixed_s(ONLY), self.fixed_s(MIDDLE)),
        )

    def _quick(self, share: np.ndarray, hop_s: np.ndarray, once_s: np.ndarray) -> np.ndarray:
        nu, stages = self.nu(share)[:, None], self.stages
        whole, fixed_s = self._main()
        capacity = whole.astype(np.float64)
        able = whole >= 1
        base = np.where(able, self.cost + nu * (fixed_s + hop_s), np.inf)
        slope = nu * self.layer_s
        one, full = base + slope, base + slope * capacity
        extra = np.zeros(len(share))
        for end in (FIRST, LAST):
            more = np.where(able, self.fixed_s(end) - fixed_s, np.inf).min(axis=1)
            extra += nu[:, 0] * np.where(np.isfinite(more) & (stages > 1), more, 0.0)
        enough = (capacity.max(axis=1) * stages >= self.layers) & able.any(axis=1)
        here = np.arange(len(share))
        left, right = np.zeros(len(share)), 2.5 * self.worth / self.layers
        best = np.full(len(share), -np.inf)
        for _ in range(LAYER_STEPS):
            rho = (left + right) / 2
            deep, shallow = full - rho[:, None] * capacity, one - rho[:, None]
            least = np.minimum(deep, shallow)
            at = least.argmin(axis=1)
            value = rho * self.layers + stages * least[here, at]
            best = np.maximum(best, value)
            layers = np.where(deep[here, at] <= shallow[here, at], capacity[here, at], 1.0)
            rising = self.layers > stages * layers
            left, right = np.where(rising, rho, left), np.where(rising, right, rho)
        best = np.maximum(best, stages * np.minimum(one, full).min(axis=1))
        return np.where(enough, best + extra + nu[:, 0] * (self.host_s + once_s), np.inf)

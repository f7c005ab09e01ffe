"""Layers and order for given stages: the slowest stage as fast as can be, at several numbers of seats.

A pipeline's stages come as *loads*: for each machine the kinds of stage on it. The stages of a machine stay together,
and so do machines of a type; which types stand at the two ends is tried. For an assumed number of seats every stage
takes at most the layers that leave room for them, and the split that makes the slowest stage fastest follows by
bisection; further splits allow the slowest stage a little more and give the fastest ones more layers. The most
promising splits are put to the estimator itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from shuntserve.core.planning.stage_times import FIRST, LAST, MIDDLE, ONLY, Regimes, Seat, StageTimes

Load = tuple[int, ...]
"""Kinds of the stages on one machine."""
Loads = tuple[Load, ...]

LEVELS = 32
SLACK = (1.0, 1.03, 1.1, 1.25, 2.0)
"""How much slower than the fastest possible the slowest stage may be."""
ROUNDS = 20
TRIES = 6


@dataclass(frozen=True)
class Line:
    """An ordered pipeline; `load_of` gives the number of the load that each stage belongs to."""

    stages: tuple[Seat, ...]
    load_of: tuple[int, ...]
    rps: float


@dataclass
class Lines:
    """Finds good lines; answers are remembered."""

    times: StageTimes
    _best: dict[Loads, Line | None] = field(default_factory=dict)
    _regimes: dict[int, Regimes] = field(default_factory=dict)
    _densities: dict[tuple[tuple[int, ...], int], float] = field(default_factory=dict)

    def even(self, loads: Loads) -> Line | None:
        """Loads in the order given, layers shared evenly as vLLM does: what is left over goes before the last stage."""
        row = [(kind, number) for number, load in enumerate(loads) for kind in load]
        count = len(row)
        if not 1 <= count <= min(self.times.layers, self.times.max_stages):
            return None
        each, over = divmod(self.times.layers, count)
        layers = [each + (count - 1 - over <= i < count - 1) for i in range(count)]
        return self._line(row, layers)

    def best(self, loads: Loads) -> Line | None:
        """The best line found; None when the model does not fit. Loads in another order give the same throughput."""
        numbers = sorted(range(len(loads)), key=lambda number: (loads[number], number))
        key = tuple(loads[number] for number in numbers)
        if key not in self._best:
            self._best[key] = self._search(key)
        line = self._best[key]
        return line and Line(line.stages, tuple(numbers[number] for number in line.load_of), line.rps)

    def density(self, kinds: Sequence[int], copies: int) -> float:
        """Requests/s that `copies` of these stages in one pipeline may reach, hops left out; 0 when they don't fit."""
        key = (tuple(sorted(kinds)), copies)
        if key not in self._densities:
            self._densities[key] = self._density(np.repeat(np.array(key[0], dtype=np.intp), copies))
        return self._densities[key]

    def _density(self, kinds: np.ndarray) -> float:
        if len(kinds) > min(self.times.max_stages, self.times.layers):
            return 0.0
        _, _, values = _splits(self._at(len(kinds)), kinds[None, :], self.times.layers)
        return float(values.max(initial=0.0))

    def _at(self, stages: int) -> Regimes:
        if stages not in self._regimes:
            top = self.times.most_seats(stages)
            seats = np.geomspace(min(1.0, top), top, LEVELS)
            self._regimes[stages] = self.times.regimes(stages, seats, seats)
        return self._regimes[stages]

    def _search(self, loads: Loads) -> Line | None:
        count = sum(len(load) for load in loads)
        if not 1 <= count <= min(self.times.layers, self.times.max_stages):
            return None
        rows = list(self._orders(loads))
        kinds = np.array([[kind for kind, _ in row] for row in rows], dtype=np.intp)
        order, layers, values = _splits(self._at(count), kinds, self.times.layers)
        best_first = np.argsort(-values, kind="stable")
        found: dict[tuple[int, tuple[int, ...]], None] = {}
        for at in best_first.tolist():
            found[int(order[at]), tuple(layers[at].tolist())] = None
            if len(found) == TRIES:
                break
        lines = [line for at, split in found if (line := self._line(rows[at], split)) is not None]
        return max(lines, key=lambda line: line.rps, default=None)

    def _orders(self, loads: Loads) -> Iterator[tuple[tuple[int, int], ...]]:
        """(kind, load) of the stages from front to back, for every pair of types at the ends."""
        types = [self.times.kinds[load[0]].instance_type for load in loads]
        regimes = self._at(max(2, sum(len(load) for load in loads)))
        hop_s = {name: float(regimes.remote_hop_s[0, load[0]]) for name, load in zip(types, loads, strict=True)}
        present = sorted(hop_s, key=lambda name: (hop_s[name], name))
        seen = set()
        for first in present:
            for last in present:
                if first == last and len(present) > 1 and types.count(first) < 2:
                    continue
                closing = max(n for n, name in enumerate(types) if name == last)
                numbers = sorted(
                    range(len(loads)),
                    key=lambda n: (n == closing, types[n] != first, types[n] == last, hop_s[types[n]], types[n], n),
                )
                row = tuple(
                    (kind, n)
                    for n in numbers
                    for kind in sorted(loads[n], key=lambda k: self.times.kinds[k].tp, reverse=n == numbers[0])
                )
                if row not in seen:
                    seen.add(row)
                    yield row

    def _line(self, row: Sequence[tuple[int, int]], layers: Sequence[int]) -> Line | None:
        joined = [a[1] == b[1] for a, b in pairwise(row)] + [False]
        stages = tuple(
            Seat(kind, held, together) for (kind, _), held, together in zip(row, layers, joined, strict=True)
        )
        rps = self.times.rps(stages)
        return Line(stages, tuple(load for _, load in row), rps) if rps > 0 else None


def _splits(regimes: Regimes, kinds: np.ndarray, layers: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Splits of `layers` over stages in several orders, `kinds` [orders, stages], at every number of seats.

    Rows of: the order, the layers of its stages, and the requests/s it may reach at that number of seats.
    """
    orders, stages = kinds.shape
    positions = np.array([ONLY] if stages == 1 else [FIRST] + [MIDDLE] * (stages - 2) + [LAST])
    layer_s = regimes.layer_s[:, kinds].reshape(-1, stages)
    fixed_s = regimes.fixed_s[:, positions[None, :], kinds].reshape(-1, stages)
    room = regimes.room[:, positions[None, :], kinds].reshape(-1, stages).astype(np.float64)
    rows = np.flatnonzero((room.sum(axis=1) >= layers) & (room >= 1).all(axis=1))
    layer_s, fixed_s, room = layer_s[rows], fixed_s[rows], room[rows]
    level, order = np.divmod(rows, orders)
    most = np.minimum(room, layers)
    below, above = (fixed_s + layer_s).max(axis=1), (fixed_s + layer_s * most).max(axis=1)

    def held(slowest_s: np.ndarray) -> np.ndarray:
        by_time = np.floor((slowest_s[:, None] - fixed_s) / layer_s + 1e-9)
        return np.minimum(np.maximum(by_time, 1.0), room)

    for _ in range(ROUNDS):
        middle = (below + above) / 2
        enough = held(middle).sum(axis=1) >= layers
        above, below = np.where(enough, middle, above), np.where(enough, below, middle)
    fastest = np.argsort(layer_s, axis=1, kind="stable")
    answers, values = [], []
    for slack in SLACK:
        spare = np.take_along_axis(held(above * slack) - 1, fastest, axis=1)
        before = np.cumsum(spare, axis=1) - spare
        taken = np.clip(layers - stages - before, 0.0, spare)
        split = np.empty_like(taken)
        np.put_along_axis(split, fastest, taken + 1, axis=1)
        work_s = fixed_s + layer_s * split
        round_s = (work_s.sum(axis=1) + regimes.round_s[level]) / regimes.in_flight[level]
        values.append(regimes.work[level] / np.maximum(work_s.max(axis=1), round_s))
        answers.append(split)
    return np.tile(order, len(SLACK)), np.concatenate(answers).astype(np.int64), np.concatenate(values)

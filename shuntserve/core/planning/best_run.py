"""The best order and split of given stages under the estimator's own numbers, certified, for many makes at once.

For each pair of end stages and each number of seats the least period follows exactly (`covering`), and requests/s is
work over period. Seats worth trying are those at which some stage's memory is exactly full. Ranges of seats whose
optimistic value stays under the best found are never opened, the others are cut in pieces until single levels remain.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from shuntserve.core.planning.covering import Cover, least_period, split
from shuntserve.core.planning.hops import least_hops_s
from shuntserve.core.planning.stage_times import FIRST, LAST, MIDDLE, ONLY, Regimes, Seat, StageTimes

RANGES = 6
PIECES = 4
SINGLE = 3
"""A range with at most so many levels is tried level by level."""
RELATIVE = 1e-6
"""What the bisection of the period may miss, kept on the side of the bound."""


@dataclass(frozen=True, order=True)
class Group:
    """Stages on `machines` equal machines of one pool: (kind, number) pairs in ascending order of kinds."""

    kinds: tuple[tuple[int, int], ...]
    machines: int


@dataclass(frozen=True)
class Make:
    """A pipeline's stages with the names of the pools struck out; groups in ascending order."""

    groups: tuple[Group, ...]

    @property
    def stages(self) -> int:
        return sum(number for group in self.groups for _, number in group.kinds)


@dataclass(frozen=True)
class Run:
    """The best run of a make: `rps` as the estimator gives it, at most `bound_rps` for any other order or split.

    `places` holds (group, machine) of each stage.
    """

    rps: float
    bound_rps: float
    stages: tuple[Seat, ...]
    places: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Ends:
    """Which stage leads and which closes, (group, kind) each, and whether one machine has to hold both."""

    first: tuple[int, int]
    last: tuple[int, int]
    together: bool


@dataclass(frozen=True)
class Question:
    """One make with fixed ends, as arrays over its slots: kinds in the middle, then the two ends."""

    make: int
    ends: Ends
    kinds: tuple[int, ...]
    positions: tuple[int, ...]
    counts: tuple[int, ...]


@dataclass
class _Best:
    value: float
    question: int = -1
    seats: float = 0.0
    period_s: float = 0.0


@dataclass
class BestRuns:
    """Finds best runs; answers are remembered."""

    times: StageTimes
    _known: dict[Make, Run | None] = field(default_factory=dict)
    _at_most: dict[Make, float] = field(default_factory=dict)

    def of(self, makes: Sequence[Make], floors: Sequence[float] | None = None) -> list[Run | None]:
        """The best run of each make; None where the model does not fit or no run is worth more than its floor."""
        floor = dict.fromkeys(makes, math.inf)
        for make, least in zip(makes, floors or [0.0] * len(makes), strict=True):
            floor[make] = min(floor[make], least)
        by_stages: dict[int, list[Make]] = defaultdict(list)
        for make, least in floor.items():
            if make not in self._known and self._at_most.get(make, math.inf) > least:
                by_stages[make.stages].append(make)
        for stages, same in by_stages.items():
            runs: list[Run | None] = [None] * len(same)
            if stages <= self.times.max_stages:
                runs = _Search(self.times, stages, same, [floor[make] for make in same]).run()
            for make, run in zip(same, runs, strict=True):
                if run is None and floor[make] > 0:
                    self._at_most[make] = floor[make]
                else:
                    self._known[make] = run
        return [self._known.get(make) for make in makes]


class _Search:
    """One search over makes with equally many stages."""

    def __init__(self, times: StageTimes, stages: int, makes: Sequence[Make], floors: Sequence[float]) -> None:
        self.times, self.stages, self.makes = times, stages, makes
        kinds = sorted({kind for make in makes for group in make.groups for kind, _ in group.kinds})
        self.levels = times.seat_levels(stages, kinds)
        self.questions = [question for number, make in enumerate(makes) for question in _questions(times, number, make)]
        self.width = max(len(question.kinds) for question in self.questions)
        self.best = [_Best(floor) for floor in floors]

    def run(self) -> list[Run | None]:
        edges = np.unique(np.linspace(0, len(self.levels), RANGES + 1).astype(np.int64))
        self._pieces = [(int(a), int(b)) for a, b in pairwise(edges)]
        spans = [(question, a, b) for question in range(len(self.questions)) for a, b in self._pieces]
        heaps: list[list[tuple[float, int, int, int]]] = [[] for _ in self.makes]
        self._push(heaps, spans)
        while True:
            spans, points = [], []
            for number, heap in enumerate(heaps):
                best = self.best[number]
                taken = 0
                while heap and taken < SINGLE:
                    bound, question, a, b = heap[0]
                    if -bound <= best.value * (1 + RELATIVE):
                        heap.clear()
                        break
                    heapq.heappop(heap)
                    taken += 1
                    if b - a <= SINGLE:
                        points += [(question, level) for level in range(a, b)]
                    else:
                        cuts = np.unique(np.linspace(a, b, PIECES + 1).astype(np.int64))
                        spans += [(question, int(x), int(y)) for x, y in pairwise(cuts)]
            if not spans and not points:
                break
            self._try(points)
            self._push(heaps, spans)
        return [self._realise(number) for number in range(len(self.makes))]

    def _push(self, heaps: list[list[tuple[float, int, int, int]]], spans: list[tuple[int, int, int]]) -> None:
        """Bound every span of levels and keep those that may beat the best."""
        if not spans:
            return
        keys = sorted({(a, b) for _, a, b in spans})
        at = {key: i for i, key in enumerate(keys)}
        low = np.array([self.levels[a] for a, _ in keys])
        high = np.array([self.levels[b - 1] for _, b in keys])
        regimes = self.times.regimes(self.stages, low, high)
        cover = self._cover(regimes, [question for question, _, _ in spans], np.array([at[a, b] for _, a, b in spans]))
        below, above = least_period(cover, rounds=6, tolerance=1e-3)
        work = regimes.work[[at[a, b] for _, a, b in spans]]
        values = np.where(np.isfinite(above), work / below, 0.0)
        for (question, a, b), value in zip(spans, values, strict=True):
            make = self.questions[question].make
            if value > self.best[make].value * (1 + RELATIVE):
                heapq.heappush(heaps[make], (-float(value), question, a, b))

    def _try(self, points: list[tuple[int, int]]) -> None:
        """Exact values at single levels of seats."""
        if not points:
            return
        keys = sorted({level for _, level in points})
        at = {key: i for i, key in enumerate(keys)}
        needed: list[set[int]] = [set() for _ in keys]
        for question, level in points:
            needed[at[level]].update(self.questions[question].kinds)
        regimes = self.times.points(self.stages, self.levels[keys], needed)
        index = np.array([at[level] for _, level in points])
        cover = self._cover(regimes, [question for question, _ in points], index)
        _, above = least_period(cover)
        values = np.where(np.isfinite(above), regimes.work[index] / above, 0.0)
        for (question, level), value, period in zip(points, values, above, strict=True):
            best = self.best[self.questions[question].make]
            if value > best.value:
                best.value, best.question, best.period_s = float(value), question, float(period)
                best.seats = float(self.levels[level])

    def _cover(self, regimes: Regimes, questions: list[int], index: np.ndarray) -> Cover:
        """Rows for `covering`: question i under range `index[i]`."""
        kinds = np.zeros((len(questions), self.width), dtype=np.intp)
        positions = np.zeros_like(kinds)
        counts = np.zeros((len(questions), self.width))
        for i, number in enumerate(questions):
            question = self.questions[number]
            size = len(question.kinds)
            kinds[i, :size], positions[i, :size], counts[i, :size] = question.kinds, question.positions, question.counts
            kinds[i, size:] = question.kinds[0]  # none of it, but of a kind whose times are known here
        hops = {number: self._hops(regimes, self.questions[number]) for number in set(questions)}
        total = np.array([hops[number][0][i] for number, i in zip(questions, index, strict=True)])
        longest = np.array([hops[number][1][i] for number, i in zip(questions, index, strict=True)])
        rows = index[:, None]
        return Cover(
            layers=self.times.layers,
            stages=self.stages,
            counts=counts,
            layer_s=regimes.layer_s[rows, kinds],
            fixed_s=regimes.fixed_s[rows, positions, kinds],
            pace_layer_s=regimes.pace_layer_s[rows, kinds],
            pace_fixed_s=regimes.pace_fixed_s[rows, positions, kinds],
            room=regimes.room[rows, positions, kinds].astype(np.float64),
            in_flight=regimes.in_flight[index],
            lost_s=regimes.round_s[index] + total,
            floor_s=longest,
        )

    def _hops(self, regimes: Regimes, question: Question) -> tuple[np.ndarray, np.ndarray]:
        """All hops of a round, and the longest of them."""
        groups = self.makes[question.make].groups
        remote = [regimes.pace_remote_hop_s[:, group.kinds[0][0]] for group in groups]
        ends, machines = question.ends, [group.machines for group in groups]
        total = least_hops_s(remote, machines, ends.first[0], ends.last[0], ends.together)
        longest = np.zeros_like(total)
        if sum(machines) > 1:
            longest = np.stack([regimes.remote_hop_s[:, group.kinds[0][0]] for group in groups]).max(axis=0)
        for group in groups:
            local = [regimes.pace_local_hop_s[:, kind] for kind, number in group.kinds for _ in range(number)]
            stay = len(local) - group.machines
            if stay > 0:
                total = total + np.sort(np.stack(local), axis=0)[:stay].sum(axis=0)
        return total, longest

    def _realise(self, number: int) -> Run | None:
        """The pipeline behind the best value, confirmed by the estimator."""
        best = self.best[number]
        if best.question < 0:
            return None
        question, make = self.questions[best.question], self.makes[number]
        regimes = self.times.points(self.stages, np.array([best.seats]), [question.kinds])
        cover = self._cover(regimes, [best.question], np.array([0]))
        held, able, _ = split(cover, np.array([best.period_s]))
        if not able[0]:
            held, _, _ = split(cover, np.array([best.period_s * (1 + RELATIVE)]))
        shares: dict[tuple[int, int], list[int]] = {}
        for kind, position, count, layers in zip(
            question.kinds, question.positions, question.counts, held[0], strict=False
        ):
            if count:
                shares[kind, position] = _evenly(round(float(layers)), count)
        stages, places = _order(self.times, make, question.ends, shares, regimes)
        rps = self.times.rps(stages)
        if rps <= 0:
            return None
        return Run(rps, max(best.value * (1 + RELATIVE), rps), stages, places)


def _evenly(layers: int, stages: int) -> list[int]:
    """Whole layers for each of equal stages, the deeper ones first."""
    each, over = divmod(layers, stages)
    return [each + (i < over) for i in range(stages)]


def _questions(times: StageTimes, number: int, make: Make) -> list[Question]:
    """One question for every pair of ends that the make allows."""
    slots = [(g, kind) for g, group in enumerate(make.groups) for kind, _ in group.kinds]
    have = {(g, kind): count for g, group in enumerate(make.groups) for kind, count in group.kinds}
    if make.stages == 1:
        return [Question(number, Ends(slots[0], slots[0], True), (slots[0][1],), (ONLY,), (1,))]
    result = []
    for first in slots:
        for last in slots:
            if first == last and have[first] < 2:
                continue
            middle: dict[int, int] = defaultdict(int)
            for slot in slots:
                middle[slot[1]] += have[slot] - (slot == first) - (slot == last)
            inner = [(kind, count) for kind, count in middle.items() if count]
            result.append(
                Question(
                    number,
                    Ends(
                        first, last, first[0] == last[0] and not _apart(times, make.groups[first[0]], first[1], last[1])
                    ),
                    (*(kind for kind, _ in inner), first[1], last[1]),
                    (*(MIDDLE for _ in inner), FIRST, LAST),
                    (*(count for _, count in inner), 1, 1),
                )
            )
    return result


def _order(
    times: StageTimes, make: Make, ends: Ends, shares: dict[tuple[int, int], list[int]], regimes: Regimes
) -> tuple[tuple[Seat, ...], tuple[tuple[int, int], ...]]:
    """Stages from front to back, those of one machine together, and the (group, machine) of each."""
    if make.stages == 1:
        kind = ends.first[1]
        return (Seat(kind, shares[kind, ONLY][0]),), ((ends.first[0], 0),)
    loads = {
        (g, machine): load
        for g in range(len(make.groups))
        for machine, load in enumerate(_packed(times, make, g, ends))
    }
    front = next(machine for machine, load in loads.items() if (ends.first[1], FIRST) in load)
    back = next(machine for machine, load in loads.items() if (ends.last[1], LAST) in load)
    hop_s = {machine: float(regimes.pace_remote_hop_s[0, load[0][0]]) for machine, load in loads.items()}
    between = [machine for machine in loads if machine not in (front, back)]
    between.sort(key=lambda machine: (hop_s[machine] if hop_s[back] > hop_s[front] else -hop_s[machine], machine))
    row: list[tuple[int, int, tuple[int, int]]] = []
    for machine in [front, *between, *([back] if back != front else [])]:
        load = sorted(
            loads[machine], key=lambda part: (part[1] != FIRST, regimes.pace_local_hop_s[0, part[0]], part[0])
        )
        row += [(kind, position, machine) for kind, position in load if position != LAST]
    row.append((ends.last[1], LAST, back))
    left = {slot: list(layers) for slot, layers in shares.items()}
    stages = tuple(
        Seat(kind, left[kind, position].pop(0), at + 1 < len(row) and row[at + 1][2] == machine)
        for at, (kind, position, machine) in enumerate(row)
    )
    return stages, tuple(machine for _, _, machine in row)


def _packed(times: StageTimes, make: Make, group: int, ends: Ends) -> list[list[tuple[int, int]]]:
    """(kind, position) of the stages on each machine of a group; the two ends on different ones where they can be."""
    parts: list[tuple[int, int]] = []
    fixed: list[tuple[int, int]] = []
    for kind, number in make.groups[group].kinds:
        here = [(kind, FIRST)] * (ends.first == (group, kind)) + [(kind, LAST)] * (ends.last == (group, kind))
        parts += [(kind, MIDDLE)] * (number - len(here))
        fixed += here
    if ends.together:
        parts, fixed = fixed + parts, []
    packed = _fill(times, parts, fixed)
    return [load for load in packed if load]


def _fill(
    times: StageTimes, parts: Sequence[tuple[int, int]], fixed: Sequence[tuple[int, int]]
) -> list[list[tuple[int, int]]]:
    """First fit, largest parts first, each part of `fixed` on a machine of its own beforehand.

    With sizes that are powers of two it makes no difference which machine a part goes to, so this needs the fewest.
    """
    gpus = times.kinds[(fixed or parts)[0][0]].machine_gpus
    machines = [[part] for part in fixed]
    free = [gpus - times.kinds[kind].tp for kind, _ in fixed]
    for part in sorted(parts, key=lambda part: (-times.kinds[part[0]].tp, part)):
        tp = times.kinds[part[0]].tp
        at = next((i for i, left in enumerate(free) if left >= tp), len(free))
        if at == len(free):
            machines.append([])
            free.append(gpus)
        machines[at].append(part)
        free[at] -= tp
    return machines


def _apart(times: StageTimes, group: Group, first: int, last: int) -> bool:
    """Whether the group's machines can hold its stages with these two on different ones."""
    parts = [(kind, MIDDLE) for kind, number in group.kinds for _ in range(number)]
    parts.remove((first, MIDDLE))
    parts.remove((last, MIDDLE))
    return group.machines > 1 and len(_fill(times, parts, [(first, FIRST), (last, LAST)])) <= group.machines

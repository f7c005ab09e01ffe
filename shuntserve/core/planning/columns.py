"""One pipeline as a column of the master problem: what it is made of, what it takes and what it yields.

A pipeline is bought as a multiset of *offers*: so many stages of this kind from that pool. `Workshop` knows what such
a multiset takes from the pools and turns the best run of its *make* (the same multiset with pool names struck out, so
that pools of one type share the work) into a column.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shuntserve.core.planning.best_run import BestRuns, Group, Make, Run
from shuntserve.core.planning.master import MasterColumn, SlotRow, slot_rows
from shuntserve.core.planning.stage_times import Seat, StageTimes
from shuntserve.core.pools import Pool

Counts = tuple[tuple[int, int], ...]
"""(offer, stages) pairs in ascending order of offers."""


@dataclass(frozen=True)
class Offer:
    """Stages of one kind on machines of one pool; `machine_share` of a machine each, at most `most` of them."""

    pool: int
    kind: int
    gpus: int
    machine_share: float
    most: int


@dataclass(frozen=True)
class Place:
    """Where one stage stands: its pool and the number of its machine among the pipeline's machines of that pool."""

    pool: int
    machine: int


@dataclass(frozen=True)
class Column:
    """The best pipeline of one multiset.

    `rps` is expected goodput: the estimator's requests/s times the share of time the pipeline is up. No order or
    split of these stages yields more than `bound_rps`.
    """

    counts: Counts
    rps: float
    bound_rps: float
    steady_rps: float
    stages: tuple[Seat, ...]
    places: tuple[Place, ...]
    usage: tuple[tuple[int, float], ...]
    pools: frozenset[int]

    @property
    def master(self) -> MasterColumn:
        return MasterColumn(self.rps, self.usage, self.pools)

    @property
    def optimist(self) -> MasterColumn:
        """The column at its bound instead of its value."""
        return MasterColumn(self.bound_rps, self.usage, self.pools)


def offers_of(times: StageTimes, pools: Sequence[Pool]) -> tuple[Offer, ...]:
    """Every way to take stages out of the pools."""
    offers = []
    for number, pool in enumerate(pools):
        for index, kind in enumerate(times.kinds):
            if kind.instance_type == pool.instance_type and kind.tp <= kind.machine_gpus:
                most = pool.count * (kind.machine_gpus // kind.tp)
                offers.append(Offer(number, index, kind.tp, kind.tp / kind.machine_gpus, most))
    return tuple(offers)


@dataclass(frozen=True)
class Workshop:
    """Builds columns from offers. `recovery_s` is how long a pipeline yields nothing after losing a machine."""

    times: StageTimes
    pools: tuple[Pool, ...]
    recovery_s: float
    offers: tuple[Offer, ...] = field(init=False)
    slots: tuple[SlotRow, ...] = field(init=False)
    _runs: BestRuns = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        gpus = {kind.instance_type: kind.machine_gpus for kind in self.times.kinds}
        object.__setattr__(self, "offers", offers_of(self.times, self.pools))
        object.__setattr__(self, "slots", slot_rows([gpus.get(pool.instance_type, 1) for pool in self.pools]))
        object.__setattr__(self, "_runs", BestRuns(self.times))

    def usage(self, counts: Counts) -> tuple[tuple[int, float], ...]:
        """Blocks taken from each slot row."""
        taken = []
        for row, slot in enumerate(self.slots):
            blocks = sum(
                number * (self.offers[offer].gpus // slot.block)
                for offer, number in counts
                if self.offers[offer].pool == slot.pool and self.offers[offer].gpus >= slot.block
            )
            if blocks:
                taken.append((row, float(blocks)))
        return tuple(taken)

    def machines(self, counts: Counts) -> dict[int, int]:
        """Fewest machines of each pool that hold these stages."""
        result: dict[int, int] = {}
        for row, blocks in self.usage(counts):
            slot = self.slots[row]
            result[slot.pool] = max(result.get(slot.pool, 0), math.ceil(blocks / slot.per_machine - 1e-9))
        return result

    def up_share(self, machines: Mapping[int, int]) -> float:
        """Expected share of time a pipeline on these machines is up when each loss costs one recovery."""
        losses_per_h = sum(number * self.pools[pool].losses_per_h for pool, number in machines.items())
        return 1.0 / (1.0 + losses_per_h / 3600.0 * self.recovery_s)

    def make(self, counts: Counts) -> tuple[Make, tuple[int, ...]]:
        """The make of a multiset, and the pool behind each of its groups."""
        machines = self.machines(counts)
        by_pool: dict[int, list[tuple[int, int]]] = {}
        for offer, number in counts:
            by_pool.setdefault(self.offers[offer].pool, []).append((self.offers[offer].kind, number))
        paired = sorted((Group(tuple(sorted(kinds)), machines[pool]), pool) for pool, kinds in by_pool.items())
        return Make(tuple(group for group, _ in paired)), tuple(pool for _, pool in paired)

    def columns(self, wanted: Sequence[Counts], floors: Sequence[float] | None = None) -> list[Column | None]:
        """The columns of these multisets: None where the model does not fit, or goodput stays under the floor given."""
        made = [self.make(counts) for counts in wanted]
        ups = [self.up_share(self.machines(counts)) for counts in wanted]
        steady = [floor / up for floor, up in zip(floors or [0.0] * len(made), ups, strict=True)]
        runs = self._runs.of([make for make, _ in made], steady)
        return [
            None if run is None else self._column(counts, pools, run, up)
            for counts, (_, pools), run, up in zip(wanted, made, runs, ups, strict=True)
        ]

    def _column(self, counts: Counts, pools: tuple[int, ...], run: Run, up: float) -> Column:
        places = tuple(Place(pools[group], machine) for group, machine in run.places)
        return Column(
            counts, run.rps * up, run.bound_rps * up, run.rps, run.stages, places, self.usage(counts), frozenset(pools)
        )

"""The exact search for any objective: prices and quotas read off the points of the lattice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from shuntserve.core.planning.columns import Column, Workshop
from shuntserve.core.planning.fleet_search import Answer, Other, one_more
from shuntserve.core.planning.lattice import Found, Judge, Lattice, LatticeSearch
from shuntserve.core.planning.master import Quota
from shuntserve.core.planning.multisets import Multisets, enumerate_multisets
from shuntserve.core.planning.objectives import Objective

RUNNERS_UP = 3


def lattice_answer(
    workshop: Workshop,
    zones: Sequence[Sequence[int]],
    objective: Objective,
    quotas: Sequence[Quota],
    vcpus: Sequence[float],
    tolerance: float,
    out_of_time: Callable[[], bool],
) -> Answer:
    """Best plan, bound and runners-up over all multisets of stages."""
    multisets = enumerate_multisets(workshop, zones)
    if not len(multisets.bound_rps):
        return Answer.nothing(len(workshop.pools))
    lattice = Lattice(workshop)
    machines = lattice.machines()
    usd = machines @ np.array([pool.usd_per_h for pool in workshop.pools])
    allowed = _within_quotas(machines, quotas, vcpus)
    judge = _judge(objective, usd, allowed)
    search = LatticeSearch(workshop, multisets, judge)
    found = search.run(tolerance, out_of_time)
    if found.merit <= 0:
        return Answer.nothing(len(workshop.pools), found.bound)
    others = []
    for without in _distinct(found.columns)[:RUNNERS_UP]:
        other = search.without(found.columns[without])
        if other is not None:
            columns, point = other
            rps = sum(column.rps for column in columns)
            others.append(
                Other(without, tuple(columns), rps, float(usd[point]), objective.merit(float(usd[point]), rps))
            )
    return Answer(
        columns=found.columns,
        merit=found.merit,
        bound=found.bound,
        method="exact search over all multisets of stages",
        one_more_rps=one_more(workshop, found.known),
        runners_up=tuple(sorted(others, key=lambda other: -other.merit)),
        alternatives=_aligned(workshop, multisets, judge, found, tolerance, out_of_time),
    )


def _aligned(
    workshop: Workshop,
    multisets: Multisets,
    judge: Judge,
    found: Found,
    tolerance: float,
    out_of_time: Callable[[], bool],
) -> tuple[tuple[Column, ...], ...]:
    """The best plan of pipelines that fill machines or take a power of two of one's GPUs, so that none straddles two.

    Only looked for where the plan found has others.
    """
    lattice = Lattice(workshop)
    taken = np.stack(np.unravel_index(lattice.taken(multisets.counts), lattice.shape), axis=1)
    rest = taken % np.array(lattice.gpus)
    fits = ((rest & (rest - 1)) == 0).all(axis=1)
    wanted = {column.counts for column in found.columns}
    others = np.flatnonzero(~fits)
    if not fits.any() or not any(multisets.counts_of(int(row)) in wanted for row in others):
        return ()
    rows = np.flatnonzero(fits)
    kept = Multisets(multisets.counts[rows], multisets.bound_rps[rows])
    aligned = LatticeSearch(workshop, kept, judge).run(tolerance, out_of_time)
    return (aligned.columns,) if aligned.merit > 0 else ()


def _distinct(columns: Sequence[Column]) -> list[int]:
    """Numbers of the columns, the first of each kind, most valuable first."""
    first: dict[object, int] = {}
    for number, column in enumerate(columns):
        first.setdefault(column.counts, number)
    return sorted(first.values(), key=lambda number: -columns[number].rps)


def _within_quotas(machines: np.ndarray, quotas: Sequence[Quota], vcpus: Sequence[float]) -> np.ndarray:
    allowed = np.ones(len(machines), dtype=bool)
    for quota in quotas:
        used = sum(machines[:, pool] * vcpus[pool] for pool in quota.pools)
        allowed &= used <= quota.vcpus * (1 + 1e-9)
    return allowed


def _judge(objective: Objective, usd: np.ndarray, allowed: np.ndarray) -> Judge:
    points = np.flatnonzero(allowed)
    prices = [float(price) for price in usd[points]]

    def merit(rps: np.ndarray) -> np.ndarray:
        values = np.zeros(len(usd))
        values[points] = [objective.merit(price, float(r)) for price, r in zip(prices, rps[points], strict=True)]
        return values

    def least_rps(least: float) -> np.ndarray:
        values = np.full(len(usd), np.inf)
        values[points] = [objective.least_rps(price, least) for price in prices]
        return values

    return Judge(merit, least_rps)

"""The dynamic programme of the pricing problem: the cheapest pipeline of a cell, over stages and layers."""

from __future__ import annotations

import numpy as np

from shuntserve.core.planning.columns import Counts
from shuntserve.core.planning.stage_times import FIRST, LAST, MIDDLE, ONLY
from shuntserve.core.planning.tableau import Tableau

FEW = 8
"""Cells up to which all entries are laid out at once."""


def cheapest_s(tableau: Tableau, stages: int, share: np.ndarray) -> np.ndarray:
    """Lower bound on the cost of any pipeline of each cell, all of `stages` stages; infinite where none exists."""
    return np.maximum.reduce([_cheapest(tableau, stages, share, hop_s, once_s) for hop_s, once_s in tableau.hops])


def multiset(tableau: Tableau, stages: int, share: float) -> Counts | None:
    """The stages of the cheapest pipeline of a single cell."""
    one = np.array([share])
    layers = tableau.layers
    positions = (ONLY,) if stages == 1 else (LAST, MIDDLE, FIRST)
    deepest = _deepest(tableau, positions)
    if deepest * stages < layers:
        return None
    nu = tableau.nu(one)
    costs = [float(_cheapest(tableau, stages, one, *hops)[0]) for hops in tableau.hops]
    hop_s = tableau.hops[int(np.argmax(costs))][0]
    tables = {p: _columns(tableau, p, nu, hop_s, layers if stages == 1 else deepest) for p in positions}
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
        seconds = tableau.fixed_s(position)[0] + hop_s[0] + tableau.layer_s[0] * depth
        cost = np.where(tableau.capacity(position)[0] >= depth, tableau.cost[0] + nu[0] * seconds, np.inf)
        offer = tableau.entries[int(cost.argmin())].offer
        taken[offer] = taken.get(offer, 0) + 1
        left -= depth
    return tuple(sorted(taken.items()))


def _deepest(tableau: Tableau, positions: tuple[int, ...]) -> int:
    return int(max(tableau.capacity(p).max(initial=0) for p in positions))


def _columns(tableau: Tableau, position: int, nu: np.ndarray, hop_s: np.ndarray, deepest: int) -> np.ndarray:
    """[n, deepest + 1] least cost of one stage at this position by layers."""
    layers = np.arange(deepest + 1)
    result = np.full((len(nu), deepest + 1), np.inf)
    capacity = tableau.capacity(position)
    base = tableau.cost + nu[:, None] * (tableau.fixed_s(position) + hop_s)
    slope = nu[:, None] * tableau.layer_s
    if len(nu) <= FEW:
        lines = base[:, :, None] + slope[:, :, None] * layers
        result = np.where(layers > capacity[:, :, None], np.inf, lines).min(axis=1)
        result[:, 0] = np.inf
        return result
    for entry in range(base.shape[1]):
        most = int(capacity[:, entry].max(initial=0))
        if most >= 1:
            line = base[:, entry, None] + slope[:, entry, None] * layers[: most + 1]
            line[layers[: most + 1] > capacity[:, entry, None]] = np.inf
            np.minimum(result[:, : most + 1], line, out=result[:, : most + 1])
    result[:, 0] = np.inf
    return result


def _cheapest(tableau: Tableau, stages: int, share: np.ndarray, hop_s: np.ndarray, once_s: np.ndarray) -> np.ndarray:
    nu, layers = tableau.nu(share), tableau.layers
    deepest = _deepest(tableau, (ONLY,) if stages == 1 else (LAST, MIDDLE, FIRST))
    if deepest * stages < layers:
        return np.full(len(nu), np.inf)
    if stages == 1:
        total = _columns(tableau, ONLY, nu, hop_s, layers)[:, layers]
    else:
        held = np.full((len(nu), layers + 1), np.inf)
        last = _columns(tableau, LAST, nu, hop_s, deepest)
        held[:, : deepest + 1] = last[:, : layers + 1]
        if stages > 2:
            middle = _columns(tableau, MIDDLE, nu, hop_s, deepest)
            for placed in range(2, stages):
                held = _further(held, middle, placed, stages, deepest, layers)
        first = _columns(tableau, FIRST, nu, hop_s, deepest)
        total = np.full(len(nu), np.inf)
        for depth in range(1, min(deepest, layers - 1) + 1):
            np.minimum(total, first[:, depth] + held[:, layers - depth], out=total)
    return total + nu * (tableau.host_s + once_s)


def _further(held: np.ndarray, stage: np.ndarray, placed: int, stages: int, deepest: int, layers: int) -> np.ndarray:
    """One more stage in front: least cost of `placed` stages by layers, where the rest could still be held."""
    least = max(placed, layers - (stages - placed) * deepest)
    most = min(layers - (stages - placed), placed * deepest)
    result = np.full_like(held, np.inf)
    for depth in range(1, deepest + 1):
        start = max(least, depth + placed - 1)
        if start <= most:
            window = result[:, start : most + 1]
            np.minimum(window, stage[:, depth, None] + held[:, start - depth : most + 1 - depth], out=window)
    return result

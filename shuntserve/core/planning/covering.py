"""Can these stages hold all layers within a period? The least period of given stages, and the split that reaches it.

Each row of the arrays is one question; its stages come in groups of equal ones (last axis), `counts` says how many
stages each group has. Within a period T a stage holds min(room, ⌊(T − fixed)/layer_s⌋) layers, at least one; among the
splits that respect this the least total (paced) time fills the fastest stages first. So whether T is possible is
decided exactly, and a bisection finds the least T.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROUNDING = 1e-9
"""Share of a layer by which arithmetic may miss a whole one."""


@dataclass(frozen=True)
class Cover:
    """Rows of questions: [r, g] for the groups; [r] for micro-batches in flight, what a whole round loses to hops and
    host, and the least period that the longest hop allows."""

    layers: int
    stages: int
    counts: np.ndarray
    layer_s: np.ndarray
    fixed_s: np.ndarray
    pace_layer_s: np.ndarray
    pace_fixed_s: np.ndarray
    room: np.ndarray
    in_flight: np.ndarray
    lost_s: np.ndarray
    floor_s: np.ndarray

    def take(self, rows: np.ndarray) -> Cover:
        """Some of the rows."""
        names = (
            "counts", "layer_s", "fixed_s", "pace_layer_s", "pace_fixed_s", "room", "in_flight", "lost_s", "floor_s",
        )  # fmt: skip
        return Cover(self.layers, self.stages, *(getattr(self, name)[rows] for name in names))


def split(cover: Cover, period_s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Layers per group of the fastest-first split within `period_s`, whether it works, and the period it needs."""
    counts = cover.counts
    used = counts > 0
    by_time = np.floor((period_s[:, None] - cover.fixed_s) / cover.layer_s + ROUNDING)
    capacity = np.minimum(cover.room, by_time)
    able = np.all((capacity >= 1) | ~used, axis=1)
    spare = np.where(used, counts * np.maximum(capacity - 1, 0), 0.0)
    left = cover.layers - cover.stages
    able &= spare.sum(axis=1) >= left
    order = np.argsort(cover.pace_layer_s, axis=1, kind="stable")
    fastest = np.take_along_axis(spare, order, axis=1)
    before = np.cumsum(fastest, axis=1) - fastest
    taken = np.clip(left - before, 0.0, fastest)
    held = np.empty_like(taken)
    np.put_along_axis(held, order, taken, axis=1)
    held += counts
    work_s = (counts * cover.pace_fixed_s + held * cover.pace_layer_s).sum(axis=1)
    round_s = (work_s + cover.lost_s) / cover.in_flight
    able &= (round_s <= period_s * (1 + 1e-12)) & (cover.floor_s <= period_s * (1 + 1e-12))
    deepest = np.ceil(held / np.maximum(counts, 1) - ROUNDING)
    slowest = np.where(used, cover.fixed_s + cover.layer_s * deepest, 0.0).max(axis=1)
    return held, able, np.minimum(np.maximum(np.maximum(round_s, slowest), cover.floor_s), period_s)


def least_period(cover: Cover, rounds: int = 60, tolerance: float = 1e-7) -> tuple[np.ndarray, np.ndarray]:
    """Bracket [below, above] of each row's least period; `above` is infinite where the layers never fit.

    No period under `below` works, and the split at `above` works. With few `rounds` the bracket is wide but holds.
    """
    counts = cover.counts
    used = counts > 0
    least = np.where(used, cover.fixed_s + cover.layer_s, 0.0).max(axis=1)
    below = np.maximum(least, cover.floor_s)
    full = np.where(used, cover.fixed_s + cover.layer_s * np.maximum(cover.room, 0), 0.0)
    paced = np.where(used, cover.pace_fixed_s + cover.pace_layer_s * np.maximum(cover.room, 0), 0.0)
    above = np.maximum(full.max(axis=1), ((counts * paced).sum(axis=1) + cover.lost_s) / cover.in_flight)
    above = np.maximum(above, below) * (1 + 1e-9)
    _, able, needed = split(cover, above)
    above = np.where(able, needed, np.inf)
    open_rows = np.flatnonzero(able & (above > below * (1 + tolerance)))
    for _ in range(rounds):
        if not len(open_rows):
            break
        middle = np.sqrt(below[open_rows] * above[open_rows])
        _, able, needed = split(cover.take(open_rows), middle)
        above[open_rows[able]] = needed[able]
        below[open_rows[~able]] = middle[~able]
        open_rows = open_rows[above[open_rows] > below[open_rows] * (1 + tolerance)]
    return np.minimum(below, above), above

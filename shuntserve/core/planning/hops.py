"""The least that a pipeline pays for network hops when its machines may stand in any order between the two ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def least_hops_s(
    hop_s: Sequence[np.ndarray], machines: Sequence[int], first: int, last: int, comes_back: bool
) -> np.ndarray:
    """Least total of the hops of a chain over all machines, per row.

    Group g has `machines[g]` machines with hop time `hop_s[g]`; a hop costs what the slower of its two ends needs. The
    chain starts on a machine of group `first` and ends on another of group `last`, or comes back to the same one.

    For each level the machines at or above it form one block: inside the chain it is touched by one hop more than it
    has machines, at an end by as many, and a block of all machines by one less. One order meets all levels at once.
    """
    total = sum(machines)
    zero = np.zeros_like(hop_s[0])
    if total == 1:
        return zero
    edges_of_all = total if comes_back else total - 1
    order = sorted(range(len(machines)), key=lambda g: (float(hop_s[g][0]), g))
    result, level, remaining = zero, zero, total
    for rank, group in enumerate(order):
        above = set(order[rank:])
        if remaining == total:
            edges = edges_of_all
        elif comes_back or not (first in above or last in above):
            edges = remaining + 1
        else:
            edges = remaining
        edges = min(edges, edges_of_all)
        result = result + (hop_s[group] - level) * edges
        level = hop_s[group]
        remaining -= machines[group]
    return result

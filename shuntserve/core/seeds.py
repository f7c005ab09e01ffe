"""A seed for every row, so that any interrupted generation can be continued anywhere."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

SEED_BITS = 62
"""Leaves room above a seed: sample i of a row uses seed + i, which must fit a signed 64-bit integer."""


def row_seeds(base: str, source_file: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Seeds in [0, 2**62), one a row, that depend on nothing but `base` and the row's identity (file, row).

    The rows of one file are spread by the finalizer of SplitMix64 (Steele, Lea and Flood, 2014), a bijection: rows of
    the same file collide only in the two bits that are dropped.
    """
    key = hashlib.sha256(f"{base}\0{source_file}".encode()).digest()
    offset = np.uint64(int.from_bytes(key[:8], "big"))
    with np.errstate(over="ignore"):
        state = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + offset
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return (state >> np.uint64(64 - SEED_BITS)).astype(np.int64)

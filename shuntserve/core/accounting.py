"""Counting rows so that none is lost and none is there twice, exactly and in an eighth of a byte a row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BIT = np.left_shift(np.uint8(1), np.arange(8, dtype=np.uint8))


class RowSet:
    """The rows seen so far, as (source file, row number); a bit for each, grown as needed.

    One billion rows take 125 MB, so the check that every row is in the output once needs no sampling and no luck.
    """

    def __init__(self) -> None:
        self._bits: dict[str, NDArray[np.uint8]] = {}
        self.rows = 0
        """Distinct rows seen."""
        self.duplicates = 0
        """How often a row was seen again."""

    @property
    def size_bytes(self) -> int:
        """Memory taken by the bits."""
        return sum(bits.nbytes for bits in self._bits.values())

    def add(self, source_file: str, source_rows: NDArray[np.int64]) -> None:
        """Note these rows of one file."""
        if not len(source_rows):
            return
        distinct = np.unique(source_rows)
        bits = self._bits_of(source_file, int(distinct[-1]))
        byte, mask = distinct >> 3, _BIT[distinct & 7]
        new = int(np.count_nonzero((bits[byte] & mask) == 0))
        np.bitwise_or.at(bits, byte, mask)
        self.rows += new
        self.duplicates += len(source_rows) - new

    def _bits_of(self, source_file: str, last_row: int) -> NDArray[np.uint8]:
        bits = self._bits.get(source_file)
        needed = (last_row >> 3) + 1
        if bits is None or len(bits) < needed:
            grown = np.zeros(max(needed, 1024, 0 if bits is None else 2 * len(bits)), np.uint8)
            if bits is not None:
                grown[: len(bits)] = bits
            self._bits[source_file] = bits = grown
        return bits

"""How rows become chunks: big ones first, small ones at the end, rows with a common prefix side by side.

Chunk sizes follow guided self-scheduling (Polychronopoulos and Kuck, 1987): a chunk takes a fixed share of what
remains for each worker, so that all workers end at nearly the same time without knowing how long a row takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PREFIX_DEPTHS_TOKENS = (16, 64, 256, 1024, 4096)
"""Depths at which prefixes are compared. vLLM's prefix cache shares blocks of 16 tokens: less is worth nothing."""


@dataclass(frozen=True, slots=True)
class ChunkPolicy:
    """Bounds of a chunk. `rounds` is how many chunks each expected worker would take if sizes stayed as they are."""

    expected_workers: int = 2
    rounds: int = 4
    min_rows: int = 8
    max_rows: int = 1024
    max_prompt_tokens: int = 1 << 20

    def __post_init__(self) -> None:
        if not (self.expected_workers >= 1 and self.rounds >= 1 and 1 <= self.min_rows <= self.max_rows):
            raise ValueError(f"not a chunk policy: {self}")
        if self.max_prompt_tokens < 1:
            raise ValueError(f"not a chunk policy: {self}")

    def rows_of_next_chunk(self, remaining_rows: int) -> int:
        """Rows the next chunk may hold while `remaining_rows` are not yet in a chunk. Never grows as they shrink."""
        share = math.ceil(remaining_rows / (self.rounds * self.expected_workers))
        return min(max(share, self.min_rows), self.max_rows)


def cut_chunks(
    prompt_tokens: Sequence[int] | npt.NDArray[np.integer], rows_after: int, policy: ChunkPolicy, *, flush: bool
) -> tuple[list[tuple[int, int]], int]:
    """Cut a window of rows into chunks: half-open ranges that cover [0, kept) without a gap, and `kept`.

    `rows_after` is how many rows may still come after the window. Unless `flush`, a last chunk that is not full is left
    out, so that the rows [kept, len) join the next window. A row with more tokens than a chunk may have is a chunk
    by itself.
    """
    totals = np.concatenate(([0], np.cumsum(np.asarray(prompt_tokens, dtype=np.int64))))
    count = len(totals) - 1
    ranges: list[tuple[int, int]] = []
    start = 0
    while start < count:
        by_rows = start + policy.rows_of_next_chunk(count - start + rows_after)
        by_tokens = int(np.searchsorted(totals, totals[start] + policy.max_prompt_tokens, side="right")) - 1
        end = max(start + 1, min(by_rows, by_tokens))
        if end == count and by_rows > count and not flush:
            break
        ranges.append((start, end))
        start = end
    return ranges, start


def group_by_prefix(tokens: npt.NDArray[np.int32], offsets: npt.NDArray[np.integer]) -> npt.NDArray[np.intp]:
    """An order of rows in which rows that share a prefix stand together, deeper prefixes closer.

    Row i is `tokens[offsets[i]:offsets[i + 1]]`. Groups stand in the order of their first row and rows that share
    nothing keep their place, so the order is the same for the same rows.
    """
    starts = np.asarray(offsets[:-1], dtype=np.int64)
    lengths = np.diff(np.asarray(offsets, dtype=np.int64))
    alike = np.arange(len(starts))
    """Rows that still share their whole prefix with another row."""
    prefix = np.zeros(len(starts), dtype=np.uint64)
    keys: list[npt.NDArray[np.int64]] = []
    compared = 0
    for depth in PREFIX_DEPTHS_TOKENS:
        if len(alike) < 2:
            break
        prefix[alike] += _hash_of_slices(tokens, starts[alike], lengths[alike], compared, depth)
        _, first, inverse, sizes = np.unique(prefix[alike], return_index=True, return_inverse=True, return_counts=True)
        key = np.arange(len(starts))
        key[alike] = alike[first[inverse]]
        keys.append(key)
        alike = alike[(sizes[inverse] > 1) & (lengths[alike] > depth)]
        compared = depth
    return np.lexsort(tuple(reversed(keys))) if keys else np.arange(len(starts))


def _hash_of_slices(
    tokens: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    begin: int,
    end: int,
) -> npt.NDArray[np.uint64]:
    """For each row a sum over its tokens [begin, end), or as many as it has, by their places; modulo 2**64."""
    sums = np.zeros(len(starts), dtype=np.uint64)
    for position in range(begin, min(end, int(lengths.max(initial=0)))):
        rows = np.nonzero(lengths > position)[0]
        sums[rows] += _scatter(tokens[starts[rows] + position], position)
    return sums


def _scatter(tokens: npt.NDArray[np.int32], position: int) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64 over (token, position)."""
    with np.errstate(over="ignore"):
        state = tokens.astype(np.uint64) + np.uint64((position + 1) * 0x9E3779B97F4A7C15 % 2**64)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))

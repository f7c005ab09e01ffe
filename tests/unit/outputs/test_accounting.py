"""Counting rows: exact, in any order, for any row numbers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shuntserve.core.accounting import RowSet

BATCHES = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.lists(st.integers(0, 70_000), max_size=30)),
    max_size=20,
)


@given(BATCHES)
def test_distinct_rows_and_repetitions_are_exact(batches: list[tuple[str, list[int]]]) -> None:
    """Whatever comes in whatever batches, the counts are those of a plain set."""
    rows = RowSet()
    everything = [(name, row) for name, batch in batches for row in batch]

    for name, batch in batches:
        rows.add(name, np.array(batch, np.int64))

    assert rows.rows == len(set(everything))
    assert rows.duplicates == len(everything) - len(set(everything))


def test_ten_million_rows_take_little_memory() -> None:
    """The set costs bits, not objects: ten million rows fit in four megabytes."""
    rows = RowSet()

    for start in range(0, 10_000_000, 1_000_000):
        rows.add("a", np.arange(start, start + 1_000_000))

    assert rows.rows == 10_000_000
    assert rows.size_bytes <= 4 << 20

"""Chunk sizes, prefix order and seeds: what holds for every input."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shuntserve.core.chunking import ChunkPolicy, cut_chunks, group_by_prefix
from shuntserve.core.sampling import MAX_SEED
from shuntserve.core.seeds import row_seeds

policies = st.builds(
    lambda workers, rounds, low, more, tokens: ChunkPolicy(workers, rounds, low, low + more, tokens),
    st.integers(1, 20),
    st.integers(1, 8),
    st.integers(1, 20),
    st.integers(0, 200),
    st.integers(1, 5000),
)


@given(st.lists(st.integers(1, 600), max_size=300), st.integers(0, 2000), policies, st.booleans())
def test_chunks_cover_the_window_exactly_once(tokens: list[int], after: int, policy: ChunkPolicy, flush: bool) -> None:
    """Ranges follow one another without gap or overlap up to `kept`, which is everything when flushing."""
    ranges, kept = cut_chunks(tokens, after, policy, flush=flush)

    position = 0
    for begin, end in ranges:
        assert begin == position < end
        position = end
    assert position == kept
    assert kept == len(tokens) if flush else kept <= len(tokens)


@given(st.lists(st.integers(1, 600), max_size=300), st.integers(0, 2000), policies)
def test_no_chunk_is_larger_than_its_bounds(tokens: list[int], after: int, policy: ChunkPolicy) -> None:
    """Rows stay within the share that remains; tokens within the bound unless one row alone exceeds it."""
    ranges, _ = cut_chunks(tokens, after, policy, flush=True)

    for begin, end in ranges:
        assert end - begin <= policy.rows_of_next_chunk(len(tokens) - begin + after) <= policy.max_rows
        assert end - begin == 1 or sum(tokens[begin:end]) <= policy.max_prompt_tokens


@given(st.integers(1, 3000), policies.map(lambda p: ChunkPolicy(p.expected_workers, p.rounds, p.min_rows, p.max_rows)))
def test_chunks_shrink_and_never_grow(rows: int, policy: ChunkPolicy) -> None:
    """Without a bound on tokens, sizes never increase towards the end, and none but the last is below the least."""
    ranges, _ = cut_chunks([1] * rows, 0, policy, flush=True)

    sizes = [end - begin for begin, end in ranges]
    assert sizes == sorted(sizes, reverse=True)
    assert all(size >= policy.min_rows for size in sizes[:-1])


@given(st.lists(st.lists(st.integers(1, 40), max_size=60), min_size=1, max_size=8), policies)
def test_windows_change_nothing_about_coverage(windows: list[list[int]], policy: ChunkPolicy) -> None:
    """Rows left over by one window are the first of the next: over all windows each row is in one chunk."""
    total, done, rest = sum(map(len, windows)), 0, list[int]()
    after = total
    for index, window in enumerate(windows):
        after -= len(window)
        rows = rest + window
        ranges, kept = cut_chunks(rows, after, policy, flush=index == len(windows) - 1)
        done += sum(end - begin for begin, end in ranges)
        rest = rows[kept:]

    assert done == total
    assert rest == []


@given(st.lists(st.lists(st.integers(0, 2), max_size=40), max_size=60))
def test_rows_with_a_common_prefix_stand_together(rows: list[list[int]]) -> None:
    """Of rows that share their first 16 tokens nothing else stands between; groups keep the order of their first
    row."""
    tokens = np.array([token for row in rows for token in row], dtype=np.int32)
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int32)

    order = group_by_prefix(tokens, offsets)

    assert sorted(order.tolist()) == list(range(len(rows)))
    prefixes = [tuple(rows[index][:16]) for index in order]
    runs = [prefix for index, prefix in enumerate(prefixes) if index == 0 or prefixes[index - 1] != prefix]
    assert len(runs) == len(set(runs))
    firsts = [min(index for index, row in enumerate(rows) if tuple(row[:16]) == run) for run in runs]
    assert firsts == sorted(firsts)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2), st.integers(0, 9)), min_size=2, max_size=40))
def test_deeper_prefixes_stand_closer(kinds: list[tuple[int, int, int]]) -> None:
    """Within a group, rows that also share their first 64 tokens stand together."""
    rows = [[first] * 16 + [second] * 48 + [third] * 3 for first, second, third in kinds]
    tokens = np.array([token for row in rows for token in row], dtype=np.int32)
    offsets = np.arange(len(rows) + 1, dtype=np.int32) * 67

    order = group_by_prefix(tokens, offsets)

    for depth in (1, 2, 3):
        prefixes = [kinds[index][:depth] for index in order]
        runs = [prefix for index, prefix in enumerate(prefixes) if index == 0 or prefixes[index - 1] != prefix]
        assert len(runs) == len(set(runs))


@given(st.text(max_size=5), st.text(max_size=5), st.lists(st.integers(0, 2**40), min_size=1, unique=True))
def test_seeds_fit_the_engine_and_depend_on_the_row_alone(base: str, file: str, rows: list[int]) -> None:
    """A row's seed is the same in whatever company it is computed, and leaves room for its samples."""
    seeds = row_seeds(base, file, np.array(rows, dtype=np.int64))

    assert ((seeds >= 0) & (seeds <= MAX_SEED)).all()
    assert seeds.tolist() == [int(row_seeds(base, file, np.array([row]))[0]) for row in rows]


def test_seeds_of_a_million_rows_differ() -> None:
    """Neither neighbours nor files share seeds."""
    rows = np.arange(500_000)

    seeds = np.concatenate([row_seeds("base", "a", rows), row_seeds("base", "b", rows)])

    assert len(np.unique(seeds)) == len(seeds)

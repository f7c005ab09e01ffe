"""The check of one chunk's commit against the chunk: every row once, with all its samples or one reject."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shuntserve.errors import Corrupt

CHUNK_COLUMNS = ["source_file", "source_row", "request_id", "n"]
"""What the check reads of a chunk."""

_ROW = ["source_file", "source_row", "request_id"]


def check_commit(key: str, chunk: pa.Table, result: pa.Table) -> NDArray[np.int64]:
    """Index of the first result line of every chunk row; the lines stand in chunk order. Raises Corrupt.

    A row has either one line with a reject code, or `n` lines without one, numbered from 0.
    """
    first = _first_lines(result)
    if len(first) != len(chunk):
        raise _broken(key, f"holds {len(first)} rows for a chunk of {len(chunk)}")
    heads = result.select(_ROW).take(pa.array(first))
    for name in _ROW:
        mine, theirs = heads.column(name).combine_chunks(), chunk.column(name).combine_chunks()
        if not mine.equals(theirs):
            raise _broken(key, f"does not hold the chunk's rows ({name} differs)")
    lengths = np.diff(np.append(first, len(result)))
    rejected = pc.is_valid(result.column("code")).to_numpy()
    samples = chunk.column("n").to_numpy()
    if (lengths != np.where(rejected[first], 1, samples)).any():
        raise _broken(key, "holds a row with too many or too few samples")
    position = np.arange(len(result)) - np.repeat(first, lengths)
    in_place = result.column("sample_index").to_numpy() == position
    if not (in_place | rejected).all() or (rejected & (np.repeat(lengths, lengths) > 1)).any():
        raise _broken(key, "holds samples out of order")
    return first


def _first_lines(result: pa.Table) -> NDArray[np.int64]:
    if not len(result):
        return np.empty(0, np.int64)
    rows = result.column("source_row").to_numpy()
    files = result.column("source_file").combine_chunks()
    changed = rows[1:] != rows[:-1]
    changed |= pc.not_equal(files.slice(1), files.slice(0, len(files) - 1)).to_numpy(zero_copy_only=False)
    return np.concatenate(([0], np.flatnonzero(changed) + 1)).astype(np.int64)


def _broken(key: str, what: str) -> Corrupt:
    return Corrupt(key, what, "no output was declared complete; keep the bucket as it is and report this")

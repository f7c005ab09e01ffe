"""Parts: bounded files, all rows in order, the same bytes for the same rows."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve.job.parts import JsonlParts, ParquetParts

SCHEMA = pa.schema([("text", pa.string()), ("number", pa.int64())])


def table(start: int, rows: int) -> pa.Table:
    numbers = list(range(start, start + rows))
    texts = [hashlib.sha256(str(number).encode()).hexdigest() * 40 for number in numbers]
    return pa.table({"text": texts, "number": numbers}, schema=SCHEMA)


def write(sizes: list[int], part_bytes: int) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    parts = ParquetParts(files.__setitem__, "data", SCHEMA, part_bytes=part_bytes)
    start = 0
    for size in sizes:
        parts.add(table(start, size))
        start += size
    finished = parts.finish()
    assert [part.path for part in finished] == sorted(files)
    assert [part.sha256 for part in finished] == [hashlib.sha256(files[part.path]).hexdigest() for part in finished]
    assert sum(part.rows for part in finished) == start
    return files


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=6))
def test_all_rows_come_back_in_order(sizes: list[int]) -> None:
    """Reading the parts one after the other gives the rows that were added."""
    files = write(sizes, part_bytes=1 << 30)

    read = [
        number for path in sorted(files) for number in pq.read_table(pa.BufferReader(files[path]))["number"].to_pylist()
    ]

    assert read == list(range(sum(sizes)))


def test_a_full_part_is_closed_and_the_next_one_begun() -> None:
    """Rows beyond a part's size go to further parts; each opens by itself and holds what its entry says."""
    files = write([30_000, 30_000], part_bytes=1 << 20)

    assert len(files) == 2
    assert sum(pq.read_metadata(pa.BufferReader(body)).num_rows for body in files.values()) == 60_000


def test_equal_rows_make_equal_files() -> None:
    """Nothing but the rows decides the bytes."""
    assert write([30_000, 500], 1 << 20) == write([30_000, 500], 1 << 20)


def test_jsonl_goes_on_in_a_second_file() -> None:
    """One file as long as it fits, numbered ones after it; no line is split."""
    files: dict[str, bytes] = {}
    parts = JsonlParts(files.__setitem__, "output", part_bytes=10)

    parts.add([b"aaaa\n", b"bbbb\n", b"cccc\n"])
    finished = parts.finish()

    assert [(part.path, part.rows) for part in finished] == [("output.jsonl", 2), ("output-000001.jsonl", 1)]
    assert b"".join(files[part.path] for part in finished) == b"aaaa\nbbbb\ncccc\n"


def test_jsonl_without_a_line_is_one_empty_file() -> None:
    """A reader finds the file it looks for also when it is empty."""
    files: dict[str, bytes] = {}

    JsonlParts(files.__setitem__, "errors").finish()

    assert files == {"errors.jsonl": b""}

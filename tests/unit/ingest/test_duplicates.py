"""Repeated ids: the first row by file and row number has the id, all others are rejected."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shuntserve.errors import Unavailable
from shuntserve.job import duplicates
from shuntserve.job.duplicates import DuplicateFinder
from tests.support.ingesting import ingest_columns, ingest_files


def test_the_first_row_by_file_and_number_keeps_the_id(tmp_path: Path, model: Path) -> None:
    """Duplicates are found across files and far apart, whatever stands between."""
    pq.write_table(pa.table({"request_id": ["x", "a", "x"], "prompt": ["1", "2", "3"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"request_id": ["b", "x", "a"], "prompt": ["4", "5", "6"]}), tmp_path / "b.parquet")

    done = ingest_files(str(tmp_path / "*.parquet"), model)

    assert [(row["source_file"], row["source_row"]) for row in done.rows] == [
        ("a.parquet", 0),
        ("a.parquet", 1),
        ("b.parquet", 0),
    ]
    assert [(row["source_file"], row["source_row"], row["code"]) for row in done.rejects] == [
        ("a.parquet", 2, "duplicate_id"),
        ("b.parquet", 1, "duplicate_id"),
        ("b.parquet", 2, "duplicate_id"),
    ]


def test_an_id_belongs_to_its_first_row_even_when_that_is_rejected(tmp_path: Path, model: Path) -> None:
    """Which row has an id does not depend on what else is wrong with it."""
    done = ingest_columns(tmp_path, model, {"request_id": ["x", "x"], "prompt": ["", "the fox"]})

    assert done.codes == {0: "empty_prompt", 1: "duplicate_id"}


def test_null_ids_are_no_duplicates_of_each_other(tmp_path: Path, model: Path) -> None:
    """They are rejected as what they are."""
    done = ingest_columns(tmp_path, model, {"request_id": [None, None, "x"], "prompt": ["1", "2", "3"]})

    assert done.codes == {0: "null_id", 1: "null_id"}


@pytest.mark.parametrize("rows_per_partition", [7, 100_000])
def test_partitions_find_what_a_set_finds(monkeypatch: pytest.MonkeyPatch, rows_per_partition: int) -> None:
    """With many partitions or one, the mask equals that of a set in memory that has seen every id in order."""
    monkeypatch.setattr(duplicates, "_ROWS_PER_PARTITION", rows_per_partition)
    rng = random.Random(5)
    ids = [None if rng.random() < 0.1 else f"id-{rng.randrange(300)}" for _ in range(1000)]
    seen: set[str] = set()
    expected = []
    for value in ids:
        expected.append(value is not None and value in seen)
        seen.add(value or "")

    with DuplicateFinder(len(ids)) as finder:
        for begin in range(0, len(ids), 64):
            finder.add(ids[begin : begin + 64], np.arange(begin, min(begin + 64, len(ids))))
        found = finder.finish()
        mask = finder.mask(np.arange(len(ids)))

    assert mask.tolist() == expected
    assert found == sum(expected)


def test_a_full_scratch_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what is full and which setting moves it elsewhere."""
    with DuplicateFinder(10) as finder, open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(finder, "_files", [full])

        with pytest.raises(Unavailable, match=r"is full.*TMPDIR"):
            finder.add(["a"], np.arange(1))


def test_scratch_space_has_no_names_that_a_crash_could_leave(tmp_path: Path) -> None:
    """Nothing stands in the scratch directory even while it is in use."""
    with DuplicateFinder(10, str(tmp_path)) as finder:
        finder.add(["a", "a"], np.arange(2))
        finder.finish()

        assert list(tmp_path.iterdir()) == []


def test_ids_that_are_made_are_not_compared(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an id column there is no first pass and no scratch space."""

    def refuse(*_: Any) -> None:
        raise AssertionError("no scratch space is needed")

    monkeypatch.setattr(duplicates, "_scratch_file", refuse)

    assert len(ingest_columns(tmp_path, model, {"prompt": ["the fox"]}).rows) == 1

"""Finalize: every row once, the same files every time, complete only when it says so."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import duckdb
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shuntserve.core.states import JobState
from shuntserve.errors import Conflict, Corrupt
from shuntserve.job import final as finals
from shuntserve.job.final import Final
from shuntserve.job.finalize import finalize
from shuntserve.job.output_place import OutputPlace
from shuntserve.store import keys
from shuntserve.store.open import open_bucket
from shuntserve.store.port import Bucket
from tests.unit.outputs.builders import Job, Row, commit_body, place_in, spec_with

NULL_ID = {"source_file": "a.parquet", "source_row": 1, "request_id": None, "code": "null_id", "message": "no id"}


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return open_bucket(tmp_path / "store")


@pytest.fixture
def place(tmp_path: Path) -> OutputPlace:
    place = place_in(tmp_path / "out")
    place.reserve("job-1", "memory://store", overwrite=False)
    return place


def run(job: Job, place: OutputPlace, writer: str = "w1") -> Final:
    return finalize(job.bucket, job.spec, job.sealed, job.carried, place, writer)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_each_row_is_in_data_or_in_rejects(bucket: Bucket, place: OutputPlace, tmp_path: Path) -> None:
    """Rows with output go to data, rejected rows and rows ingest refused go to rejects, nothing is in both."""
    rows = [
        Row(0, ["hello"]),
        Row(
            2,
            [
                "",
            ],
            finish="length",
        ),
        Row(3, [""], code="engine_crash"),
    ]
    job = Job(bucket, [rows[:2], rows[2:]], [NULL_ID]).commit()

    end = run(job, place)

    data = pq.read_table(tmp_path / "out/data").to_pylist()
    rejects = pq.read_table(tmp_path / "out/rejects").to_pylist()
    assert [row["request_id"] for row in data] == ["a.parquet:0", "a.parquet:2"]
    assert data[0] == {
        "request_id": "a.parquet:0",
        "output_text": "hello",
        "finish_reason": "stop",
        "prompt_tokens": 3,
        "completion_tokens": 5,
        "resumed_count": 0,
    }
    assert [(row["source_row"], row["code"]) for row in rejects] == [(1, "null_id"), (3, "engine_crash")]
    assert (end.counts.rows_in, end.counts.rows_out, end.counts.rows_rejected) == (4, 2, 2)
    assert end.reject_codes == {"engine_crash": 1, "null_id": 1}
    assert end.counts.length_finishes == 1
    assert end.state is JobState.COMPLETED_WITH_REJECTS


def test_the_manifest_names_every_part_with_its_hash(bucket: Bucket, place: OutputPlace, tmp_path: Path) -> None:
    """`_manifest.json` lists exactly the files that are there, and their hashes are right."""
    run(Job(bucket, [[Row(0)]]).commit(), place)

    manifest = json.loads((tmp_path / "out/_manifest.json").read_text())
    listed = {part["path"]: part["sha256"] for part in manifest["data"] + manifest["rejects"]}
    there = {
        name: hashlib.sha256(body).hexdigest()
        for name, body in snapshot(tmp_path / "out").items()
        if not name.startswith("_")
    }
    assert listed == there
    assert manifest["state"] == "COMPLETED"


def test_finalizing_again_changes_no_byte(bucket: Bucket, place: OutputPlace, tmp_path: Path) -> None:
    """A rerun, by another writer and after the manifest was lost, makes the very same files."""
    job = Job(bucket, [[Row(i, [f"text {i}"]) for i in range(50)], [Row(i) for i in range(50, 60)]]).commit()
    run(job, place)
    before = snapshot(tmp_path / "out")
    (tmp_path / "out/_manifest.json").unlink()

    run(job, place, writer="w2")

    assert snapshot(tmp_path / "out") == before


def test_another_place_gets_the_same_parts(bucket: Bucket, place: OutputPlace, tmp_path: Path) -> None:
    """The output of a finished job can be written to a second place, and is the same there."""
    job = Job(bucket, [[Row(0), Row(1)]]).commit()
    run(job, place)
    other = place_in(tmp_path / "other")
    other.reserve("job-1", "memory://store", overwrite=False)

    run(job, other)

    differing = {"_job.json"}
    here, there = snapshot(tmp_path / "out"), snapshot(tmp_path / "other")
    assert {name: body for name, body in here.items() if name not in differing} == {
        name: body for name, body in there.items() if name not in differing
    }


def test_leftovers_of_a_crashed_run_are_gone(bucket: Bucket, place: OutputPlace, tmp_path: Path) -> None:
    """Parts nobody names (a crashed run had more of them) do not survive: a glob reads each row once."""
    job = Job(bucket, [[Row(0)]]).commit()
    place.put("data/part-000007.parquet", b"half a file")

    run(job, place)

    assert pq.read_table(tmp_path / "out/data").num_rows == 1


def test_a_lost_part_is_written_again(bucket: Bucket, place: OutputPlace, tmp_path: Path) -> None:
    """When a file of a complete output was deleted, running again restores it."""
    job = Job(bucket, [[Row(0)]]).commit()
    run(job, place)
    (tmp_path / "out/data/part-000000.parquet").unlink()

    run(job, place)

    assert pq.read_table(tmp_path / "out/data").num_rows == 1


class Crash(Exception):
    """The process ends here."""


class Dying:
    """One of several buckets whose process dies at the n-th write to any of them, before or after it took effect."""

    def __init__(self, inner: Bucket, writes_left: list[int], *, after: bool) -> None:
        self._inner = inner
        self._writes_left = writes_left
        self._after = after

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._inner, name)
        return self._mortal(verb) if name in ("put", "create", "delete") else verb

    def _mortal(self, verb: Callable[..., Any]) -> Callable[..., Any]:
        def write(*args: object) -> Any:
            self._writes_left[0] -= 1
            if self._writes_left[0] == 0 and not self._after:
                raise Crash
            value = verb(*args)
            if self._writes_left[0] == 0:
                raise Crash
            return value

        return write


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("fatal_write", range(1, 8))
def test_a_crash_at_any_write_leaves_nothing_wrong(
    bucket: Bucket, place: OutputPlace, tmp_path: Path, fatal_write: int, after: bool
) -> None:
    """Killed at any write, in the output or in the bucket: no manifest without all parts, and a rerun completes."""
    place.put("data/part-000003.parquet", b"older leftovers")
    job = Job(bucket, [[Row(0), Row(1)], [Row(2)]], [{**NULL_ID, "source_row": 9}]).commit()
    left = [fatal_write]
    died = False
    try:
        finalize(
            cast("Bucket", Dying(bucket, left, after=after)),
            job.spec,
            job.sealed,
            None,
            OutputPlace(cast("Bucket", Dying(open_bucket(tmp_path / "out"), left, after=after))),
            "w1",
        )
    except Crash:
        died = True
    if (tmp_path / "out/_manifest.json").exists():
        assert pq.read_table(tmp_path / "out/data").num_rows == 3

    end = run(job, place, writer="w2")

    assert died or fatal_write > 5
    assert pq.read_table(tmp_path / "out/data").num_rows == 3
    assert pq.read_table(tmp_path / "out/rejects").num_rows == 1
    assert sorted(end.paths) == sorted(name for name in snapshot(tmp_path / "out") if not name.startswith("_"))


def test_a_chunk_without_commit_is_a_conflict(bucket: Bucket, place: OutputPlace, tmp_path: Path) -> None:
    """Finalizing too early fails and completes nothing."""
    job = Job(bucket, [[Row(0)], [Row(1)]]).commit(only=[0])

    with pytest.raises(Conflict, match="not committed"):
        run(job, place)

    assert not (tmp_path / "out/_manifest.json").exists()


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([Row(0)], "holds 1 rows for a chunk of 2"),
        ([Row(0), Row(1), Row(1)], "too many or too few samples"),
        ([Row(0), Row(2)], "source_row differs"),
        ([Row(1), Row(0)], "source_row differs"),
        ([Row(0), Row(1, ["a", "b"])], "too many or too few samples"),
        ([Row(0), Row(1, file="b.parquet")], "source_file differs"),
    ],
)
def test_a_commit_that_is_not_its_chunks_is_corrupt(
    bucket: Bucket, place: OutputPlace, tmp_path: Path, rows: list[Row], what: str
) -> None:
    """A commit with a row missing, doubled, foreign, out of order or with extra samples stops everything."""
    job = Job(bucket, [[Row(0), Row(1)]]).commit()
    bucket.put(keys.result("job-1", keys.chunk_id(0)), commit_body(rows))

    with pytest.raises(Corrupt, match=what):
        run(job, place)

    assert not (tmp_path / "out/_manifest.json").exists()
    assert finals.load_final(bucket, "job-1") is None


@pytest.mark.parametrize(
    ("chunks", "ingest_rejects", "what"),
    [
        ([[Row(0)], [Row(0)]], [], "1 are missing and 1 are there again"),
        ([[Row(0)], [Row(1)]], [NULL_ID], "1 are missing and 1 are there again"),
    ],
)
def test_a_row_in_two_places_is_corrupt(
    bucket: Bucket, place: OutputPlace, chunks: list[list[Row]], ingest_rejects: list[dict[str, object]], what: str
) -> None:
    """A row in two chunks, or in a chunk and among the rejects of ingest, is found by counting."""
    job = Job(bucket, chunks, ingest_rejects).commit()

    with pytest.raises(Corrupt, match=what):
        run(job, place)


def test_cancelled_rows_make_the_job_partial_and_keep_their_text(
    bucket: Bucket, place: OutputPlace, tmp_path: Path
) -> None:
    """A cancelled row is a reject with the text it had; a job with one is PARTIAL."""
    rows = [Row(0), Row(1, ["half"], code="cancelled"), Row(2, [""], code="cancelled")]
    job = Job(bucket, [rows]).commit()

    end = run(job, place)

    rejects = pq.read_table(tmp_path / "out/rejects").to_pylist()
    assert [(row["output_text"], row["completion_tokens"]) for row in rejects] == [("half", 4), (None, None)]
    assert end.state is JobState.PARTIAL
    assert end.counts.rows_stopped == 2


def test_samples_are_rows_of_their_own(bucket: Bucket, place: OutputPlace, tmp_path: Path) -> None:
    """With n > 1 each sample is a line of its own with its `sample_index`, and a row still counts once."""
    job = Job(bucket, [[Row(0, ["a", "b"]), Row(1, ["c", "d"])]], spec=spec_with(sampling_defaults={"n": 2})).commit()

    end = run(job, place)

    data = pq.read_table(tmp_path / "out/data").to_pylist()
    assert [(row["request_id"], row["sample_index"], row["output_text"]) for row in data] == [
        ("a.parquet:0", 0, "a"),
        ("a.parquet:0", 1, "b"),
        ("a.parquet:1", 0, "c"),
        ("a.parquet:1", 1, "d"),
    ]
    assert (end.counts.rows_out, end.counts.sequences_out) == (2, 4)


def test_a_rejected_row_with_samples_is_one_reject(bucket: Bucket, place: OutputPlace, tmp_path: Path) -> None:
    """A row of several samples that ends as a reject is one line in rejects."""
    rows = [Row(0, ["a", "b"], code="cancelled"), Row(1, ["c", "d"])]
    job = Job(bucket, [rows], spec=spec_with(sampling_defaults={"n": 2})).commit()

    end = run(job, place)

    assert pq.read_table(tmp_path / "out/rejects").num_rows == 1
    assert (end.counts.rows_out, end.counts.rows_rejected) == (1, 1)
    assert end.reject_codes == {"cancelled": 1}


def test_requested_columns_and_carried_columns_are_there(bucket: Bucket, place: OutputPlace, tmp_path: Path) -> None:
    """Token ids, logprobs and the user's own columns stand beside ours when asked for."""
    carried = pa.struct([("label", pa.string()), ("score", pa.list_(pa.float64()))])
    logprobs = [[{"token_id": 4, "logprob": -0.5, "rank": 1, "token": "x"}]]
    row = Row(0, ["x"], carried={"label": "L", "score": [1.0, 2.0]}, logprobs=logprobs)
    job = Job(bucket, [[row]], carried=carried, spec=spec_with(return_token_ids=True, return_logprobs=True)).commit()

    run(job, place)

    (line,) = pq.read_table(tmp_path / "out/data").to_pylist()
    assert line["output_token_ids"] == [0]
    assert line["logprobs"] == logprobs
    assert (line["label"], line["score"]) == ("L", [1.0, 2.0])


def test_resumed_rows_and_kept_tokens_are_summed(bucket: Bucket, place: OutputPlace) -> None:
    """The end says how many rows survived an interruption and how many tokens that saved."""
    job = Job(bucket, [[Row(0, resumed=2), Row(1)], [Row(2, resumed=1)]]).commit()

    end = run(job, place)

    assert (end.totals.resumed_rows, end.totals.tokens_kept) == (2, 6)


def test_a_job_without_output_still_has_readable_files(bucket: Bucket, place: OutputPlace, tmp_path: Path) -> None:
    """When every row was rejected, data is an empty table with its columns, and the state is FAILED."""
    job = Job(bucket, [], [{**NULL_ID, "source_row": 0}]).commit()

    end = run(job, place)

    assert pq.read_table(tmp_path / "out/data").num_rows == 0
    assert "output_text" in polars.read_parquet(tmp_path / "out/data/*.parquet").columns
    assert end.state is JobState.FAILED


def test_the_data_opens_in_polars_duckdb_and_pandas(bucket: Bucket, place: OutputPlace, tmp_path: Path) -> None:
    """The three common readers see the same rows through a glob or the directory."""
    rows = [Row(i, [f"text {i}"], logprobs=[[]] * len(f"text {i}")) for i in range(20)]
    run(Job(bucket, [rows[:10], rows[10:]], spec=spec_with(return_logprobs=True)).commit(), place)
    data = tmp_path / "out/data"

    texts = [
        polars.read_parquet(data / "*.parquet")["output_text"].to_list(),
        pandas.read_parquet(data)["output_text"].tolist(),
        [text for (text,) in duckdb.sql(f"select output_text from '{data}/*.parquet'").fetchall()],
    ]

    assert texts == [[f"text {i}" for i in range(20)]] * 3


def test_final_json_reads_back_as_it_was(bucket: Bucket, place: OutputPlace) -> None:
    """What `final.json` holds is what finalize returned."""
    end = run(Job(bucket, [[Row(0, code="cancelled")], [Row(1)]]).commit(), place)

    assert finals.load_final(bucket, "job-1") == end


class _LosesTheRace(OutputPlace):
    """A place that another process reserves for the same job between our two looks at it."""

    def _is_taken(self, owner: str | None) -> bool:
        if owner is None:
            OutputPlace(self._bucket).reserve("job-1", "memory://store", overwrite=False)
        return super()._is_taken(owner)


def test_two_that_reserve_a_place_for_one_job_at_once_both_have_it(tmp_path: Path) -> None:
    """The one that loses finds the other's marker, of its own job, and goes on."""
    racing = _LosesTheRace(open_bucket(tmp_path / "raced"))

    racing.reserve("job-1", "memory://store", overwrite=False)

    assert racing.owner() == "job-1"

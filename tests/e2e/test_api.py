"""The Python interface, on a local store and on S3."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from shuntserve import JobSpec, submit
from shuntserve.errors import Conflict
from tests.conformance.s3_server import S3Server
from tests.support.command import Workplace, prompts

pytestmark = pytest.mark.timeout(240)

STANDIN = {"engine": "shuntserve.wiring:standin_engine", "engine_options": {"seats": 8, "step_s": 0.001}}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    place = Workplace(tmp_path)
    place.write([*prompts(20), {"request_id": "bad", "prompt": ""}])
    return place


def spec(place: Workplace, **more: object) -> JobSpec:
    return JobSpec(
        input=place.directory / "prompts.parquet",
        model=place.model,
        max_reject_fraction=1,
        max_length_finish_fraction=1,
        **more,
    )


def test_submit_wait_results_rejects(place: Workplace) -> None:
    """A job is submitted, runs when waited for, and its rows come back as datasets (here from the outbox)."""
    job = submit(spec(place), store=place.directory / "store", workers=2, **STANDIN)
    with pytest.raises(Conflict, match="no output yet"):
        job.results()
    before = job.status().state

    result = job.wait()

    assert before == "SUBMITTED"
    assert job.status().state == "COMPLETED_WITH_REJECTS"
    assert result.exit_code == 0
    assert job.results().count_rows() == 20
    assert job.rejects().to_table()["code"].to_pylist() == ["empty_prompt"]
    assert f"outbox/{job.job_id}" in job.output_url


def test_cancel_before_anything_ran(place: Workplace) -> None:
    """A job that never ran is cancelled whole: every row is a reject, and says why."""
    job = submit(spec(place, output=place.directory / "out"), store=place.directory / "store", **STANDIN)

    result = job.cancel()

    assert result.final is not None
    assert str(result.final.state) == "PARTIAL"
    assert sorted(set(job.rejects().to_table()["code"].to_pylist())) == ["cancelled", "empty_prompt"]
    assert job.results().count_rows() == 0


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    server = S3Server()
    for name, value in {**server.environ, "AWS_ENDPOINT_URL": server.endpoint_url}.items():
        monkeypatch.setenv(name, value)
    server.make_bucket("bucket")
    yield server
    server.stop()


def test_input_store_and_output_may_all_be_in_s3(place: Workplace, s3: S3Server) -> None:
    """Parquet is read from S3, the job lives in S3, the output is written to S3; the same code, only other URLs."""
    import s3fs

    s3fs.S3FileSystem().put(str(place.directory / "prompts.parquet"), "bucket/inbox/prompts.parquet")
    job = submit(
        JobSpec(
            input="s3://bucket/inbox/prompts.parquet",
            model=place.model,
            output="s3://bucket/answers",
            max_reject_fraction=1,
            max_length_finish_fraction=1,
        ),
        store="s3://bucket/store",
        workers=2,
        **STANDIN,
    )

    result = job.wait()

    assert result.exit_code == 0
    assert job.results().count_rows() == 20
    assert job.rejects().count_rows() == 1
    manifest = json.loads(s3fs.S3FileSystem().cat("bucket/answers/_manifest.json"))
    assert manifest["rows_in"] == 21

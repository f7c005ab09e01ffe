"""Input in S3, through s3fs, against moto's server: found, hashed, read as it was found, and every refusal
explained."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.core import set_initial_no_auth_action_count

from shuntserve.core.specs import JobSpec
from shuntserve.errors import InvalidInput, NotFound, Unavailable
from shuntserve.job.ingest import ingest
from shuntserve.job.sources import SourceFile, find_sources, open_source, s3_filesystem
from shuntserve.job.submission import resolve, submit_spec
from shuntserve.store.open import open_bucket
from tests.conformance.s3_server import S3Server
from tests.support.ingesting import chat_line, ingest_files, read_back


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    """One S3 server on the loopback."""
    server = S3Server()
    yield server
    server.stop()


@dataclass(frozen=True)
class Bucket:
    """A bucket on the server, as its owner sees it."""

    name: str
    client: Any

    def upload(self, key: str, content: Path | bytes) -> str:
        body = content.read_bytes() if isinstance(content, Path) else content
        self.client.put_object(Bucket=self.name, Key=key, Body=body)
        return f"s3://{self.name}/{key}"


@pytest.fixture(scope="module")
def client(server: S3Server) -> Any:
    """boto3 costs half a second to make, so all tests share it."""
    options = server.options
    return boto3.client(
        "s3",
        endpoint_url=options.endpoint_url,
        region_name=options.region,
        aws_access_key_id=options.access_key_id,
        aws_secret_access_key=options.secret_access_key,
    )


@pytest.fixture
def aws(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """AWS's own settings lead to the server; a test may change them before its first access."""
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    s3_filesystem.cache_clear()
    yield monkeypatch
    s3_filesystem.cache_clear()


@pytest.fixture(scope="module")
def usual(server: S3Server) -> Iterator[None]:
    """The same settings for all tests that leave them alone, so that they share one way to S3."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL"):
            patch.delenv(name, raising=False)
        for name, value in server.environ.items():
            patch.setenv(name, value)
        s3_filesystem.cache_clear()  # a test elsewhere may have led it to a server that is gone
        yield
    s3_filesystem.cache_clear()


@pytest.fixture
def s3(usual: None, client: Any) -> Bucket:
    """A bucket of its own for each test."""
    bucket = Bucket(f"bucket-{uuid.uuid4().hex}", client)
    client.create_bucket(Bucket=bucket.name)
    return bucket


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Two prompts in Parquet."""
    path = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"prompt": ["the fox", "the dog"]}), path)
    return path


def test_a_job_in_s3_and_the_same_job_on_disk_are_one(s3: Bucket, prompts: Path, model: Path) -> None:
    """The same bytes give the same id and the same rows, wherever they lie."""
    url = s3.upload("in/prompts.parquet", prompts)

    remote, local = ingest_files(url, model), ingest_files(prompts, model)

    assert remote.job.job_id == local.job.job_id
    assert remote.rows == local.rows


def test_input_and_bucket_may_both_be_in_s3(s3: Bucket, prompts: Path, model: Path) -> None:
    """Chunks are written to and read back from an S3 bucket."""
    url = s3.upload("in/prompts.parquet", prompts)
    bucket = open_bucket(f"s3://{s3.name}/work")

    job = submit_spec(bucket, JobSpec(input=url, model=model))
    done = read_back(bucket, job, ingest(bucket, job))

    assert len(done.rows) == 2


def test_prefixes_and_globs_find_every_file_but_hidden_ones(
    s3: Bucket, tmp_path: Path, prompts: Path, model: Path
) -> None:
    """A prefix stands for all below it; partition columns, markers and hidden files are as on disk."""
    for day in ("1", "2"):
        s3.upload(f"in/day={day}/part.parquet", prompts)
    for name in ("_SUCCESS", "day=1/.hidden", "job.yaml"):
        s3.upload(f"in/{name}", b"x")
    s3.upload("in/", b"")

    by_prefix = ingest_files(f"s3://{s3.name}/in/", model)
    by_glob = ingest_files(f"s3://{s3.name}/in/*/*.parquet", model)

    names = ["day=1/part.parquet", "day=2/part.parquet"]
    assert [file.name for file in by_prefix.job.inputs] == [file.name for file in by_glob.job.inputs] == names
    assert {row["carried"]["day"] for row in by_prefix.rows} == {"1", "2"}


def test_jsonl_in_s3_is_read(s3: Bucket, tmp_path: Path, model: Path) -> None:
    """Batch files work as on disk."""
    (tmp_path / "batch.jsonl").write_text("\n".join(json.dumps(chat_line(str(row))) for row in range(3)))

    done = ingest_files(s3.upload("batch.jsonl", tmp_path / "batch.jsonl"), model)

    assert [row["request_id"] for row in done.rows] == ["0", "1", "2"]


def test_an_object_that_changed_since_submission_is_refused(
    s3: Bucket, tmp_path: Path, prompts: Path, model: Path
) -> None:
    """Another ETag and other content: the job is of the old content."""
    url = s3.upload("prompts.parquet", prompts)
    bucket = open_bucket("memory://s3-changed")
    job = submit_spec(bucket, JobSpec(input=url, model=model))
    pq.write_table(pa.table({"prompt": ["the cat", "the cow"]}), prompts)
    s3.upload("prompts.parquet", prompts)

    with pytest.raises(InvalidInput, match="changed after the job was submitted"):
        ingest(bucket, job)


def test_an_object_replaced_while_it_is_read_is_refused(s3: Bucket, tmp_path: Path) -> None:
    """Reads name the ETag that was found, so no file is ever read half old and half new."""
    s3.upload("big", b"a" * (20 << 20))
    source = find_sources([f"s3://{s3.name}/big"])[0]

    with open_source(source) as file:
        assert file.read(10) == b"a" * 10
    with pytest.raises(InvalidInput, match="changed after the job was submitted"):
        read_while_replaced(source, s3)


def read_while_replaced(source: SourceFile, s3: Bucket) -> None:
    """Read a little, replace the object, read the rest."""
    with open_source(source) as file:
        file.read(10)
        s3.upload("big", b"b" * (20 << 20))
        while file.read(1 << 20):
            pass


def test_a_missing_bucket_and_a_missing_key_are_told_apart(s3: Bucket, model: Path) -> None:
    """Both name what to check."""
    with pytest.raises(NotFound, match="no such bucket"):
        resolve(JobSpec(input="s3://there-is-no-such-bucket/x.parquet", model=model))
    with pytest.raises(NotFound, match="matches no object"):
        resolve(JobSpec(input=f"s3://{s3.name}/x.parquet", model=model))


def test_missing_credentials_are_named(s3: Bucket, aws: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The next step says which settings to make."""
    aws.delenv("AWS_ACCESS_KEY_ID")
    aws.delenv("AWS_SECRET_ACCESS_KEY")
    aws.setenv("AWS_EC2_METADATA_DISABLED", "true")
    aws.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    aws.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))

    with pytest.raises(InvalidInput, match=r"no AWS credentials.*AWS_PROFILE"):
        find_sources([f"s3://{s3.name}/x.parquet"])


def test_refused_credentials_are_named(s3: Bucket, aws: pytest.MonkeyPatch) -> None:
    """What S3 answers to a wrong key is about credentials, not about a missing file."""
    refused = set_initial_no_auth_action_count(0)(find_sources)

    with pytest.raises(InvalidInput, match=r"may not be read.*credentials"):
        refused([f"s3://{s3.name}/x.parquet"])


def test_an_endpoint_that_is_not_there_is_unavailable(s3: Bucket, aws: pytest.MonkeyPatch) -> None:
    """Nobody listens: the endpoint is what to check."""
    aws.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    aws.setenv("AWS_MAX_ATTEMPTS", "1")

    with pytest.raises(Unavailable, match="endpoint"):
        find_sources([f"s3://{s3.name}/x.parquet"])

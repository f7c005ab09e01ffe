"""Every kind of bucket, each test with a fresh one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shuntserve.store.faults import FaultyBucket, no_faults
from shuntserve.store.open import open_bucket
from shuntserve.store.port import Bucket
from tests.conformance.s3_server import S3Server

KINDS = ("memory", "local", "s3", "faulty")


@pytest.fixture(autouse=True)
def no_aws_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No AWS setting of the machine that runs the tests reaches them, nor any credentials."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    server = S3Server()
    server.make_bucket("conformance")
    yield server
    server.stop()


@pytest.fixture(params=KINDS)
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Bucket]:
    """Opens the test's own bucket, the same one each time."""
    unique = uuid.uuid4().hex
    match request.param:
        case "memory":
            return lambda: open_bucket(f"memory://{unique}")
        case "local":
            return lambda: open_bucket(tmp_path / "a directory, 100 % ünïcode #1")
        case "s3":
            server: S3Server = request.getfixturevalue("s3_server")
            return lambda: open_bucket(f"s3://conformance/of one/{unique}", s3=server.options)
        case _:
            return lambda: FaultyBucket(open_bucket(f"memory://{unique}"), no_faults)


@pytest.fixture
def bucket(reopen: Callable[[], Bucket]) -> Bucket:
    """A fresh, empty bucket of each kind."""
    return reopen()


@pytest.fixture(params=("local", "s3"))
def shared_url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a fresh bucket that this process and its children can open, by the environment alone."""
    if request.param == "local":
        return str(tmp_path / "shared")
    server: S3Server = request.getfixturevalue("s3_server")
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    return f"s3://conformance/{uuid.uuid4().hex}"

"""A drop folder in each kind of bucket that jobs can have, and a model for the jobs."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shuntserve.job.sources import s3_filesystem
from shuntserve.sim.tiny_model import TinyModel, write_tiny_model
from shuntserve.store.open import open_bucket
from shuntserve.store.port import Bucket
from tests.conformance.s3_server import S3Server


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("inbox") / "model", TinyModel())


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    server = S3Server()
    server.make_bucket("inbox")
    yield server
    server.stop()


@dataclass(frozen=True)
class DropFolder:
    """Puts files into the inbox as a user would."""

    bucket: Bucket
    defaults: dict[str, Any]

    def drop(self, path: str, rows: int = 3, salt: str = "") -> None:
        """A Parquet file of so many rows."""
        table = pa.table({"prompt": [f"row {index} {salt}" for index in range(rows)]})
        file = io.BytesIO()
        pq.write_table(table, file)
        self.put(path, file.getvalue())

    def put(self, path: str, body: bytes = b"") -> None:
        self.bucket.put(f"inbox/{path}", body)

    def jobs(self) -> list[str]:
        return list(self.bucket.list_dirs("jobs"))


@pytest.fixture(params=("local", "s3"))
def folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> Iterator[DropFolder]:
    url = str(tmp_path / "store")
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        for name, value in {**server.environ, "AWS_ENDPOINT_URL": server.endpoint_url}.items():
            monkeypatch.setenv(name, value)
        url = f"s3://inbox/{uuid.uuid4().hex}"
    s3_filesystem.cache_clear()
    yield DropFolder(open_bucket(url), {"model": str(model)})
    s3_filesystem.cache_clear()

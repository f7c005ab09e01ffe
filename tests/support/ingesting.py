"""Submit, ingest and read back in one call, for tests that care about what becomes of rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shuntserve.core.chunking import ChunkPolicy
from shuntserve.core.manifest import ChunkRef, Manifest
from shuntserve.core.resolved import ResolvedJob
from shuntserve.core.specs import JobSpec
from shuntserve.job.ingest import ingest, load_chunk, load_page
from shuntserve.job.submission import submit_spec
from shuntserve.store.open import open_bucket
from shuntserve.store.port import Bucket


@dataclass(frozen=True)
class Ingested:
    """What an ingest left in the bucket, read back through the manifest."""

    bucket: Bucket
    job: ResolvedJob
    manifest: Manifest
    chunks: list[tuple[ChunkRef, list[dict[str, Any]]]]
    rejects: list[dict[str, Any]]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for _, rows in self.chunks for row in rows]

    @property
    def by_row(self) -> dict[int, dict[str, Any]]:
        """Valid rows of a single file by their number."""
        return {row["source_row"]: row for row in self.rows}

    @property
    def codes(self) -> dict[int, str]:
        """Reject codes of a single file by row number."""
        return {reject["source_row"]: reject["code"] for reject in self.rejects}

    def message(self, row: int) -> str:
        return next(reject["message"] for reject in self.rejects if reject["source_row"] == row)

    def params(self, row: int) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.by_row[row]["params"])
        return value


def read_back(bucket: Bucket, job: ResolvedJob, manifest: Manifest) -> Ingested:
    """Everything the manifest names."""
    refs = [ref for page in manifest.pages for ref in load_page(bucket, page)]
    chunks = [(ref, load_chunk(bucket, ref).to_pylist()) for ref in refs]
    rejects = [
        row for key in manifest.reject_keys for row in pq.read_table(pa.BufferReader(bucket.get(key))).to_pylist()
    ]
    return Ingested(bucket, job, manifest, chunks, rejects)


def ingest_files(
    files: Any, model: Path, *, bucket: Bucket | None = None, policy: ChunkPolicy | None = None, **settings: Any
) -> Ingested:
    """Submit and ingest existing files."""
    bucket = bucket or open_bucket(f"memory://{id(object())}")
    job = submit_spec(bucket, JobSpec(input=files, model=model, **settings))
    return read_back(bucket, job, ingest(bucket, job, policy=policy))


def ingest_columns(folder: Path, model: Path, table: Mapping[str, Any], /, **settings: Any) -> Ingested:
    """The same for one Parquet file with these columns."""
    path = folder / "rows.parquet"
    pq.write_table(pa.table(dict(table)), path)
    return ingest_files(path, model, **settings)


def ingest_lines(folder: Path, model: Path, lines: Iterable[Any], **settings: Any) -> Ingested:
    """The same for one JSONL file; lines that are not text are written as JSON."""
    path = folder / "batch.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return ingest_files(path, model, **settings)


def chat_line(custom_id: Any, text: str = "the quick fox", **body: Any) -> dict[str, Any]:
    """One well-formed chat request."""
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": [{"role": "user", "content": text}], **body},
    }


def completion_line(custom_id: Any, prompt: Any = "the quick fox", **body: Any) -> dict[str, Any]:
    """One well-formed completion request."""
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/completions",
        "body": {"model": "m", "prompt": prompt, **body},
    }

"""Builds small jobs with every chunk committed, through the same encoders the workers use."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shuntserve.core.manifest import ChunkRef, Manifest, PageRef
from shuntserve.core.resolved import InputKind, ResolvedJob
from shuntserve.job import results, schemas
from shuntserve.job.output_place import OutputPlace
from shuntserve.job.tenure import Progress
from shuntserve.store import keys
from shuntserve.store.open import open_bucket
from shuntserve.store.port import Bucket

JOB = ResolvedJob(
    job_id="job-1",
    identity="0" * 64,
    name="",
    salt=None,
    input_kind=InputKind.PARQUET,
    inputs=(),
    columns={"prompt": "prompt"},
    carried_columns=(),
    carried_schema=None,
    prompt_template=None,
    model="/models/tiny",
    revision=None,
    model_sha256="0" * 64,
    tokenizer="/models/tiny",
    tokenizer_revision=None,
    tokenizer_sha256="0" * 64,
    chat=False,
    system=None,
    chat_template=None,
    chat_template_sha256=None,
    chat_template_kwargs={},
    sampling_defaults={},
    seed_base="seed",
    vocab_size=100,
    max_model_len=128,
    eos_token_ids=(2,),
    engine={"max_model_len": 128},
    return_token_ids=False,
    return_logprobs=False,
)


@dataclass(frozen=True)
class Row:
    """One input row and how it ended. `texts` has one entry for each sample."""

    source_row: int
    texts: Sequence[str] = ("out",)
    code: str | None = None
    finish: str = "stop"
    resumed: int = 0
    file: str = "a.parquet"
    carried: Mapping[str, Any] | None = None
    logprobs: Any = None

    @property
    def request_id(self) -> str:
        return f"{self.file}:{self.source_row}"


@dataclass
class Job:
    """A job in a bucket; `finish` commits its chunks."""

    bucket: Bucket
    chunks: Sequence[Sequence[Row]]
    ingest_rejects: Sequence[Mapping[str, Any]] = ()
    carried: pa.StructType | None = None
    spec: ResolvedJob = JOB
    refs: list[ChunkRef] = field(default_factory=list)
    manifest: Manifest | None = None

    def commit(self, *, only: Sequence[int] | None = None) -> Job:
        """Write chunks, manifest page and the commits of (`only` these) chunks."""
        for index, rows in enumerate(self.chunks):
            self._write_chunk(index, rows, committed=only is None or index in only)
        page_key = keys.manifest_page(self.spec.job_id, "att", keys.page_id(0))
        page = json.dumps({"schema_version": 1, "chunks": [ref.to_json() for ref in self.refs]}).encode()
        self.bucket.put(page_key, page)
        reject_keys = ()
        if self.ingest_rejects:
            reject_keys = (keys.ingest_rejects(self.spec.job_id, "att", 0),)
            table = pa.Table.from_pylist(list(self.ingest_rejects), schema=schemas.ingest_reject_schema())
            self.bucket.put(reject_keys[0], parquet(table))
        valid = sum(len(rows) for rows in self.chunks)
        self.manifest = Manifest(
            attempt="att",
            pages=(PageRef(keys.page_id(0), page_key, hashlib.sha256(page).hexdigest(), len(self.refs), valid),),
            reject_keys=reject_keys,
            rows_in=valid + len(self.ingest_rejects),
            rows_valid=valid,
            rows_rejected=len(self.ingest_rejects),
            prompt_tokens=3 * valid,
            source_files=("a.parquet",),
        )
        return self

    def _write_chunk(self, index: int, rows: Sequence[Row], *, committed: bool) -> None:
        table = chunk_table(rows, self.carried)
        key, body = keys.chunk(self.spec.job_id, "att", keys.chunk_id(index)), parquet(table)
        self.bucket.put(key, body)
        self.refs.append(
            ChunkRef(keys.chunk_id(index), key, hashlib.sha256(body).hexdigest(), len(rows), 3 * len(rows))
        )
        if committed:
            self.bucket.put(keys.result(self.spec.job_id, keys.chunk_id(index)), commit_body(rows, self.carried))

    @property
    def sealed(self) -> Manifest:
        assert self.manifest is not None
        return self.manifest


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def chunk_table(rows: Sequence[Row], carried: pa.StructType | None) -> pa.Table:
    """The chunk these rows came from."""
    records = [
        {
            "source_file": row.file,
            "source_row": row.source_row,
            "request_id": row.request_id,
            "prompt_token_ids": [5, 6, 7],
            "params": "{}",
            "seed": 1,
            "n": len(row.texts),
            "carried": row.carried,
        }
        for row in rows
    ]
    return pa.Table.from_pylist(records, schema=schemas.chunk_schema(carried))


def commit_body(rows: Sequence[Row], carried: pa.StructType | None = None, writer: str = "w") -> bytes:
    """The commit a worker would write."""
    sequences = {}
    for index, row in enumerate(rows):
        for sample, text in enumerate(row.texts):
            sequences[index, sample] = Progress(
                index,
                sample,
                tokens=list(range(len(text))),
                texts=[text],
                logprobs=row.logprobs,
                resumed_count=row.resumed,
                tokens_kept=2 * row.resumed,
                finish_reason=None if row.code else row.finish,
                code=row.code,
                message="because" if row.code else None,
            )
    return results.encode(chunk_table(rows, carried), sequences, writer)


def memory_bucket(name: str) -> Bucket:
    """A new bucket in memory; the name must be the test's own."""
    return open_bucket(f"memory://{name}")


def place_in(path: Any) -> OutputPlace:
    """An output directory."""
    return OutputPlace(open_bucket(path))


def spec_with(**changes: Any) -> ResolvedJob:
    """The default job with some things changed."""
    return replace(JOB, **changes)

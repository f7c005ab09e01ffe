"""Everything a job knows of one row, for a person who asks what became of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shuntserve.core.ledger import Claim, Rules
from shuntserve.core.manifest import ChunkRef, Manifest
from shuntserve.core.resolved import ResolvedJob
from shuntserve.errors import NotFound
from shuntserve.job import checkpoints, claims, ops
from shuntserve.job.manifests import load_chunk, load_page
from shuntserve.job.prefetch import prefetched
from shuntserve.store import keys
from shuntserve.store.port import Bucket


@dataclass(frozen=True, slots=True)
class Sample:
    """One output of the row, finished or as far as its checkpoints reach."""

    index: int
    finish_reason: str | None
    completion_tokens: int
    resumed_count: int
    text: str
    code: str | None = None
    message: str | None = None
    token_ids: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class RowView:
    """One row. `chunk` is None (and with it all that belongs to running) for a row that ingest refused."""

    source_file: str
    source_row: int
    request_id: str | None
    code: str | None = None
    message: str | None = None
    chunk: str | None = None
    committed: bool = False
    prompt_token_ids: Sequence[int] = ()
    params: Mapping[str, Any] | None = None
    seed: int | None = None
    n: int = 1
    attempts: tuple[Claim, ...] = ()
    """Epochs in which somebody held the row's chunk."""
    samples: tuple[Sample, ...] = ()


def find_row(bucket: Bucket, job: ResolvedJob, manifest: Manifest, wanted: str) -> RowView:
    """The row with this request id, or at this `file:row`. Reads rejects and chunks until it is found.

    Raises NotFound.
    """
    for table in _rejects(bucket, manifest):
        index = _index_of(table, wanted)
        if index is not None:
            return RowView(**table.slice(index, 1).to_pylist()[0])
    for ref, table in _chunks(bucket, manifest):
        index = _index_of(table, wanted)
        if index is not None:
            return _view(bucket, job, ref, index, table.slice(index, 1).to_pylist()[0])
    raise NotFound(f"row {wanted}", f"is not in job {job.job_id}", "give a request id, or file:row")


def rejected_rows(bucket: Bucket, job_id: str, manifest: Manifest) -> Iterator[dict[str, Any]]:
    """All rejects so far: those of ingest, then those of committed chunks."""
    for table in reject_tables(bucket, job_id, manifest):
        yield from table.to_pylist()


def reject_tables(bucket: Bucket, job_id: str, manifest: Manifest) -> Iterator[pa.Table]:
    """The same as tables of source_file, source_row, request_id, code and message, one row for each rejected row."""
    yield from _rejects(bucket, manifest)
    for page in manifest.pages:
        listed = (info.key for info in bucket.list(keys.results_page(job_id, page.page)))
        for table in prefetched(listed, lambda key: _read(bucket, key)):
            rejects = table.filter(pc.is_valid(table.column("code")))
            yield rejects.select(["source_file", "source_row", "request_id", "code", "message"])


def _rejects(bucket: Bucket, manifest: Manifest) -> Iterator[pa.Table]:
    return prefetched(manifest.reject_keys, lambda key: _read(bucket, key))


def _chunks(bucket: Bucket, manifest: Manifest) -> Iterator[tuple[ChunkRef, pa.Table]]:
    refs = (ref for page in manifest.pages for ref in load_page(bucket, page))
    return prefetched(refs, lambda ref: (ref, load_chunk(bucket, ref)))


def _read(bucket: Bucket, key: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(bucket.get(key)))


def _index_of(table: pa.Table, wanted: str) -> int | None:
    index = pc.index(table.column("request_id"), wanted).as_py()
    if index < 0:
        file, _, row = wanted.rpartition(":")
        if not file or not row.isdecimal():
            return None
        here = pc.and_(pc.equal(table.column("source_file"), file), pc.equal(table.column("source_row"), int(row)))
        index = pc.index(here, True).as_py()
    return index if index >= 0 else None


def _view(bucket: Bucket, job: ResolvedJob, ref: ChunkRef, index: int, row: Mapping[str, Any]) -> RowView:
    samples, committed = _committed(bucket, job.job_id, ref.chunk, row), True
    if samples is None:
        samples, committed = _checkpointed(bucket, job.job_id, ref.chunk, index), False
    fault = next((sample for sample in samples if sample.code is not None), None)
    return RowView(
        source_file=row["source_file"],
        source_row=row["source_row"],
        request_id=row["request_id"],
        code=fault.code if fault else None,
        message=fault.message if fault else None,
        chunk=ref.chunk,
        committed=committed,
        prompt_token_ids=row["prompt_token_ids"],
        params=json.loads(row["params"]),
        seed=row["seed"],
        n=row["n"],
        attempts=ops.run(bucket, claims.history(job.job_id, ref.chunk)),
        samples=samples,
    )


def _committed(bucket: Bucket, job_id: str, chunk: str, row: Mapping[str, Any]) -> tuple[Sample, ...] | None:
    try:
        result = _read(bucket, keys.result(job_id, chunk))
    except NotFound:
        return None
    mine = result.filter(
        pc.and_(
            pc.equal(result.column("source_file"), row["source_file"]),
            pc.equal(result.column("source_row"), row["source_row"]),
        )
    )
    return tuple(
        Sample(
            index=line["sample_index"],
            finish_reason=line["finish_reason"],
            completion_tokens=line["completion_tokens"],
            resumed_count=line["resumed_count"],
            text=line["output_text"] or "",
            code=line["code"],
            message=line["message"],
            token_ids=line["output_token_ids"] or (),
        )
        for line in mine.to_pylist()
    )


def _checkpointed(bucket: Bucket, job_id: str, chunk: str, index: int) -> tuple[Sample, ...]:
    """What the next holder of the chunk would go on with."""
    priors = ops.run(bucket, checkpoints.load_priors(job_id, chunk, 1 << 30, Rules()))
    return tuple(
        Sample(
            index=sample,
            finish_reason=prior.finish_reason,
            completion_tokens=len(prior.token_ids),
            resumed_count=prior.resumed_count,
            text=prior.text,
            code=prior.code,
            message=prior.message,
            token_ids=tuple(prior.token_ids),
        )
        for (row, sample), prior in sorted(priors.items())
        if row == index
    )

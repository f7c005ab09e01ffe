"""A job for the stand-in model, put into a bucket the way ingest leaves one, and what must come out of it."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from shuntserve.core.manifest import SCHEMA_VERSION, ChunkRef
from shuntserve.job import schemas
from shuntserve.sim.tokens import VOCABULARY, StandinModel
from shuntserve.store import keys
from shuntserve.store.port import Bucket


@dataclass(frozen=True, slots=True)
class SimRow:
    """One request of a simulated job."""

    request_id: str
    prompt: tuple[int, ...]
    params: tuple[tuple[str, float], ...]
    seed: int
    n: int = 1

    def expected(self, sample: int) -> tuple[list[int], str]:
        """Tokens and finish reason of an undisturbed run."""
        model = StandinModel(self.prompt, {**dict(self.params), "seed": self.seed + sample})
        tokens: list[int] = []
        reason: str | None = None
        while reason is None:
            tokens.append(model.next_token())
            reason = model.finish_reason(tokens[-1])
        return tokens, reason


def make_rows(
    rng: random.Random, count: int, *, max_tokens: int = 40, poison: Sequence[int] = (), mark: int = VOCABULARY
) -> list[SimRow]:
    """Random rows; those at the indices in `poison` carry `mark` in their prompt."""
    rows = []
    for index in range(count):
        prompt = [rng.randrange(1, VOCABULARY) for _ in range(rng.randint(1, 12))]
        if index in poison:
            prompt.append(mark)
        params = (("max_tokens", rng.randint(1, max_tokens)), ("temperature", float(rng.random() < 0.5)))
        rows.append(SimRow(f"row-{index}", tuple(prompt), params, rng.getrandbits(62), 2 if rng.random() < 0.1 else 1))
    return rows


@dataclass(frozen=True, slots=True)
class PutJob:
    """Where the job lies."""

    job_id: str
    pages: dict[str, str]
    page_sha256: dict[str, str]
    chunks: tuple[ChunkRef, ...]


def put_job(bucket: Bucket, job_id: str, rows: Sequence[SimRow], rows_per_chunk: int) -> PutJob:
    """Write chunks and one manifest page."""
    refs = []
    for index, start in enumerate(range(0, len(rows), rows_per_chunk)):
        part = rows[start : start + rows_per_chunk]
        table = pa.table(
            {
                "source_file": ["sim"] * len(part),
                "source_row": list(range(start, start + len(part))),
                "request_id": [row.request_id for row in part],
                "prompt_token_ids": [row.prompt for row in part],
                "params": [json.dumps(dict(row.params)) for row in part],
                "seed": [row.seed for row in part],
                "n": [row.n for row in part],
            },
            schema=schemas.chunk_schema(None),
        )
        sink = io.BytesIO()
        pq.write_table(table, sink)
        body = sink.getvalue()
        chunk = keys.chunk_id(index)
        key = keys.chunk(job_id, "sim", chunk)
        bucket.put(key, body)
        tokens = sum(len(row.prompt) for row in part)
        refs.append(ChunkRef(chunk, key, hashlib.sha256(body).hexdigest(), len(part), tokens))
    page = keys.page_id(0)
    page_key = keys.manifest_page(job_id, "sim", page)
    page_body = json.dumps({"schema_version": SCHEMA_VERSION, "chunks": [ref.to_json() for ref in refs]}).encode()
    bucket.put(page_key, page_body)
    return PutJob(job_id, {page: page_key}, {page: hashlib.sha256(page_body).hexdigest()}, tuple(refs))


def committed(bucket: Bucket, job: PutJob) -> Iterator[dict[str, object]]:
    """Every line of every committed result, in chunk order."""
    for ref in job.chunks:
        yield from pq.read_table(pa.BufferReader(bucket.get(keys.result(job.job_id, ref.chunk)))).to_pylist()

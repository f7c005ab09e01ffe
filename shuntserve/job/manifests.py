"""The manifest in the bucket: pages of chunks, and the one object that says which ingest attempt counts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq

from shuntserve.core.manifest import SCHEMA_VERSION, ChunkRef, Manifest, PageRef
from shuntserve.errors import Corrupt, NotFound
from shuntserve.store import json_objects, keys
from shuntserve.store.port import Bucket

_KEEP = "keep the bucket as it is, and start the job anew with --rerun"


def load_manifest(bucket: Bucket, job_id: str) -> Manifest | None:
    """The manifest of the attempt that counts; None while no ingest has finished. Raises Corrupt, InvalidInput
    (newer)."""
    key = keys.manifest(job_id)
    try:
        body = bucket.get(key)
    except NotFound:
        return None
    value = json_objects.loads(key, body, schema_version=SCHEMA_VERSION)
    try:
        return Manifest(
            attempt=value["attempt"],
            pages=tuple(PageRef(**page) for page in value["pages"]),
            reject_keys=tuple(value["reject_keys"]),
            rows_in=value["rows_in"],
            rows_valid=value["rows_valid"],
            rows_rejected=value["rows_rejected"],
            prompt_tokens=value["prompt_tokens"],
            source_files=tuple(value["source_files"]),
        )
    except (KeyError, TypeError) as error:
        raise Corrupt(key, "is not a manifest", _KEEP) from error


def create_manifest(bucket: Bucket, job_id: str, manifest: Manifest) -> bool:
    """Say that this attempt counts. False when another already does."""
    body = json_objects.dumps(asdict(manifest), schema_version=SCHEMA_VERSION, writer=manifest.attempt)
    return bucket.create(keys.manifest(job_id), body)


def put_page(bucket: Bucket, job_id: str, attempt: str, index: int, chunks: Sequence[ChunkRef]) -> PageRef:
    """Write one page of an attempt."""
    page = keys.page_id(index)
    key = keys.manifest_page(job_id, attempt, page)
    value = {"page": page, "chunks": [chunk.to_json() for chunk in chunks]}
    body = json_objects.dumps(value, schema_version=SCHEMA_VERSION, writer=attempt)
    bucket.put(key, body)
    return PageRef(page, key, hashlib.sha256(body).hexdigest(), len(chunks), sum(chunk.rows for chunk in chunks))


def load_page(bucket: Bucket, page: PageRef) -> list[ChunkRef]:
    """The chunks of a page, in order. Raises Corrupt when it is not what the manifest names."""
    value = json_objects.loads(page.key, _read_sealed(bucket, page.key, page.sha256), schema_version=SCHEMA_VERSION)
    return [ChunkRef.from_json(chunk) for chunk in value["chunks"]]


def load_chunk(bucket: Bucket, chunk: ChunkRef) -> pa.Table:
    """The rows of a chunk. Raises Corrupt when it is not what the manifest names."""
    return pq.read_table(pa.BufferReader(_read_sealed(bucket, chunk.key, chunk.sha256)))


def _read_sealed(bucket: Bucket, key: str, sha256: str) -> bytes:
    try:
        body = bucket.get(key)
    except NotFound as error:
        raise Corrupt(key, "is named by the manifest but absent", _KEEP) from error
    if hashlib.sha256(body).hexdigest() != sha256:
        raise Corrupt(key, "does not have the content the manifest names", _KEEP)
    return body

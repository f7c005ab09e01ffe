"""The worker's multi-step bucket work, as procedures: each may be repeated from the start after any failure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shuntserve.core.ledger import Claim, Rules, SequenceKey
from shuntserve.core.manifest import ChunkRef
from shuntserve.errors import Corrupt, NotFound
from shuntserve.job import checkpoints, claims, results
from shuntserve.job.ops import Create, Get, Head, ListKeys, Pause, Procedure, Put
from shuntserve.job.tenure import Progress
from shuntserve.store import keys

LONGEST_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True)
class Acquired:
    """A chunk that is ours: its rows, what earlier epochs left, and its history."""

    table: pa.Table
    priors: Mapping[SequenceKey, checkpoints.Prior]
    history: tuple[Claim, ...]


def put(key: str, body: bytes) -> Procedure[None]:
    """Write an object that only we write."""
    yield Put(key, body)


def create(key: str, body: bytes) -> Procedure[bool]:
    """Honest create."""
    return bool((yield Create(key, body)))


def after_pause(make: Callable[[], Procedure[bool]], tries: int) -> Procedure[bool]:
    """The procedure, after a pause that doubles with the number of failed tries."""
    if tries:
        yield Pause(min(LONGEST_PAUSE_S, 0.1 * 2**tries))
    return (yield from make())


def read_control(job_id: str, after: str | None) -> Procedure[list[tuple[str, dict[str, Any]]]]:
    """Control entries newer than the key `after`, oldest first."""
    entries: list[tuple[str, dict[str, Any]]] = []
    for info in (yield ListKeys(keys.control(job_id), after)):
        body = yield Get(info.key)
        entries += [(info.key, claims.load(info.key, body))]
    return entries


def survey_page(
    job_id: str,
    page: str,
    page_key: str,
    page_sha256: str,
    refs: Mapping[str, ChunkRef] | None,
    holders: dict[str, str],
) -> Procedure[tuple[claims.PageView, dict[str, ChunkRef]]]:
    """One look at a page, reading its list of chunks first when it isn't known yet."""
    known = dict(refs) if refs is not None else (yield from read_page(page_key, page_sha256))
    return (yield from claims.survey(job_id, page, holders)), known


def read_page(page_key: str, page_sha256: str) -> Procedure[dict[str, ChunkRef]]:
    """The chunks of a manifest page, in order."""
    body = yield from _read_sealed(page_key, page_sha256)
    return {value["chunk"]: ChunkRef.from_json(value) for value in json.loads(body)["chunks"]}


def acquire(job_id: str, ref: ChunkRef, epoch: int, worker: str, rules: Rules) -> Procedure[Acquired | None]:
    """Claim a chunk and read all it takes to go on with it; None when somebody else has it, or it is committed."""
    won = yield Create(keys.claim(job_id, ref.chunk, epoch), claims.claim_body(worker, ref.chunk, epoch))
    if not won:
        return None
    history = yield from claims.history(job_id, ref.chunk)
    if history[-1].epoch != epoch or history[-1].released:
        return None
    if (yield Head(keys.result(job_id, ref.chunk))) is not None:
        return None
    priors = yield from checkpoints.load_priors(job_id, ref.chunk, epoch, rules)
    body = yield from _read_sealed(ref.key, ref.sha256)
    return Acquired(pq.read_table(pa.BufferReader(body)), priors, history)


def _read_sealed(key: str, sha256: str) -> Procedure[bytes]:
    """An object whose hash was written down when it was made."""
    try:
        body: bytes = yield Get(key)
    except NotFound as error:
        raise Corrupt(
            key, "is named by the manifest but absent", "restore it or start the job anew with --rerun"
        ) from error
    if hashlib.sha256(body).hexdigest() != sha256:
        raise Corrupt(
            key, "does not have the content the manifest names", "restore it or start the job anew with --rerun"
        )
    return body


def checkpoint(key: str, entries: Sequence[checkpoints.Entry], worker: str) -> Procedure[bool]:
    """Write one checkpoint object."""
    return bool((yield Create(key, checkpoints.encode(entries, worker))))


def commit(key: str, table: pa.Table, sequences: Mapping[SequenceKey, Progress], worker: str) -> Procedure[bool]:
    """Write a chunk's result; True when ours is the one that counts."""
    return bool((yield Create(key, results.encode(table, sequences, worker))))

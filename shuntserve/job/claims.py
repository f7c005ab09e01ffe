"""Claims and releases in the bucket: their bodies, and one look at a page of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shuntserve.core.ledger import Claim, CrashReport, Reading
from shuntserve.errors import Corrupt, NotFound, Unavailable
from shuntserve.job.ops import Get, ListKeys, Procedure
from shuntserve.store import keys

SCHEMA_VERSION = 1
RELEASED = ".released"


def claim_body(worker: str, chunk: str, epoch: int) -> bytes:
    """A claim; the same worker claiming the same epoch again writes the same bytes."""
    return _dump({"writer": worker, "chunk": chunk, "epoch": epoch})


def release_body(worker: str, reason: str, crash: CrashReport | None = None) -> bytes:
    """The end of an epoch given back by its holder, with what the engine was running if it crashed."""
    report = None if crash is None else {"in_flight": list(crash.in_flight), "alone": crash.alone}
    return _dump({"writer": worker, "reason": reason, "crash": report})


def worker_body(worker: str, progress: int, *, gone: bool = False, facts: Mapping[str, Any] | None = None) -> bytes:
    """A worker's own object. `gone` is written by whoever reaped the worker's process, and by a worker that left in
    order.
    """
    return _dump({"writer": worker, "progress": progress, "gone": gone, "facts": dict(facts or {})})


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps({"schema_version": SCHEMA_VERSION, **value}, sort_keys=True).encode()


def load(key: str, body: bytes) -> dict[str, Any]:
    """Parse one of these objects; Corrupt when it is not one, or newer than this reader."""
    try:
        value = json.loads(body)
        version = value["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(key, "is not a ShuntServe object", "restore it or start the job anew with --rerun") from error
    if version > SCHEMA_VERSION:
        raise Corrupt(
            key, f"has schema version {version}, this program reads up to {SCHEMA_VERSION}", "upgrade shuntserve"
        )
    return dict(value)


def parse_release(key: str, body: bytes) -> CrashReport | None:
    """The crash a release reports, if any."""
    crash = load(key, body)["crash"]
    return None if crash is None else CrashReport(tuple(crash["in_flight"]), crash["alone"])


def parse_reading(key: str, body: bytes) -> Reading:
    """A worker's progress as an observer reads it."""
    value = load(key, body)
    return Reading(value["progress"], value["gone"])


@dataclass(frozen=True, slots=True)
class PageView:
    """What one survey of a page saw: committed chunks, and the claims of the others (newest epoch's worker known)."""

    page: str
    committed: frozenset[str] = frozenset()
    claims: Mapping[str, tuple[Claim, ...]] = field(default_factory=dict)


def survey(job_id: str, page: str, holders: dict[str, str]) -> Procedure[PageView]:
    """List a page's results and claims. `holders` caches claim key → worker (claims never change) and is added to."""
    results = yield ListKeys(keys.results_page(job_id, page))
    committed = frozenset(info.key.rsplit("/", 1)[1].removesuffix(".parquet") for info in results)
    found: dict[str, dict[int, bool]] = {}
    for info in (yield ListKeys(keys.claims_page(job_id, page))):
        chunk, name = info.key.rsplit("/", 2)[1:]
        if chunk in committed:
            continue
        epoch = int(name.removesuffix(RELEASED))
        epochs = found.setdefault(chunk, {})
        epochs[epoch] = name.endswith(RELEASED) or epochs.get(epoch, False)
    claims: dict[str, tuple[Claim, ...]] = {}
    for chunk, epochs in found.items():
        newest = max(epochs)
        if not epochs[newest]:
            key = keys.claim(job_id, chunk, newest)
            if key not in holders:
                holders[key] = load(key, (yield Get(key)))["writer"]
        claims[chunk] = tuple(
            Claim(epoch, holders.get(keys.claim(job_id, chunk, epoch), ""), epochs[epoch]) for epoch in sorted(epochs)
        )
    return PageView(page, committed, claims)


def read_workers(job_id: str, workers: tuple[str, ...]) -> Procedure[dict[str, Reading | None]]:
    """Read other workers' counters; None where the read failed, progress -1 where there is no object."""
    readings: dict[str, Reading | None] = {}
    for worker in workers:
        key = keys.worker(job_id, worker)
        try:
            readings[worker] = parse_reading(key, (yield Get(key)))
        except NotFound:
            readings[worker] = Reading(-1)
        except Unavailable:
            readings[worker] = None
    return readings


def history(job_id: str, chunk: str) -> Procedure[tuple[Claim, ...]]:
    """Every epoch of one chunk with its crash report; workers are not needed any more and left empty."""
    epochs: dict[int, bool] = {}
    for info in (yield ListKeys(keys.claims_chunk(job_id, chunk))):
        name = info.key.rsplit("/", 1)[1]
        epoch = int(name.removesuffix(RELEASED))
        epochs[epoch] = name.endswith(RELEASED) or epochs.get(epoch, False)
    claims = []
    for epoch, released in sorted(epochs.items()):
        crash = None
        if released:
            key = keys.released(job_id, chunk, epoch)
            crash = parse_release(key, (yield Get(key)))
        claims.append(Claim(epoch, "", released, crash))
    return tuple(claims)

"""Checkpoints in the bucket: what the sequences of a held chunk have gained, as Arrow.

The rules (`core.ledger.Rules`) decide what of them counts; this module encodes, decodes and joins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from shuntserve.core.ledger import Record, Rules, SequenceKey
from shuntserve.errors import Corrupt, NotFound
from shuntserve.job import schemas
from shuntserve.job.ops import Get, ListKeys, Procedure
from shuntserve.store import keys

Logprobs = Sequence[Sequence[Mapping[str, Any]]]
"""Per token, entries as in `schemas.LOGPROB_ENTRY`."""

_SCHEMA = schemas.checkpoint_schema()


@dataclass(frozen=True, slots=True)
class Entry:
    """One sequence's gain in one checkpoint object (columns: `schemas.checkpoint_schema`)."""

    row: int
    sample_index: int
    start: int
    token_ids: Sequence[int]
    text: str = ""
    logprobs: Logprobs | None = None
    resumed_count: int = 0
    tokens_kept: int = 0
    finish_reason: str | None = None
    stop_reason: str | None = None
    code: str | None = None
    message: str | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None or self.code is not None


@dataclass(frozen=True, slots=True)
class Prior:
    """What a new holder takes over for one sequence: one epoch's whole stream."""

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[Any, ...] | None
    resumed_count: int
    tokens_kept: int
    finish_reason: str | None
    stop_reason: str | None
    code: str | None
    message: str | None


def encode(entries: Sequence[Entry], writer: str) -> bytes:
    """Arrow IPC file bytes; carries the writer, so that an honest create can tell its own object."""
    metadata = {b"schema_version": str(schemas.SCHEMA_VERSION).encode(), b"writer": writer.encode()}
    table = pa.table(
        {name: [getattr(entry, name) for entry in entries] for name in _SCHEMA.names},
        schema=_SCHEMA.with_metadata(metadata),
    )
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, table.schema, options=options) as out:
        out.write_table(table)
    return sink.getvalue().to_pybytes()


def decode(key: str, body: bytes) -> list[Entry]:
    """The entries of one checkpoint object; Corrupt when it is torn or newer than this reader."""
    try:
        table = pa.ipc.open_file(pa.BufferReader(body)).read_all()
        version = int((table.schema.metadata or {})[b"schema_version"])
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise Corrupt(key, "is not a readable checkpoint", "remove nothing; report this object") from error
    if version > schemas.SCHEMA_VERSION:
        raise Corrupt(
            key,
            f"has schema version {version}, this program reads up to {schemas.SCHEMA_VERSION}",
            "upgrade shuntserve",
        )
    return [Entry(**row) for row in table.to_pylist()]


def load_priors(job_id: str, chunk: str, before_epoch: int, rules: Rules) -> Procedure[dict[SequenceKey, Prior]]:
    """For every sequence of a chunk the stream its new holder continues, read from all epochs before `before_epoch`."""
    numbers: dict[int, list[int]] = {}
    for info in (yield ListKeys(keys.checkpoints_chunk(job_id, chunk))):
        epoch, n = info.key.rsplit("/", 2)[1:]
        if int(epoch) < before_epoch:
            numbers.setdefault(int(epoch), []).append(int(n))
    entries: dict[int, list[list[Entry]]] = {}
    for epoch in sorted(numbers):
        entries[epoch] = []
        for n in rules.contiguous(numbers[epoch]):
            key = keys.checkpoint(job_id, chunk, epoch, n)
            try:
                entries[epoch].append(decode(key, (yield Get(key))))
            except NotFound as error:
                raise Corrupt(key, "was listed but is gone", "objects of a live job must not be deleted") from error
    return join(entries, rules)


def join(entries: Mapping[int, Sequence[Sequence[Entry]]], rules: Rules) -> dict[SequenceKey, Prior]:
    """Choose one epoch's stream for every sequence and gather all that belongs to it."""
    epochs = [
        rules.replay(epoch, [[_record(entry) for entry in one] for one in many]) for epoch, many in entries.items()
    ]
    chosen = rules.choose(epochs)
    parts: dict[SequenceKey, list[Entry]] = {key: [] for key in chosen}
    lengths: dict[SequenceKey, int] = dict.fromkeys(chosen, 0)
    for epoch, many in entries.items():
        for one in many:
            for entry in one:
                key = (entry.row, entry.sample_index)
                stream = chosen.get(key)
                if stream is None or stream.epoch != epoch or entry.start != lengths[key]:
                    continue
                end = lengths[key] + len(entry.token_ids)
                if end > len(stream.tokens):
                    continue
                parts[key].append(entry)
                lengths[key] = end
    return {key: _prior(chosen[key].tokens, parts[key]) for key in chosen}


def _record(entry: Entry) -> Record:
    return Record((entry.row, entry.sample_index), entry.start, tuple(entry.token_ids), entry.finished)


def _prior(tokens: tuple[int, ...], parts: Sequence[Entry]) -> Prior:
    last = parts[-1]
    with_logprobs = any(part.logprobs is not None for part in parts)
    return Prior(
        token_ids=tokens,
        text="".join(part.text or "" for part in parts),
        logprobs=tuple(entry for part in parts for entry in part.logprobs or ()) if with_logprobs else None,
        resumed_count=last.resumed_count,
        tokens_kept=last.tokens_kept,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        code=last.code,
        message=last.message,
    )

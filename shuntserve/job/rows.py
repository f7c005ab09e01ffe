"""Rows on their way from input to chunk: drafts (checked, not yet tokenized) and the rejects found so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shuntserve.core.reject_codes import RejectCode, RowRejected
from shuntserve.core.sampling import Limits, ResolvedParams, check_params, resolve_params
from shuntserve.core.seeds import row_seeds
from shuntserve.job.chat import ChatRenderer
from shuntserve.job.schemas import ingest_reject_schema

_CACHED_PARAMS = 4096


@dataclass(frozen=True, slots=True)
class Reject:
    """One row refused. `request_id` is None when the row has none that can be read."""

    source_file: str
    source_row: int
    request_id: str | None
    code: RejectCode
    message: str


def encode_rejects(rejects: Sequence[Reject]) -> bytes:
    """Rejects as Parquet, in the columns of `schemas.ingest_reject_schema`."""
    table = pa.table(
        {
            "source_file": [reject.source_file for reject in rejects],
            "source_row": [reject.source_row for reject in rejects],
            "request_id": [reject.request_id for reject in rejects],
            "code": [str(reject.code) for reject in rejects],
            "message": [reject.message for reject in rejects],
        },
        schema=ingest_reject_schema(),
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    body: bytes = sink.getvalue().to_pybytes()
    return body


@dataclass(frozen=True, slots=True)
class Draft:
    """Some rows of one file, checked as far as it goes without tokens. All fields have one item a row.

    A row has either a text to tokenize (`special_tokens` says whether BOS and the like are added) or `token_ids`.
    """

    source_file: str
    source_rows: npt.NDArray[np.int64]
    request_ids: pa.Array
    texts: list[str | None]
    special_tokens: npt.NDArray[np.bool_]
    token_ids: list[npt.NDArray[np.int32] | None] | None
    params: pa.Array
    seeds: npt.NDArray[np.int64]
    n: npt.NDArray[np.int32]
    carried: pa.StructArray | None
    rejects: list[Reject] = field(default_factory=list)
    rows_read: int = 0

    def __len__(self) -> int:
        return len(self.source_rows)


@dataclass(frozen=True, slots=True)
class RowContext:
    """What checking a row takes, the same for all rows of a job."""

    chat: ChatRenderer
    limits: Limits
    sampling_defaults: Mapping[str, Any]
    seed_base: str
    _resolved: dict[str, ResolvedParams | RowRejected] = field(default_factory=dict)

    def resolve(self, raw: Mapping[str, Any]) -> ResolvedParams:
        """A row's own parameters over the job's. Raises RowRejected."""
        return resolve_params(self.sampling_defaults, check_params(raw, self.limits))

    def resolve_cached(self, key: str, raw: Mapping[str, Any] | RowRejected) -> ResolvedParams | RowRejected:
        """The same, remembered under `key`; a rejection is returned."""
        known = self._resolved.get(key)
        if known is None:
            try:
                known = raw if isinstance(raw, RowRejected) else self.resolve(raw)
            except RowRejected as rejected:
                known = rejected
            if len(self._resolved) >= _CACHED_PARAMS:
                self._resolved.clear()
            self._resolved[key] = known
        return known

    def seeds(
        self, source_file: str, source_rows: npt.NDArray[np.int64], given: Iterable[tuple[int, int]]
    ) -> npt.NDArray[np.int64]:
        """A seed for every row; `given` are (index, seed) of rows that bring their own."""
        seeds = row_seeds(self.seed_base, source_file, source_rows)
        for index, seed in given:
            seeds[index] = seed
        return seeds


class Rejections:
    """The rows of a batch that are refused; the first reason counts."""

    def __init__(self, count: int) -> None:
        self.ok: npt.NDArray[np.bool_] = np.ones(count, dtype=np.bool_)
        self._reasons: dict[int, tuple[RejectCode, str]] = {}

    def add(self, index: int, code: RejectCode, message: str) -> None:
        if self.ok[index]:
            self.ok[index] = False
            self._reasons[index] = (code, message)

    def add_all(self, mask: npt.NDArray[np.bool_], code: RejectCode, message: str) -> None:
        for index in np.nonzero(mask & self.ok)[0]:
            self.add(int(index), code, message)

    def add_fault(self, index: int, fault: RowRejected) -> None:
        self.add(index, fault.code, fault.message)

    def rejects(self, source_file: str, source_rows: npt.NDArray[np.int64], ids: Sequence[str | None]) -> list[Reject]:
        """What was refused, in row order. `ids` has the request id of every row of the batch."""
        return [
            Reject(source_file, int(source_rows[index]), ids[index], code, message)
            for index, (code, message) in sorted(self._reasons.items())
        ]

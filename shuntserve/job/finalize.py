"""From the commits of all chunks to the user's output; may be stopped anywhere and run again.

    for every chunk, in order: read commit ─► check it against the chunk ─► parts
    every row counted once? ─► create final.json ─► remove leftovers ─► write _manifest.json

Parts depend on the commits alone, so a second run after a crash overwrites each file with itself. Two at once do the
same work twice and agree. Memory holds a few chunks and one part, whatever the number of rows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shuntserve import __version__, telemetry
from shuntserve.core.accounting import RowSet
from shuntserve.core.manifest import ChunkRef, Manifest
from shuntserve.core.resolved import InputKind, ResolvedJob
from shuntserve.core.states import RowCounts, StopCode, terminal_state
from shuntserve.errors import Conflict, Corrupt, NotFound
from shuntserve.job import final as finals
from shuntserve.job import ops, procedures
from shuntserve.job.final import Final, Totals
from shuntserve.job.openai_form import OpenAiFiles
from shuntserve.job.output_place import OutputPlace
from shuntserve.job.outputs import OutputForm, data_of, data_schema, rejects_of, rejects_of_ingest, rejects_schema
from shuntserve.job.parts import ParquetParts, Part, Put
from shuntserve.job.prefetch import prefetched
from shuntserve.job.row_check import CHUNK_COLUMNS, check_commit
from shuntserve.store import keys
from shuntserve.store.port import Bucket

MADE_WITH = f"shuntserve {__version__}, pyarrow {pa.__version__}"

OnProgress = Callable[[int], None]
"""Called with the number of chunks done so far."""


class Files(Protocol):
    """The files of one output format."""

    def add_result(self, result: pa.Table) -> None:
        """The checked commit of the next chunk."""
        ...

    def add_ingest_rejects(self, rejects: pa.Table) -> None:
        """Rows that ingest refused; they come before all results."""
        ...

    def finish(self) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
        """(data, rejects), everything written."""
        ...


class ParquetFiles:
    """`data/part-*.parquet` and `rejects/part-*.parquet`."""

    def __init__(self, form: OutputForm, put: Put) -> None:
        self._form = form
        self._data = ParquetParts(put, "data", data_schema(form))
        self._rejects = ParquetParts(put, "rejects", rejects_schema())

    def add_result(self, result: pa.Table) -> None:
        self._data.add(data_of(self._form, result))
        self._rejects.add(rejects_of(result))

    def add_ingest_rejects(self, rejects: pa.Table) -> None:
        self._rejects.add(rejects_of_ingest(rejects))

    def finish(self) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
        return self._data.finish(), self._rejects.finish()


@dataclass(slots=True)
class Tally:
    """Counts while the rows go by."""

    seen: RowSet = field(default_factory=RowSet)
    rows_out: int = 0
    rows_rejected: int = 0
    sequences_out: int = 0
    length_finishes: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    """Rows rejected, by code."""
    totals: Totals = field(default_factory=Totals)

    def add_ingest_rejects(self, rejects: pa.Table) -> None:
        self.rows_rejected += len(rejects)
        self._count_codes(rejects)
        self._see(rejects, np.arange(len(rejects)))

    def add_result(self, result: pa.Table, first: NDArray[np.int64]) -> None:
        """`first`: index of each row's first line."""
        self._see(result, first)
        rejected = pc.is_valid(result.column("code"))
        lines_rejected = pc.sum(rejected).as_py() or 0
        self.rows_rejected += lines_rejected
        self.rows_out += len(first) - lines_rejected
        self.sequences_out += len(result) - lines_rejected
        self.length_finishes += pc.sum(pc.equal(result.column("finish_reason"), "length")).as_py() or 0
        self._count_codes(result.filter(rejected))
        prompt_tokens = result.column("prompt_tokens").take(pa.array(first))
        resumed = np.add.reduceat(result.column("resumed_count").to_numpy(), first) if len(first) else np.empty(0)
        self.totals = Totals(
            prompt_tokens=self.totals.prompt_tokens + (pc.sum(prompt_tokens).as_py() or 0),
            completion_tokens=self.totals.completion_tokens + (pc.sum(result.column("completion_tokens")).as_py() or 0),
            resumed_rows=self.totals.resumed_rows + int(np.count_nonzero(resumed)),
            tokens_kept=self.totals.tokens_kept + (pc.sum(result.column("tokens_kept")).as_py() or 0),
        )

    def _count_codes(self, rejects: pa.Table) -> None:
        for entry in pc.value_counts(rejects.column("code").combine_chunks()).to_pylist():
            self.codes[entry["values"]] += entry["counts"]

    def _see(self, table: pa.Table, lines: NDArray[np.int64]) -> None:
        taken = table.select(["source_file", "source_row"]).take(pa.array(lines))
        rows = taken.column("source_row").to_numpy()
        files = taken.column("source_file").combine_chunks().dictionary_encode()
        codes = files.indices.to_numpy()
        for index, name in enumerate(files.dictionary.to_pylist()):
            self.seen.add(name, rows[codes == index])

    def counts(self, rows_in: int) -> RowCounts:
        stopped = {code: self.codes[code] for code in StopCode}
        rows_stopped = sum(stopped.values())
        return RowCounts(
            rows_in=rows_in,
            rows_out=self.rows_out,
            rows_rejected=self.rows_rejected,
            rows_stopped=rows_stopped,
            stopped_by=max(stopped, key=lambda code: stopped[code]) if rows_stopped else None,
            length_finishes=self.length_finishes,
            sequences_out=self.sequences_out,
        )


def finalize(
    bucket: Bucket,
    job: ResolvedJob,
    manifest: Manifest,
    carried: pa.StructType | None,
    place: OutputPlace,
    writer: str,
    on_progress: OnProgress = lambda chunks: None,
) -> Final:
    """Write the output of a job of which every chunk is committed, into a place reserved for it.

    Raises Conflict when a chunk is not committed yet, Corrupt (and completes nothing) when a row is missing or there
    twice, or when a commit does not hold what its chunk holds.
    """
    known = _already_final(bucket, job.job_id, place)
    if known is not None:
        return known
    telemetry.emit(telemetry.Event.FINALIZE_STARTED, job=job.job_id, chunks=manifest.chunks)
    form = OutputForm.of(job, carried)
    files: Files = OpenAiFiles(job, place.put) if form.kind is InputKind.OPENAI_JSONL else ParquetFiles(form, place.put)
    tally = Tally()
    for table in prefetched(manifest.reject_keys, lambda key: pq.read_table(pa.BufferReader(bucket.get(key)))):
        tally.add_ingest_rejects(table)
        files.add_ingest_rejects(table)
    refs = _chunks(bucket, manifest)
    for done, (ref, chunk, result) in enumerate(prefetched(refs, lambda ref: _read(bucket, job.job_id, ref)), 1):
        tally.add_result(result, check_commit(keys.result(job.job_id, ref.chunk), chunk, result))
        files.add_result(result)
        on_progress(done)
    missing = manifest.rows_in - tally.seen.rows
    _check_every_row_once(job.job_id, manifest.rows_in, missing, tally.seen.duplicates)
    data, rejects = files.finish()
    counts = tally.counts(manifest.rows_in)
    mine = Final(
        job_id=job.job_id,
        state=terminal_state(counts),
        counts=counts,
        totals=tally.totals,
        format=str(form.kind),
        columns=tuple((column.name, str(column.type)) for column in data_schema(form)),
        data=data,
        rejects=rejects,
        duplicates=tally.seen.duplicates,
        missing=missing,
        made_with=MADE_WITH,
        writer=writer,
        reject_codes=dict(sorted(tally.codes.items(), key=lambda item: (-item[1], item[0]))),
    )
    agreed = _agree(bucket, mine)
    place.publish(agreed.manifest(), agreed.paths)
    telemetry.emit(telemetry.Event.FINALIZE_FINISHED, job=job.job_id, state=str(agreed.state), parts=len(agreed.paths))
    return agreed


def _chunks(bucket: Bucket, manifest: Manifest) -> Iterator[ChunkRef]:
    for page in manifest.pages:
        yield from ops.run(bucket, procedures.read_page(page.key, page.sha256)).values()


def _read(bucket: Bucket, job_id: str, ref: ChunkRef) -> tuple[ChunkRef, pa.Table, pa.Table]:
    """(chunk, its identifying columns, its commit)."""
    key = keys.result(job_id, ref.chunk)
    try:
        result = pq.read_table(pa.BufferReader(bucket.get(key)))
    except NotFound as error:
        raise Conflict(key, "this chunk is not committed yet", "run the job to its end first") from error
    except pa.ArrowInvalid as error:
        raise Corrupt(key, "is not a Parquet file", "keep the bucket as it is and report this") from error
    body = bucket.get(ref.key)
    if hashlib.sha256(body).hexdigest() != ref.sha256:
        raise Corrupt(ref.key, "does not have the content the manifest names", "start the job anew with --rerun")
    return ref, pq.read_table(pa.BufferReader(body), columns=CHUNK_COLUMNS), result


def _check_every_row_once(job_id: str, rows_in: int, missing: int, duplicates: int) -> None:
    if missing or duplicates:
        raise Corrupt(
            f"job {job_id}",
            f"of {rows_in} input rows {missing} are missing and {duplicates} are there again",
            "no output was declared complete; keep the bucket as it is and report this",
        )


def _already_final(bucket: Bucket, job_id: str, place: OutputPlace) -> Final | None:
    """The job's end when it has one and this place holds all of its files.

    Raises Conflict when it was finalized with other versions, before one of its parts is replaced by unequal bytes.
    """
    known = finals.load_final(bucket, job_id)
    if known is None:
        return None
    if place.holds(known.manifest(), known.sizes):
        return known
    if known.made_with != MADE_WITH:
        raise Conflict(
            f"job {job_id}", f"was finalized with {known.made_with}", f"use that to write it again, not {MADE_WITH}"
        )
    return None


def _agree(bucket: Bucket, mine: Final) -> Final:
    """`final.json`: ours, or the equal one that somebody else wrote first."""
    if bucket.create(keys.final(mine.job_id), finals.encode(mine)):
        return mine
    theirs = finals.load_final(bucket, mine.job_id)
    if theirs is None or not mine.same_output(theirs):
        raise Corrupt(
            keys.final(mine.job_id),
            "names other parts than the commits make",
            "keep the bucket as it is and report this",
        )
    return theirs

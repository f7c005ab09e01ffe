"""From input files to chunks: read, check, tokenize, group, write; then one create says that this attempt counts.

Every attempt writes under its own id, so a crashed attempt, a rerun and two at once never mix; the first to create
`manifest.json` wins. Reading and checking run in the caller's thread, tokenization and writing in others; what waits
between them is bounded, so memory does not grow with the input.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from shuntserve import telemetry
from shuntserve.core.chunking import ChunkPolicy
from shuntserve.core.manifest import ChunkRef, Manifest, PageRef
from shuntserve.core.resolved import ResolvedJob
from shuntserve.core.sampling import DEFAULT_MAX_LOGPROBS, Limits
from shuntserve.errors import Conflict, InvalidInput
from shuntserve.job.carried import carried_type
from shuntserve.job.chat import ChatRenderer
from shuntserve.job.chunks import ChunkWriter
from shuntserve.job.drafts import read_drafts
from shuntserve.job.manifests import create_manifest, load_chunk, load_manifest, load_page, put_page
from shuntserve.job.model_files import find_model
from shuntserve.job.rows import Reject, RowContext, encode_rejects
from shuntserve.job.schemas import chunk_schema
from shuntserve.job.tokenized import TokenizedRows, Tokenizing
from shuntserve.job.tokenizing import chars_per_token, hash_tokenizer, load_tokenizer, make_encoder
from shuntserve.store import keys
from shuntserve.store.port import Bucket
from shuntserve.telemetry import Event

__all__ = ["IngestProgress", "ingest", "load_chunk", "load_manifest", "load_page"]

REJECTS_PER_OBJECT = 20_000
_TOKENIZER_THREADS = 2
"""While one takes ids out of the tokenizer's results, which holds the interpreter, the other keeps the cores busy."""
_DRAFTS_IN_FLIGHT = 4
_WRITERS = 8

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class IngestProgress:
    """How far an ingest is. `checking_ids` says that rows are only looked through for repeated ids yet."""

    rows_done: int
    rows_total: int
    rows_rejected: int = 0
    prompt_tokens: int = 0
    checking_ids: bool = False


OnProgress = Callable[[IngestProgress], None]


def ingest(
    bucket: Bucket,
    job: ResolvedJob,
    *,
    attempt_id: str | None = None,
    on_progress: OnProgress | None = None,
    policy: ChunkPolicy | None = None,
    scratch_dir: str | None = None,
) -> Manifest:
    """The job's manifest, made now unless there is one. Whoever made it, it is complete.

    `attempt_id` must be new for every call (default: a new UUID). `scratch_dir` takes 24 bytes a row while ids are
    compared. Raises InvalidInput when input or tokenizer changed since the job was submitted, Unavailable when bucket
    or disk fail; repeating the call is then safe.
    """
    existing = load_manifest(bucket, job.job_id)
    if existing is not None:
        return existing
    attempt = attempt_id or uuid.uuid4().hex
    report = on_progress or (lambda progress: None)
    telemetry.emit(Event.INGEST_STARTED, job=job.job_id, attempt=attempt, files=len(job.inputs))
    tokenizing, context = _prepare(job)
    pool = ThreadPoolExecutor(_TOKENIZER_THREADS, thread_name_prefix="tokenize")
    writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="write")
    try:
        attempt_writer = _Attempt(
            bucket,
            job,
            attempt,
            ChunkWriter(
                bucket,
                job.job_id,
                attempt,
                policy=policy or ChunkPolicy(expected_workers=job.operations.expected_workers),
                rows_expected=sum(file.rows for file in job.inputs),
                executor=writers,
            ),
            report,
        )
        with closing(
            read_drafts(
                job, context, scratch_dir, lambda done, total: report(IngestProgress(done, total, checking_ids=True))
            )
        ) as drafts:
            for rows in _in_order(tokenizing.tokenize, drafts, pool):
                attempt_writer.add(rows)
        manifest = attempt_writer.finish()
    finally:
        pool.shutdown(cancel_futures=True)
        writers.shutdown(cancel_futures=True)
        tokenizing.encoder.close()
    won = create_manifest(bucket, job.job_id, manifest)
    telemetry.emit(
        Event.INGEST_FINISHED,
        job=job.job_id,
        attempt=attempt,
        counts=won,
        rows=manifest.rows_in,
        rejected=manifest.rows_rejected,
        chunks=manifest.chunks,
        prompt_tokens=manifest.prompt_tokens,
    )
    if won:
        return manifest
    winner = load_manifest(bucket, job.job_id)
    if winner is None:
        raise Conflict(keys.manifest(job.job_id), "another ingest created it, but it cannot be read", "run again")
    return winner


class _Attempt:
    """What one attempt has written so far."""

    def __init__(self, bucket: Bucket, job: ResolvedJob, attempt: str, chunks: ChunkWriter, report: OnProgress) -> None:
        self._bucket, self._job, self._attempt, self._chunks, self._report = bucket, job, attempt, chunks, report
        self._page: list[ChunkRef] = []
        self._pages: list[PageRef] = []
        self._rejects: list[Reject] = []
        self._reject_keys: list[str] = []
        self._rows_read = self._rows_valid = self._rows_rejected = self._prompt_tokens = 0
        self._rows_total = sum(file.rows for file in job.inputs)

    def add(self, rows: TokenizedRows) -> None:
        """Take the next rows in input order."""
        self._rows_read += rows.rows_read
        self._rows_valid += rows.table.num_rows
        self._rows_rejected += len(rows.rejects)
        self._prompt_tokens += rows.prompt_tokens
        self._rejects += rows.rejects
        if len(self._rejects) >= REJECTS_PER_OBJECT:
            self._put_rejects()
        self._chunks.add(rows.table, rows.rows_read)
        self._put_full_pages()
        self._report(IngestProgress(self._rows_read, self._rows_total, self._rows_rejected, self._prompt_tokens))

    def finish(self) -> Manifest:
        """Write what is left; the manifest is complete when this returns."""
        self._chunks.finish()
        self._put_full_pages()
        if self._page:
            self._put_page(self._page)
        if self._rejects:
            self._put_rejects()
        return Manifest(
            attempt=self._attempt,
            pages=tuple(self._pages),
            reject_keys=tuple(self._reject_keys),
            rows_in=self._rows_read,
            rows_valid=self._rows_valid,
            rows_rejected=self._rows_rejected,
            prompt_tokens=self._prompt_tokens,
            source_files=tuple(file.name for file in self._job.inputs),
        )

    def _put_full_pages(self) -> None:
        self._page += self._chunks.take_written()
        while len(self._page) >= keys.CHUNKS_PER_PAGE:
            self._put_page(self._page[: keys.CHUNKS_PER_PAGE])
            self._page = self._page[keys.CHUNKS_PER_PAGE :]

    def _put_page(self, chunks: list[ChunkRef]) -> None:
        self._pages.append(put_page(self._bucket, self._job.job_id, self._attempt, len(self._pages), chunks))

    def _put_rejects(self) -> None:
        key = keys.ingest_rejects(self._job.job_id, self._attempt, len(self._reject_keys))
        self._bucket.put(key, encode_rejects(self._rejects))
        self._reject_keys.append(key)
        self._rejects = []


def _prepare(job: ResolvedJob) -> tuple[Tokenizing, RowContext]:
    """What rows are checked and tokenized with. Raises InvalidInput when the tokenizer is no longer the one
    submitted."""
    files = find_model("tokenizer", job.tokenizer, job.tokenizer_revision)
    if hash_tokenizer(files) != job.tokenizer_sha256:
        raise InvalidInput(
            f"tokenizer {job.tokenizer}", "changed after the job was submitted", "submit again, or put its files back"
        )
    trust_remote_code, mode = bool(job.engine.get("trust_remote_code")), str(job.engine.get("tokenizer_mode", "auto"))
    tokenizer = load_tokenizer(files, trust_remote_code=trust_remote_code, mode=mode)
    chat = ChatRenderer.make(tokenizer, job.chat_template, job.system, job.chat_template_kwargs)
    context = RowContext(chat, limits_of(job), job.sampling_defaults, job.seed_base)
    tokenizing = Tokenizing(
        make_encoder(tokenizer, files, trust_remote_code=trust_remote_code, mode=mode),
        chunk_schema(carried_type(job)),
        job.max_model_len,
        job.vocab_size,
        chars_per_token(tokenizer),
    )
    return tokenizing, context


def limits_of(job: ResolvedJob) -> Limits:
    """What the job's model and engine options bound in sampling parameters."""
    return Limits(job.vocab_size, int(job.engine.get("max_logprobs", DEFAULT_MAX_LOGPROBS)))


def _in_order(do: Callable[[A], B], items: Iterable[A], pool: ThreadPoolExecutor) -> Iterator[B]:
    """`map` over a pool that never has more than a few items in flight, results in order."""
    waiting: deque[Future[B]] = deque()
    for item in items:
        waiting.append(pool.submit(do, item))
        if len(waiting) >= _DRAFTS_IN_FLIGHT:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()

"""Tokenized rows become chunk objects: grouped by prefix in windows, cut to size, written while the next window
fills."""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Executor, Future

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shuntserve.core.chunking import ChunkPolicy, cut_chunks, group_by_prefix
from shuntserve.core.manifest import ChunkRef
from shuntserve.store import keys
from shuntserve.store.port import Bucket

WINDOW_ROWS = 32_768
WINDOW_BYTES = 64 << 20
_MAX_PENDING_BYTES = 64 << 20


def encode_chunk(rows: pa.Table) -> bytes:
    """A chunk as Parquet. Token ids are split by byte before compression, which shrinks them most and costs least."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        rows,
        sink,
        compression="zstd",
        compression_level=1,
        use_dictionary=["source_file", "params"],
        column_encoding={"prompt_token_ids.list.element": "BYTE_STREAM_SPLIT"},
        write_statistics=False,
    )
    body: bytes = sink.getvalue().to_pybytes()
    return body


class ChunkWriter:
    """Takes rows in input order and writes chunks under one attempt's own keys.

    `rows_expected` is an upper bound of the rows still to come when the writer is made; it shapes chunk sizes. The
    executor's threads encode and write; what waits for them is bounded.
    """

    def __init__(
        self, bucket: Bucket, job_id: str, attempt: str, *, policy: ChunkPolicy, rows_expected: int, executor: Executor
    ) -> None:
        self._bucket, self._job_id, self._attempt = bucket, job_id, attempt
        self._policy, self._executor = policy, executor
        self._rows_after = rows_expected
        self._window: list[pa.Table] = []
        self._window_rows = 0
        self._window_bytes = 0
        self._next_index = 0
        self._pending: deque[tuple[Future[ChunkRef], int]] = deque()
        self._pending_bytes = 0
        self._done: list[ChunkRef] = []

    def add(self, rows: pa.Table, rows_read: int) -> None:
        """Take some valid rows; `rows_read` is how many input rows they stand for, rejects included."""
        self._rows_after = max(0, self._rows_after - rows_read)
        self._window.append(rows)
        self._window_rows += rows.num_rows
        self._window_bytes += rows.nbytes
        if self._window_rows >= WINDOW_ROWS or self._window_bytes >= WINDOW_BYTES:
            self._cut(flush=False)

    def finish(self) -> None:
        """Write what is left and wait for all writes."""
        self._cut(flush=True)
        self._settle(0)

    def take_written(self) -> list[ChunkRef]:
        """Chunks written since the last call, in order of their index."""
        done, self._done = self._done, []
        return done

    def _cut(self, *, flush: bool) -> None:
        window = pa.concat_tables(self._window) if self._window else None
        self._window, self._window_rows, self._window_bytes = [], 0, 0
        if window is None or window.num_rows == 0:
            return
        rows = _grouped(window)
        lengths = np.diff(rows.column("prompt_token_ids").chunk(0).offsets.to_numpy())
        ranges, kept = cut_chunks(lengths, self._rows_after, self._policy, flush=flush)
        for begin, end in ranges:
            self._write(rows.slice(begin, end - begin), int(lengths[begin:end].sum()))
        if kept < rows.num_rows:
            rest = rows.take(pa.array(np.arange(kept, rows.num_rows)))  # a copy, so that the window can be freed
            self._window, self._window_rows, self._window_bytes = [rest], rest.num_rows, rest.nbytes

    def _write(self, rows: pa.Table, prompt_tokens: int) -> None:
        size_bytes = rows.nbytes
        self._settle(max(0, _MAX_PENDING_BYTES - size_bytes))
        chunk = keys.chunk_id(self._next_index)
        self._next_index += 1
        self._pending.append((self._executor.submit(self._put, chunk, rows, prompt_tokens), size_bytes))
        self._pending_bytes += size_bytes

    def _settle(self, most_bytes: int) -> None:
        """Collect finished writes, and wait for the oldest ones until no more than this is pending."""
        while self._pending and (self._pending_bytes > most_bytes or self._pending[0][0].done()):
            future, size_bytes = self._pending.popleft()
            self._pending_bytes -= size_bytes
            self._done.append(future.result())

    def _put(self, chunk: str, rows: pa.Table, prompt_tokens: int) -> ChunkRef:
        body = encode_chunk(rows)
        key = keys.chunk(self._job_id, self._attempt, chunk)
        self._bucket.put(key, body)
        return ChunkRef(chunk, key, hashlib.sha256(body).hexdigest(), rows.num_rows, prompt_tokens)


def _grouped(window: pa.Table) -> pa.Table:
    """The rows of a window with shared prefixes side by side, each column in one piece."""
    window = window.combine_chunks()
    prompts = window.column("prompt_token_ids").chunk(0)
    order = group_by_prefix(prompts.values.to_numpy(), prompts.offsets.to_numpy())
    if (order == np.arange(len(order))).all():
        return window
    return window.take(pa.array(order)).combine_chunks()

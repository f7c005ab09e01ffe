"""Output parts: rows in, files of bounded size out, the same files every time for the same rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

GROUP_BYTES = 32 << 20
GROUP_ROWS = 100_000
PART_BYTES = 128 << 20
PART_ROWS = 2_000_000

Put = Callable[[str, bytes], None]
"""Writes one file of the output: (path relative to the output, bytes). Repeating it changes nothing."""


@dataclass(frozen=True, slots=True)
class Part:
    """One finished file of the output."""

    path: str
    rows: int
    bytes: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Part:
        return Part(value["path"], value["rows"], value["bytes"], value["sha256"])


def _finished(put: Put, path: str, rows: int, body: bytes) -> Part:
    put(path, body)
    return Part(path, rows, len(body), hashlib.sha256(body).hexdigest())


class ParquetParts:
    """`<folder>/part-000000.parquet`, `…-000001…`: a new part when the last one is full.

    One empty part when no row comes, so that readers find a schema. Where parts and row groups end depends on the rows
    alone.
    """

    def __init__(self, put: Put, folder: str, schema: pa.Schema, *, part_bytes: int = PART_BYTES) -> None:
        self._put = put
        self._folder = folder
        self._schema = schema
        self._part_bytes = part_bytes
        self._pending: list[pa.Table] = []
        self._pending_rows = self._pending_bytes = 0
        self._sink: pa.BufferOutputStream | None = None
        self._writer: pq.ParquetWriter | None = None
        self._part_rows = 0
        self._parts: list[Part] = []

    def add(self, table: pa.Table) -> None:
        """Append rows; holds at most one row group and one encoded part."""
        rows_at_once = max(1, min(GROUP_ROWS, len(table) * GROUP_BYTES // max(1, table.nbytes)))
        for start in range(0, len(table), rows_at_once):
            piece = table.slice(start, rows_at_once)
            self._pending.append(piece)
            self._pending_rows += len(piece)
            self._pending_bytes += piece.nbytes
            if self._pending_rows >= GROUP_ROWS or self._pending_bytes >= GROUP_BYTES:
                self._write_group()

    def finish(self) -> tuple[Part, ...]:
        """Write what is left; all parts, in order."""
        self._write_group()
        if not self._parts and self._writer is None:
            self._open()
        self._close_part()
        return tuple(self._parts)

    def _open(self) -> pq.ParquetWriter:
        if self._writer is None:
            self._sink = pa.BufferOutputStream()
            self._writer = pq.ParquetWriter(self._sink, self._schema, compression="zstd")
        return self._writer

    def _write_group(self) -> None:
        if not self._pending_rows:
            return
        group = pa.concat_tables(self._pending).combine_chunks()
        self._pending.clear()
        self._open().write_table(group, row_group_size=len(group))
        self._part_rows += len(group)
        self._pending_rows = self._pending_bytes = 0
        assert self._sink is not None
        if self._sink.tell() >= self._part_bytes or self._part_rows >= PART_ROWS:
            self._close_part()

    def _close_part(self) -> None:
        if self._writer is None or self._sink is None:
            return
        self._writer.close()
        path = f"{self._folder}/part-{len(self._parts):06d}.parquet"
        self._parts.append(_finished(self._put, path, self._part_rows, self._sink.getvalue().to_pybytes()))
        self._writer = self._sink = None
        self._part_rows = 0


class JsonlParts:
    """`<name>.jsonl`, and `<name>-000001.jsonl` … once a file is full."""

    def __init__(self, put: Put, name: str, *, part_bytes: int = PART_BYTES) -> None:
        self._put = put
        self._name = name
        self._part_bytes = part_bytes
        self._lines: list[bytes] = []
        self._bytes = 0
        self._parts: list[Part] = []

    def add(self, lines: Iterable[bytes]) -> None:
        """Append lines (each with its newline)."""
        for line in lines:
            self._lines.append(line)
            self._bytes += len(line)
            if self._bytes >= self._part_bytes:
                self._close_part()

    def finish(self) -> tuple[Part, ...]:
        """Write what is left; all parts, in order."""
        if self._lines or not self._parts:
            self._close_part()
        return tuple(self._parts)

    def _close_part(self) -> None:
        number = len(self._parts)
        path = f"{self._name}.jsonl" if number == 0 else f"{self._name}-{number:06d}.jsonl"
        self._parts.append(_finished(self._put, path, len(self._lines), b"".join(self._lines)))
        self._lines, self._bytes = [], 0

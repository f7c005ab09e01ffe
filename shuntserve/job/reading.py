"""The rows of input files in order, in batches of bounded size, with their row numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from shuntserve.core.resolved import InputFile
from shuntserve.errors import InvalidInput
from shuntserve.job.first_look import content_hash, hive_columns, plain_type
from shuntserve.job.sources import S3_SCHEMES, SourceFile, find_sources, open_source

BATCH_ROWS = 2048
BATCH_BYTES = 4 << 20
_LOCAL_BUFFER_BYTES = 1 << 20
_S3_BUFFER_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Some Parquet rows of one file, numbered from `first_row`."""

    file: InputFile
    first_row: int
    rows: pa.RecordBatch


@dataclass(frozen=True, slots=True)
class LineBatch:
    """Some JSONL lines of one file with their numbers; blank lines are left out."""

    file: InputFile
    lines: Sequence[tuple[int, bytes]]


@contextmanager
def open_input(file: InputFile) -> Iterator[BinaryIO]:
    """The input file as it was when the job was submitted. Raises InvalidInput when its content is another.

    A file with the same ETag, or the same size and modification time, is taken to be the same; of any other, say one
    that was copied, the content is hashed again.
    """
    now = next(iter(find_sources([file.location])))
    if now.version != file.version and (now.size_bytes != file.size_bytes or content_hash(now) != file.sha256):
        raise InvalidInput(
            file.location, "changed after the job was submitted", "submit again; what changed is a new job"
        )
    with open_source(SourceFile(file.location, now.size_bytes, now.version)) as opened:
        yield opened


def read_parquet(file: InputFile, fields: Sequence[pa.Field]) -> Iterator[RowBatch]:
    """The rows of one Parquet file with exactly these fields: missing ones are null, others are cast.

    Pages are decoded as they are needed, since a row group may be larger than memory.
    """
    with open_input(file) as opened:
        try:
            parquet = pq.ParquetFile(
                opened,
                pre_buffer=False,
                buffer_size=_S3_BUFFER_BYTES if file.location.startswith(S3_SCHEMES) else _LOCAL_BUFFER_BYTES,
            )
            stated = hive_columns(file.name)
            columns = [field.name for field in fields if field.name in parquet.schema_arrow.names]
            first_row = 0
            for batch in parquet.iter_batches(_batch_rows(parquet.metadata), columns=columns, use_threads=False):
                yield RowBatch(file, first_row, _conform(batch, fields, stated, file.name))
                first_row += batch.num_rows
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the file system's; Arrow's own, for damaged pages, have no number
            raise InvalidInput(
                file.location, f"cannot be decoded: {error}", "check the file with another Parquet reader"
            ) from error
        if first_row != file.rows:
            raise InvalidInput(file.location, f"has {first_row} rows instead of {file.rows}", "write it again")


def read_lines(file: InputFile) -> Iterator[LineBatch]:
    """The lines of one JSONL file that are not blank."""
    lines: list[tuple[int, bytes]] = []
    size_bytes = 0
    with open_input(file) as opened:
        for number, line in enumerate(opened):
            if line.isspace():
                continue
            lines.append((number, line))
            size_bytes += len(line)
            if len(lines) >= BATCH_ROWS or size_bytes >= BATCH_BYTES:
                yield LineBatch(file, lines)
                lines, size_bytes = [], 0
    if lines:
        yield LineBatch(file, lines)


def _batch_rows(metadata: Any) -> int:
    """Rows that make about `BATCH_BYTES`, by the size of the largest row group's rows."""
    row_bytes = max(
        (
            metadata.row_group(index).total_byte_size / max(1, metadata.row_group(index).num_rows)
            for index in range(metadata.num_row_groups)
        ),
        default=1.0,
    )
    return max(1, min(BATCH_ROWS, int(BATCH_BYTES / max(1.0, row_bytes))))


def _conform(batch: pa.RecordBatch, fields: Sequence[pa.Field], stated: dict[str, str], name: str) -> pa.RecordBatch:
    arrays = []
    for field in fields:
        if field.name in batch.schema.names:
            array = batch.column(field.name)
            if isinstance(array, pa.ExtensionArray):
                array = array.storage
            if array.type != field.type:
                array = array.cast(plain_type(array.type)).cast(field.type)
        elif field.name in stated:
            array = pa.repeat(pa.scalar(stated[field.name], pa.string()), batch.num_rows).cast(field.type)
        else:
            array = pa.nulls(batch.num_rows, field.type)
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)) if arrays else batch

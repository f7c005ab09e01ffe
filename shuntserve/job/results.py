"""The commit of one chunk: a result or a reject for every row, as Parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shuntserve.core.ledger import SequenceKey
from shuntserve.job import schemas
from shuntserve.job.tenure import Progress


def encode(table: pa.Table, sequences: Mapping[SequenceKey, Progress], writer: str) -> bytes:
    """Parquet bytes for a whole chunk. `table` is the chunk; every sequence in `sequences` has ended.

    A row of which any sample is a reject is one reject line, with the partial output of its first sample that has some.
    """
    rows: dict[int, list[Progress]] = {}
    for (row, _), progress in sorted(sequences.items()):
        rows.setdefault(row, []).append(progress)
    lines: list[tuple[int, Progress]] = []
    for row, samples in rows.items():
        rejected = next((sample for sample in samples if sample.code is not None), None)
        lines.extend((row, sample) for sample in ([rejected] if rejected is not None else samples))
    indices = pa.array([row for row, _ in lines], pa.int32())
    taken = table.take(indices)
    lengths = taken.column("prompt_token_ids").combine_chunks().value_lengths()
    carried = table.schema.field("carried").type if "carried" in table.schema.names else None
    schema = schemas.result_schema(carried).with_metadata(
        {b"schema_version": str(schemas.SCHEMA_VERSION).encode(), b"writer": writer.encode()}
    )
    columns: dict[str, Any] = {
        "source_file": taken.column("source_file"),
        "source_row": taken.column("source_row"),
        "request_id": taken.column("request_id"),
        "prompt_tokens": lengths,
        **_outputs([progress for _, progress in lines]),
    }
    if carried is not None:
        columns["carried"] = taken.column("carried")
    result = pa.table([_as(columns[name], schema.field(name).type) for name in schema.names], schema=schema)
    sink = pa.BufferOutputStream()
    pq.write_table(result, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _as(values: Any, type_: pa.DataType) -> pa.ChunkedArray | pa.Array:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values.cast(type_) if values.type != type_ else values
    return pa.array(values, type_)


def _outputs(ended: Sequence[Progress]) -> dict[str, list[Any]]:
    return {
        "sample_index": [one.sample_index for one in ended],
        "output_text": ["".join(one.texts) for one in ended],
        "output_token_ids": [one.tokens for one in ended],
        "logprobs": [one.logprobs for one in ended],
        "finish_reason": [None if one.code is not None else one.finish_reason for one in ended],
        "stop_reason": [one.stop_reason for one in ended],
        "completion_tokens": [len(one.tokens) for one in ended],
        "resumed_count": [one.resumed_count for one in ended],
        "tokens_kept": [one.tokens_kept for one in ended],
        "code": [one.code for one in ended],
        "message": [one.message for one in ended],
    }

"""What a job's output looks like: its columns, and how results and rejects become them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from shuntserve.core.resolved import InputKind, ResolvedJob
from shuntserve.job import schemas


@dataclass(frozen=True, slots=True)
class OutputForm:
    """Which optional columns the data has. All of it follows from the resolved job, so a rerun makes the same files.

    A column that only some rows can ask for (by their own `sampling_params`) is there for all rows of the job.
    """

    kind: InputKind
    sample_index: bool
    token_ids: bool
    logprobs: bool
    carried: pa.StructType | None

    @staticmethod
    def of(job: ResolvedJob, carried: pa.StructType | None) -> OutputForm:
        rows_choose = "sampling_params" in job.columns
        return OutputForm(
            kind=job.input_kind,
            sample_index=rows_choose or int(job.sampling_defaults.get("n") or 1) > 1,
            token_ids=job.return_token_ids,
            logprobs=job.return_logprobs,
            carried=carried if carried is not None and carried.num_fields else None,
        )


def data_schema(form: OutputForm) -> pa.Schema:
    """Columns of `data/part-*.parquet`."""
    fields = [pa.field("request_id", pa.string(), nullable=False)]
    if form.sample_index:
        fields.append(pa.field("sample_index", pa.int32(), nullable=False))
    fields += [
        pa.field("output_text", pa.string(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("completion_tokens", pa.int32(), nullable=False),
        pa.field("resumed_count", pa.int32(), nullable=False),
    ]
    if form.token_ids:
        fields.append(pa.field("output_token_ids", schemas.TOKEN_IDS))
    if form.logprobs:
        fields.append(pa.field("logprobs", schemas.LOGPROBS))
    if form.carried is not None:
        fields += list(form.carried)
    return pa.schema(fields)


def rejects_schema() -> pa.Schema:
    """Columns of `rejects/part-*.parquet`. The last two are set for rows that had some output when they ended."""
    return pa.schema(
        [
            pa.field("source_file", pa.string(), nullable=False),
            pa.field("source_row", pa.int64(), nullable=False),
            pa.field("request_id", pa.string()),
            pa.field("code", pa.string(), nullable=False),
            pa.field("message", pa.string(), nullable=False),
            pa.field("output_text", pa.string()),
            pa.field("completion_tokens", pa.int32()),
        ]
    )


def data_of(form: OutputForm, result: pa.Table) -> pa.Table:
    """The rows of one chunk's result that have output, in the output's columns."""
    rows = result.filter(pc.is_null(result.column("code")))
    columns: Mapping[str, pa.ChunkedArray] = {name: rows.column(name) for name in rows.column_names}
    if form.carried is not None:
        carried = rows.column("carried")
        columns = {**_flattened(carried, form.carried), **columns}
    schema = data_schema(form)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _flattened(carried: pa.ChunkedArray, type_: pa.StructType) -> dict[str, pa.ChunkedArray]:
    return {field.name: pc.struct_field(carried, [index]) for index, field in enumerate(type_)}


def rejects_of(result: pa.Table) -> pa.Table:
    """The rejects of one chunk's result, in the rejects' columns."""
    rows = result.filter(pc.is_valid(result.column("code")))
    nothing_yet = pc.equal(rows.column("completion_tokens"), 0)
    partial = {
        name: pc.if_else(nothing_yet, pa.scalar(None, rows.schema.field(name).type), rows.column(name))
        for name in ("output_text", "completion_tokens")
    }
    schema = rejects_schema()
    return pa.table([partial.get(name, rows.column(name)) for name in schema.names], schema=schema)


def rejects_of_ingest(rejects: pa.Table) -> pa.Table:
    """Rows that ingest refused, in the rejects' columns."""
    schema = rejects_schema()
    present = set(rejects.column_names)
    return pa.table(
        [
            rejects.column(field.name).cast(field.type) if field.name in present else pa.nulls(len(rejects), field.type)
            for field in schema
        ],
        schema=schema,
    )

"""The user's own columns, carried from input to output as one Arrow struct."""

from __future__ import annotations

import base64

import pyarrow as pa

from shuntserve.core.resolved import ResolvedJob

OUTPUT_COLUMNS = frozenset(
    {
        "request_id",
        "sample_index",
        "output_text",
        "output_token_ids",
        "logprobs",
        "finish_reason",
        "stop_reason",
        "prompt_tokens",
        "completion_tokens",
        "resumed_count",
    }
)
"""Names the output gives to its own columns."""


def carried_type(job: ResolvedJob) -> pa.StructType | None:
    """The type of the chunks' and results' column `carried`; None when nothing is carried."""
    fields = decode_fields(job.carried_schema)
    return pa.struct(fields) if fields else None


def decode_fields(text: str | None) -> list[pa.Field]:
    """The fields `encode_fields` wrote down."""
    return [] if text is None else list(pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text))))


def encode_fields(fields: list[pa.Field]) -> str | None:
    """Fields as a text a ResolvedJob can keep; None for none."""
    if not fields:
        return None
    plain = pa.schema([field.remove_metadata() for field in fields])
    return base64.b64encode(plain.serialize().to_pybytes()).decode()


def carried_names(columns: list[str]) -> list[tuple[str, str]]:
    """(input column, its name in the output): a name the output needs for itself gets `input_` before it."""
    taken = OUTPUT_COLUMNS | set(columns)
    names: list[tuple[str, str]] = []
    for column in columns:
        name = column
        while name in OUTPUT_COLUMNS or (name != column and name in taken):
            name = f"input_{name}"
        names.append((column, name))
        taken = taken | {name}
    return names

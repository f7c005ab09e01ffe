"""Columns of the Arrow and Parquet objects of a job: one place, so that writers and readers cannot disagree."""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 1

TOKEN_IDS = pa.list_(pa.int32())
LOGPROB_ENTRY = pa.struct(
    [("token_id", pa.int32()), ("logprob", pa.float32()), ("rank", pa.int32()), ("token", pa.string())]
)
LOGPROBS = pa.list_(pa.list_(LOGPROB_ENTRY))
"""Per output token, the entries vLLM gave for its position, the sampled token first."""


def chunk_schema(carried: pa.StructType | None) -> pa.Schema:
    """A chunk: valid rows ready for an engine. A row's index in the chunk is its position.

    `params` is canonical JSON of the resolved sampling parameters in vLLM's names, without `seed` and `n`. `seed` is
    the effective seed of sample 0; sample i uses seed + i (as vLLM does for n > 1). `carried` holds the user's other
    columns (absent when there are none).
    """
    fields = [
        pa.field("source_file", pa.string(), nullable=False),
        pa.field("source_row", pa.int64(), nullable=False),
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("prompt_token_ids", TOKEN_IDS, nullable=False),
        pa.field("params", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("n", pa.int32(), nullable=False),
    ]
    if carried is not None and carried.num_fields:
        fields.append(pa.field("carried", carried))
    return pa.schema(fields)


def ingest_reject_schema() -> pa.Schema:
    """Rows ingest refused; `request_id` is null when the row has none that can be read."""
    return pa.schema(
        [
            pa.field("source_file", pa.string(), nullable=False),
            pa.field("source_row", pa.int64(), nullable=False),
            pa.field("request_id", pa.string()),
            pa.field("code", pa.string(), nullable=False),
            pa.field("message", pa.string(), nullable=False),
        ]
    )


def result_schema(carried: pa.StructType | None) -> pa.Schema:
    """The commit of one chunk: for every row either `n` finished samples or one reject (`code` not null).

    A reject may hold partial output (a cancelled row's). `tokens_kept` counts output tokens taken over from earlier
    epochs.
    """
    fields = [
        pa.field("source_file", pa.string(), nullable=False),
        pa.field("source_row", pa.int64(), nullable=False),
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("sample_index", pa.int32(), nullable=False),
        pa.field("output_text", pa.string()),
        pa.field("output_token_ids", TOKEN_IDS),
        pa.field("logprobs", LOGPROBS),
        pa.field("finish_reason", pa.string()),
        pa.field("stop_reason", pa.string()),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("completion_tokens", pa.int32(), nullable=False),
        pa.field("resumed_count", pa.int32(), nullable=False),
        pa.field("tokens_kept", pa.int32(), nullable=False),
        pa.field("code", pa.string()),
        pa.field("message", pa.string()),
    ]
    if carried is not None and carried.num_fields:
        fields.append(pa.field("carried", carried))
    return pa.schema(fields)


def checkpoint_schema() -> pa.Schema:
    """One checkpoint object: what each listed sequence gained.

    `start` is the absolute index of `token_ids[0]` in the sequence's output; the first record of a sequence in an
    epoch has start 0 and restates everything. `text` is the text gained with these tokens (it may lag behind them
    while a character or a stop string is incomplete), so the texts of a stream concatenate to its output text.
    `finish_reason` (or `code`, for a row that ends as a reject) is set when the sequence is finished. `resumed_count`
    counts the interruptions the sequence has survived.
    """
    return pa.schema(
        [
            pa.field("row", pa.int32(), nullable=False),
            pa.field("sample_index", pa.int32(), nullable=False),
            pa.field("start", pa.int32(), nullable=False),
            pa.field("token_ids", TOKEN_IDS, nullable=False),
            pa.field("logprobs", LOGPROBS),
            pa.field("resumed_count", pa.int32(), nullable=False),
            pa.field("tokens_kept", pa.int32(), nullable=False),
            pa.field("finish_reason", pa.string()),
            pa.field("stop_reason", pa.string()),
            pa.field("text", pa.string()),
            pa.field("code", pa.string()),
            pa.field("message", pa.string()),
        ]
    )

"""A child job of a job's rejects: the same rows, read again from the input, under the parent's settings or others.

    rejects (file, row) ─► rows as they stand in the input, ids kept ─► jobs/<parent>/retries/<choice>/… ─► a JobSpec

The choice of rows (the parent and the codes) names the copies, and what they hold decides the child's identity: the
same retry is the same child. Memory holds eight bytes a reject and one batch of rows.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shuntserve.core.near_miss import did_you_mean
from shuntserve.core.resolved import InputFile, InputKind, ResolvedJob
from shuntserve.core.specs import JobSpec
from shuntserve.errors import Conflict, InvalidInput, NotFound
from shuntserve.job.adjust import current_job
from shuntserve.job.carried import carried_type, decode_fields
from shuntserve.job.final import load_final
from shuntserve.job.manifests import load_manifest
from shuntserve.job.parts import JsonlParts, ParquetParts, Part
from shuntserve.job.reading import read_lines, read_parquet
from shuntserve.job.row_view import reject_tables
from shuntserve.store import json_objects, keys
from shuntserve.store.port import Bucket

SCHEMA_VERSION = 1
_SUFFIX = "-retry"
_CHOICE_DIGITS = 16

Places = Mapping[str, NDArray[np.int64]]
"""Input file → numbers of its rows, ascending."""


def retry_spec(bucket: Bucket, parent_id: str, codes: Sequence[str] = (), **changes: Any) -> JobSpec:
    """The job that runs the parent's rejects again: all of them, or those with one of `codes`.

    `changes` are settings of a JobSpec that shall differ from the parent's (`max_tokens=512`). Copies the rows into the
    store, unless an earlier retry has. Raises Conflict while the parent goes on, InvalidInput when there is nothing to
    retry or the input is not what it was, NotFound.
    """
    parent = current_job(bucket, parent_id)
    manifest = load_manifest(bucket, parent_id)
    if manifest is None or load_final(bucket, parent_id) is None:
        raise Conflict(f"job {parent_id}", "has not ended, so that its rejects are not final", "wait for its end")
    chosen = tuple(sorted(set(codes)))
    choice = hashlib.sha256(json.dumps([parent_id, chosen]).encode()).hexdigest()[:_CHOICE_DIGITS]
    paths = _kept(bucket, parent_id, choice)
    if paths is None:
        places = _rejected_places(reject_tables(bucket, parent_id, manifest), parent_id, chosen)
        parts = _copy_rows(bucket, parent, places, keys.retry_folder(parent_id, choice))
        body = {"codes": chosen, "parts": [part.to_json() for part in parts]}
        bucket.create(
            keys.retry(parent_id, choice),
            json_objects.dumps(body, schema_version=SCHEMA_VERSION, writer=uuid.uuid4().hex),
        )
        paths = [part.path for part in parts]
    locations = [_location(bucket.url, f"{keys.retry_folder(parent_id, choice)}/{path}") for path in paths]
    return JobSpec(**_settings(parent, locations, chosen, changes))


# -- which rows --------------------------------------------------------------------------------------------------------


def _rejected_places(tables: Iterator[pa.Table], job_id: str, codes: Sequence[str]) -> Places:
    found: dict[str, list[NDArray[np.int64]]] = {}
    seen: set[str] = set()
    for table in tables:
        if not len(table):
            continue
        seen |= set(pc.unique(table.column("code")).to_pylist())
        if codes:
            table = table.filter(pc.is_in(table.column("code"), pa.array(codes, pa.string())))
        for name in pc.unique(table.column("source_file")).to_pylist():
            rows = table.filter(pc.equal(table.column("source_file"), name)).column("source_row")
            found.setdefault(name, []).append(rows.to_numpy().astype(np.int64))
    if not found:
        if codes and seen:
            raise InvalidInput(
                f"code {codes[0]!r}",
                f"no row of job {job_id} was rejected with it",
                did_you_mean(codes[0], sorted(seen)),
            )
        raise InvalidInput(f"job {job_id}", "has no rejects", "there is nothing to retry")
    return {name: np.unique(np.concatenate(rows)) for name, rows in found.items()}


# -- copying them ------------------------------------------------------------------------------------------------------


def _kept(bucket: Bucket, job_id: str, choice: str) -> list[str] | None:
    """The copies an earlier retry made; None when there is none."""
    key = keys.retry(job_id, choice)
    try:
        value = json_objects.loads(key, bucket.get(key), schema_version=SCHEMA_VERSION)
    except NotFound:
        return None
    return [Part.from_json(part).path for part in value["parts"]]


def _copy_rows(bucket: Bucket, job: ResolvedJob, places: Places, folder: str) -> tuple[Part, ...]:
    def put(path: str, body: bytes) -> None:
        bucket.put(f"{folder}/{path}", body)

    copy = _copy_lines if job.input_kind is InputKind.OPENAI_JSONL else _copy_parquet
    return copy(job, [(file, places[file.name]) for file in job.inputs if file.name in places], put)


def _copy_lines(
    job: ResolvedJob, chosen: Sequence[tuple[InputFile, NDArray[np.int64]]], put: Callable[[str, bytes], None]
) -> tuple[Part, ...]:
    parts = JsonlParts(put, "requests")
    for file, rows in chosen:
        for batch in read_lines(file):
            numbers = np.array([number for number, _ in batch.lines], dtype=np.int64)
            wanted = np.nonzero(np.isin(numbers, rows, assume_unique=True))[0]
            parts.add(batch.lines[index][1].rstrip(b"\r\n") + b"\n" for index in wanted)
    return parts.finish()


def _copy_parquet(
    job: ResolvedJob, chosen: Sequence[tuple[InputFile, NDArray[np.int64]]], put: Callable[[str, bytes], None]
) -> tuple[Part, ...]:
    fields = _input_fields(job)
    made_ids = [] if "request_id" in job.columns else [pa.field(_id_column(job), pa.string())]
    parts = ParquetParts(put, "rows", pa.schema([*made_ids, *fields]))
    for file, rows in chosen:
        for batch in read_parquet(file, fields):
            low, high = np.searchsorted(rows, [batch.first_row, batch.first_row + batch.rows.num_rows])
            if low == high:
                continue
            taken = batch.rows.take(pa.array(rows[low:high] - batch.first_row))
            arrays = list(taken.columns)
            if made_ids:
                numbers = pa.array(rows[low:high]).cast(pa.string())
                arrays.insert(0, pc.binary_join_element_wise(file.name, numbers, ":"))
            parts.add(pa.Table.from_arrays(arrays, schema=pa.schema([*made_ids, *fields])))
    return parts.finish()


def _input_fields(job: ResolvedJob) -> list[pa.Field]:
    """The input columns the job reads: those prompts, ids and parameters are made from, and those it carries."""
    fields = {field.name: field for field in decode_fields(job.prompt_schema)}
    for (column, _), field in zip(job.carried_columns, carried_type(job) or (), strict=True):
        fields.setdefault(column, pa.field(column, field.type))
    return list(fields.values())


def _id_column(job: ResolvedJob) -> str:
    """A column for ids that were made from file and row; its name is one that the input does not have."""
    name, taken = "request_id", {field.name for field in _input_fields(job)}
    while name in taken:
        name = f"_{name}"
    return name


def _location(url: str, key: str) -> str:
    """An object of the store as an input is named."""
    if url.startswith("file://"):
        return f"{unquote(urlsplit(url).path).rstrip('/')}/{key}"
    return f"{url.rstrip('/')}/{key}"


# -- the child's settings ----------------------------------------------------------------------------------------------


def _settings(
    parent: ResolvedJob, locations: Sequence[str], codes: Sequence[str], changes: Mapping[str, Any]
) -> dict[str, Any]:
    """A JobSpec's settings that mean what the parent's meant, with changes over them."""
    operations = {name: value for name, value in asdict(parent.operations).items() if name in JobSpec.model_fields}
    del operations["output"]  # the parent's own; so is its deadline, which is a moment
    settings: dict[str, Any] = {
        **operations,
        "name": parent.name if parent.name.endswith(_SUFFIX) else f"{parent.name}{_SUFFIX}",
        "model": parent.model,
        "revision": parent.revision,
        "sampling_params": dict(parent.sampling_defaults),
        "generation_config": "vllm",  # what the model's own says is among the parent's parameters
        "engine": dict(parent.engine),
        "return_token_ids": parent.return_token_ids,
        "return_logprobs": parent.return_logprobs,
        "rerun": parent.salt or False,
    }
    if parent.tokenizer != parent.model:
        settings["tokenizer"] = parent.tokenizer
    if (parent.tokenizer, parent.tokenizer_revision) != (parent.model, parent.revision):
        settings["tokenizer_revision"] = parent.tokenizer_revision
    if parent.seed_base != parent.identity:
        settings["seed"] = int(parent.seed_base)
    if parent.chat:
        settings["system"] = parent.system
        settings["chat_template"] = parent.chat_template
        settings["chat_template_kwargs"] = dict(parent.chat_template_kwargs)
    if parent.input_kind is InputKind.PARQUET:
        settings["columns"] = {"request_id": _id_column(parent), **parent.columns}
        settings["carry"] = tuple(column for column, _ in parent.carried_columns)
        settings["prompt_template"] = parent.prompt_template
        if parent.chat:
            settings["chat"] = True
    return {**_changed(settings, changes), "input": tuple(locations), "retry_of": parent.job_id, "retry_codes": codes}


def _changed(settings: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with changes over them: parameters one by one, and what belongs to another model goes with it."""
    for fixed in ("input", "columns", "carry", "retry_of", "retry_codes"):
        if fixed in changes:
            raise InvalidInput(f"setting {fixed!r}", "is the parent's in a retry", "submit a job of your own instead")
    params = {**settings["sampling_params"], **changes.get("sampling_params", {})}
    if "max_tokens" in changes:
        params.pop("max_tokens", None)
    if changes.keys() & {"response_format", "structured_outputs"}:
        params.pop("structured_outputs", None)
    if changes.get("model", settings["model"]) != settings["model"]:
        for own in ("revision", "tokenizer", "tokenizer_revision"):
            settings.pop(own, None)
    engine = {**settings["engine"], **changes.get("engine", {})}
    return {**settings, **changes, "sampling_params": params, "engine": engine}

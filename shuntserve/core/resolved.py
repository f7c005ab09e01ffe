"""What spec.json holds: a job with every name looked up, every file hashed and every default decided."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from shuntserve.errors import Corrupt

SCHEMA_VERSION = 1


class InputKind(StrEnum):
    """The form of the input, which is also the form of the answer."""

    PARQUET = "parquet"
    OPENAI_JSONL = "openai_jsonl"


@dataclass(frozen=True, slots=True)
class InputFile:
    """One input file as it was when the job was resolved.

    `name` is its path relative to the directory all inputs share: it is a row's `source_file`, and with the row's
    number its identity. `location` says where to read it. `version` is what a reader can compare cheaply (an S3 ETag,
    or size and modification time); when it differs, `sha256` decides.
    """

    name: str
    location: str
    size_bytes: int
    rows: int
    sha256: str
    version: str


@dataclass(frozen=True, slots=True)
class Operations:
    """How a job is run, apart from what it computes. Not part of its identity: a later submission may change these."""

    output: str | None = None
    max_reject_fraction: float = 0.01
    max_length_finish_fraction: float = 0.2
    checkpoint_interval_s: float = 10.0
    lease_s: float = 15.0
    deadline_unix_s: float | None = None
    deadline: str | None = None
    """As the user wrote it. The same duration submitted again is the same deadline, not a later one."""
    expected_workers: int = 2
    fleet: str = "local"
    """Who provides machines: `local` (processes of the controller's machine) or `ec2`."""
    pools: tuple[str, ...] = ()
    """Capacity pools the fleet may take machines from, as `--pool` writes them."""
    pipelines: tuple[str, ...] = ()
    """Replicas whose stages stand on several machines, as `shuntserve estimate --pipeline` writes them."""
    market: str = "prefer_spot"
    max_cost_usd: float | None = None
    approval: str = "over_budget"
    spending_lease_s: float = 300.0


TEXTS = ("pools", "pipelines")
"""The operations that are tuples; JSON knows lists only."""


@dataclass(frozen=True, slots=True)
class ResolvedJob:
    """A job ready to be ingested and run. `identity` hashes all of it but `operations`, versions and capacity
    options."""

    job_id: str
    identity: str
    name: str
    salt: str | None

    input_kind: InputKind
    inputs: tuple[InputFile, ...]
    columns: Mapping[str, str]
    """Our column name → the user's, for the columns that exist."""
    carried_columns: tuple[tuple[str, str], ...]
    """(input column, its name in the output); they differ when the name is one of the output's own."""
    carried_schema: str | None
    """The carried columns' Arrow struct type: base64 of a serialized schema (`job.carried` reads it)."""
    prompt_template: str | None

    model: str
    """What the engine is given: an absolute directory, or a hub name."""
    revision: str | None
    model_sha256: str
    tokenizer: str
    tokenizer_revision: str | None
    tokenizer_sha256: str
    chat: bool
    system: str | None
    chat_template: str | None
    """The template itself; None when the job needs none."""
    chat_template_sha256: str | None
    chat_template_kwargs: Mapping[str, Any]

    sampling_defaults: Mapping[str, Any]
    """Job over generation config, checked and canonical."""
    seed_base: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    engine: Mapping[str, Any]
    """Engine options, always with `max_model_len`."""

    return_token_ids: bool
    return_logprobs: bool
    prompt_schema: str | None = None
    """The types of the input columns that prompts, ids and parameters are made from, in the same form; None for
    JSONL."""
    parent: str | None = None
    """The job whose rejects this one runs again. What they are decides its identity, not where they come from."""
    retry_codes: tuple[str, ...] = ()
    """Of those rejects, the codes that were asked for; empty: all."""
    operations: Operations = field(default_factory=Operations)
    package_version: str = ""
    engine_version: str | None = None
    """None when the submitting machine has no engine installed."""

    def with_current(self, current: ResolvedJob) -> ResolvedJob:
        """This stored job, run the way a later submission of the same job asks.

        The two have one identity, so they differ only in places (input, model, output), limits and capacity options:
        those are the later one's. The lease stays as stored, because all workers of a job must agree on it.
        """
        before, now = self.operations, current.operations
        kept = before.deadline_unix_s if now.deadline == before.deadline else now.deadline_unix_s
        return replace(
            current,
            operations=replace(now, lease_s=before.lease_s, deadline_unix_s=kept),
            package_version=self.package_version,
            engine_version=self.engine_version,
        )

    def to_json(self) -> dict[str, Any]:
        """JSON values; the schema version stands beside them in the object (`store.json_objects`)."""
        value = asdict(self)
        value["input_kind"] = str(self.input_kind)
        return value

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> ResolvedJob:
        """Raises Corrupt when it is not a resolved job. Names it does not know are left out."""
        known = {item.name for item in fields(ResolvedJob)}
        try:
            parts = {name: item for name, item in value.items() if name in known}
            parts["input_kind"] = InputKind(parts["input_kind"])
            parts["inputs"] = tuple(InputFile(**item) for item in parts["inputs"])
            parts["carried_columns"] = tuple((str(a), str(b)) for a, b in parts["carried_columns"])
            parts["eos_token_ids"] = tuple(parts["eos_token_ids"])
            parts["retry_codes"] = tuple(parts.get("retry_codes", ()))
            operations = parts["operations"]
            texts = {name: tuple(operations.get(name, ())) for name in TEXTS}
            parts["operations"] = Operations(**{**operations, **texts})
            return ResolvedJob(**parts)
        except (KeyError, TypeError, ValueError) as error:
            raise Corrupt(
                "spec.json", f"is not a resolved job: {error}", "stop and keep the bucket as it is"
            ) from error


def identity_of(parts: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of what makes a job this job."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()

"""What a user asks for: the JobSpec, checked at birth.

`JobSpec` is the request as written; `ResolvedJob` (in `core.resolved`, also importable from here) is what
`job.submission.resolve` makes of it: everything measured, hashed and decided, ready to be frozen as `spec.json`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from shuntserve.core.engine_options import check_engine_options
from shuntserve.core.near_miss import did_you_mean
from shuntserve.core.offers import read_offers
from shuntserve.core.prompt_template import PromptTemplate
from shuntserve.core.reject_codes import RowRejected
from shuntserve.core.resolved import InputFile, InputKind, Operations, ResolvedJob
from shuntserve.core.sampling import Limits, check_params, resolve_params
from shuntserve.core.shapes import read_shapes
from shuntserve.core.structured import canonical_structured_outputs, from_response_format
from shuntserve.errors import InvalidInput

__all__ = [
    "COLUMNS",
    "InputFile",
    "InputKind",
    "JobSpec",
    "Operations",
    "ResolvedJob",
    "parse_deadline",
    "parse_duration_s",
]

COLUMNS = ("request_id", "prompt", "messages", "prompt_token_ids", "max_tokens", "sampling_params")
"""Our names of input columns; `columns` maps them to the user's."""

_SPEC_ALIASES = {
    "inputs": "input",
    "outputs": "output",
    "prompts": "input",
    "source": "input",
    "destination": "output",
    "sampling": "sampling_params",
    "params": "sampling_params",
    "engine_args": "engine",
    "vllm": "engine",
    "system_prompt": "system",
    "template": "prompt_template",
    "job_name": "name",
    "guided_json": "structured_outputs",
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "lease": "lease_s",
    "checkpoint_interval": "checkpoint_interval_s",
    "workers": "expected_workers",
    "budget": "max_cost_usd",
    "max_cost": "max_cost_usd",
    "pool": "pools",
    "pipeline": "pipelines",
    "provider": "fleet",
}

_ANY_VOCABULARY = Limits(vocab_size=2**31 - 1, max_logprobs=2**31 - 1)
"""Bounds before the model is known; `resolve` checks again with the real ones."""


class JobSpec(BaseModel):
    """One job as a user writes it: in Python, in `job.yaml` or through the command line.

    Every mistake that can be seen without reading input or model raises InvalidInput here, unknown names with their
    near miss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)

    input: tuple[str, ...] = Field(min_length=1)
    """Parquet files or OpenAI batch JSONL: paths, directories, globs, `s3://` URLs; one or several."""
    output: str | None = None
    """Directory or URL for the results. Not part of the job's identity."""
    model: str
    """A model directory, or a name on the Hugging Face hub."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; resolved to a commit."""
    tokenizer: str | None = None
    """Directory or hub name, when the tokenizer does not come with the model."""
    tokenizer_revision: str | None = None
    name: str | None = None
    """A readable name; it begins the job's id."""

    columns: dict[str, str] = Field(default_factory=dict)
    """Our column name → the user's: `{"prompt": "question", "request_id": "uuid"}`."""
    carry: tuple[str, ...] | None = None
    """Input columns to carry to the output. Default: all that are not one of ours."""
    prompt_template: str | None = None
    """`Classify: {text}`: makes the prompt from named columns."""
    system: str | None = None
    """A system message for every row that has none. Implies `chat`."""
    chat: bool | None = None
    """Put each `prompt` through the chat template as a user message. Default: only when `system`, `chat_template` or
    `chat_template_kwargs` is given; otherwise prompts go to the model as they are. `messages` are always templated."""
    chat_template: str | None = None
    """A Jinja chat template, or the path of a file with one, instead of the tokenizer's."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Variables for the chat template, e.g. `{"enable_thinking": False}`."""

    sampling_params: dict[str, Any] = Field(default_factory=dict)
    """For every row, in vLLM's names. A row's own stand over these, these over the model's generation config."""
    max_tokens: int | None = None
    """Short for `sampling_params.max_tokens`. Default, when nobody says: 2048."""
    response_format: dict[str, Any] | None = None
    """OpenAI's form of structured outputs."""
    structured_outputs: dict[str, Any] | None = None
    """vLLM's form: exactly one of json, regex, choice, grammar, json_object, structural_tag."""
    generation_config: Literal["auto", "vllm"] = "auto"
    """`auto`: the model's generation_config.json gives defaults; `vllm`: it does not. As in vLLM."""
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """Each row's seed is derived from this and the row's place. Default: derived from the job's id. To give every row
    the same seed, as `vllm.LLM.generate` does, set `sampling_params.seed`."""

    engine: dict[str, Any] = Field(default_factory=dict)
    """vLLM engine arguments from the allow-list in `core.engine_options`."""

    return_token_ids: bool = False
    """Add the column `output_token_ids`."""
    return_logprobs: bool | None = None
    """Add the column `logprobs`. Default: when the job, or a row's own parameters, can ask for them."""

    max_reject_fraction: float = Field(default=0.01, ge=0, le=1)
    """The job pauses when more than this share of rows was rejected."""
    max_length_finish_fraction: float = Field(default=0.2, ge=0, le=1)
    """The job pauses when more than this share of rows ended because max_tokens ran out."""
    checkpoint_interval_s: float = Field(default=10.0, gt=0, le=3600)
    lease_s: float = Field(default=15.0, ge=1, le=3600)
    deadline: str | datetime | None = None
    """A duration from submission (`90m`, `2h30m`) or a moment with its zone (`2030-01-31T18:00:00Z`)."""
    expected_workers: int = Field(default=2, ge=1, le=100_000)
    """Shapes chunk sizes; any number of workers may come."""
    fleet: Literal["local", "ec2"] = "local"
    """Who provides machines when the job runs on a fleet: processes of this machine, or EC2."""
    pools: tuple[str, ...] = ()
    """Capacity the fleet may use: `TYPE[/ZONE][/spot|on-demand]=COUNT[@PRICE]`, for instance
    `g6.12xlarge/us-east-1a/spot=4@1.76`; on a local fleet `local=COUNT[@PRICE]` (default: one)."""
    pipelines: tuple[str, ...] = ()
    """Replicas whose stages stand on machines of their own, as `shuntserve plan` and `estimate` write them:
    `g6.12xlarge:tp=4:layers=20,g6e.xlarge:tp=1:layers=12`. Default: one replica on each group of GPUs."""
    market: Literal["prefer_spot", "spot", "on_demand"] = "prefer_spot"
    """Which of the pools may be used: spot with on-demand as a fallback, or one of the two alone."""
    max_cost_usd: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """The job is stopped before its machines cost more than this; what is committed by then stays."""
    approval: Literal["never", "over_budget", "always"] = "over_budget"
    """When somebody must agree before machines are launched. `over_budget`: when the predicted cost exceeds
    `max_cost_usd`, or nothing bounds it."""
    spending_lease_s: float = Field(default=300.0, ge=2, le=86400)
    """Machines end by themselves when no controller has renewed the spending lease for this long."""
    retry_of: str | None = None
    """The job whose rejects this one runs again. `shuntserve retry` says so; it changes nothing else."""
    retry_codes: tuple[str, ...] = ()
    """Of those rejects, only these codes; empty: all."""
    rerun: bool | str = False
    """Make a new job even though this submission already is one. True: always a new one; a text: one per text."""

    if not TYPE_CHECKING:

        def __init__(self, **data: Any) -> None:
            try:
                super().__init__(**data)
            except ValidationError as error:
                raise _as_invalid_input(error) from error

    @model_validator(mode="before")
    @classmethod
    def _names_are_known(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for name in data:
                if name not in cls.model_fields:
                    raise InvalidInput(
                        f"job setting {name!r}", "is unknown", did_you_mean(str(name), cls.model_fields, _SPEC_ALIASES)
                    )
        return data

    @field_validator("input", mode="before")
    @classmethod
    def _one_input_or_several(cls, value: Any) -> Any:
        return tuple(_path(item) for item in (value if isinstance(value, list | tuple) else (value,)))

    @field_validator("output", "model", "tokenizer", "chat_template", mode="before")
    @classmethod
    def _paths_are_text(cls, value: Any) -> Any:
        return _path(value)

    @field_validator("carry", mode="before")
    @classmethod
    def _one_column_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("pools", "pipelines", mode="before")
    @classmethod
    def _one_pool_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("engine")
    @classmethod
    def _engine_options_are_known(cls, value: dict[str, Any]) -> dict[str, Any]:
        return check_engine_options(value)

    @field_validator("columns")
    @classmethod
    def _columns_are_ours(cls, value: dict[str, str]) -> dict[str, str]:
        for ours in value:
            if ours not in COLUMNS:
                raise InvalidInput(
                    f"columns: {ours!r}",
                    "is not a column ShuntServe reads (write our name first, then yours)",
                    did_you_mean(ours, COLUMNS),
                )
        return value

    @model_validator(mode="after")
    def _settings_agree(self) -> JobSpec:
        for label, text in (("input", "".join(self.input)), ("model", self.model)):
            if not text.strip():
                raise InvalidInput(label, "is empty", f"name the {label}")
        if self.prompt_template is not None:
            PromptTemplate.parse(self.prompt_template)
            for ours in ("prompt", "messages", "prompt_token_ids"):
                if ours in self.columns:
                    raise InvalidInput(f"columns: {ours!r}", "cannot be given with prompt_template", "keep one of them")
        if self.response_format is not None and self.structured_outputs is not None:
            raise InvalidInput("response_format", "is given together with structured_outputs", "keep one of them")
        if self.chat is False:
            for label, given in (
                ("system", self.system),
                ("chat_template", self.chat_template),
                ("chat_template_kwargs", self.chat_template_kwargs or None),
            ):
                if given is not None:
                    raise InvalidInput(label, "has no effect when chat is false", "leave out one of them")
        if self.max_tokens is not None and self.sampling_params.get("max_tokens", self.max_tokens) != self.max_tokens:
            raise InvalidInput("max_tokens", "differs from sampling_params.max_tokens", "keep one of them")
        if self.deadline is not None:
            parse_deadline(self.deadline, 0.0)
        read_shapes(self.pipelines, read_offers(self.fleet, self.pools, self.market))
        self.job_params(_ANY_VOCABULARY)
        return self

    @property
    def chats(self) -> bool:
        """Whether prompts go through the chat template."""
        if self.chat is not None:
            return self.chat
        return self.system is not None or self.chat_template is not None or bool(self.chat_template_kwargs)

    def job_params(self, limits: Limits) -> dict[str, Any]:
        """The job's own sampling parameters, checked and canonical. Raises InvalidInput."""
        raw = dict(self.sampling_params)
        if self.max_tokens is not None:
            raw["max_tokens"] = self.max_tokens
        try:
            if self.structured_outputs is not None:
                raw["structured_outputs"] = canonical_structured_outputs(self.structured_outputs)
            if self.response_format is not None:
                raw["structured_outputs"] = from_response_format(self.response_format)
        except ValueError as error:
            label = "response_format" if self.response_format is not None else "structured_outputs"
            raise InvalidInput(label, str(error), "write one well-formed constraint") from error
        try:
            checked = check_params(raw, limits)
            resolve_params({}, checked)
        except RowRejected as rejected:
            raise InvalidInput("sampling_params", rejected.message, "change or remove it") from rejected
        return checked


def parse_duration_s(text: str) -> float:
    """Seconds in `90`, `90s`, `15m`, `2h30m` or `1d`. Raises InvalidInput."""
    match = re.fullmatch(
        r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip()
    )
    if match is None or not any(match.groups()):
        raise InvalidInput(f"duration {text!r}", "cannot be read", "write it like 90m or 2h30m")
    seconds = math.fsum(
        float(part or 0) * unit for part, unit in zip(match.groups(), (86400, 3600, 60, 1), strict=True)
    )
    if seconds <= 0:
        raise InvalidInput(f"duration {text!r}", "is zero", "give the job some time")
    return seconds


def parse_deadline(value: str | datetime, now_unix_s: float) -> float:
    """The deadline as a Unix time: a moment with a zone as it is, a duration counted from now. Raises InvalidInput."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            return now_unix_s + parse_duration_s(str(value))
    if value.tzinfo is None:
        raise InvalidInput(f"deadline {value.isoformat()}", "has no time zone", "add Z or an offset such as +01:00")
    return value.astimezone(UTC).timestamp()


def _path(value: Any) -> Any:
    return fspath(value) if isinstance(value, PathLike) else value


def _as_invalid_input(error: ValidationError) -> InvalidInput:
    """The first complaint as one line; pydantic's own text says what was expected."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "job"
    if first["type"] == "missing":
        return InvalidInput(f"job setting {where!r}", "is missing", "every job needs input and model")
    return InvalidInput(f"job setting {where!r}", first["msg"].lower(), f"got {first.get('input')!r}"[:200])

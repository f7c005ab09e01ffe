"""Sampling parameters: which ones a job may use, their ranges, and how row, job and model settings combine.

Names and ranges are vLLM's. The table below is an allow-list: what is not in it is refused with the near miss named,
because a parameter that is silently ignored is found only after the money is spent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shuntserve.core.near_miss import did_you_mean
from shuntserve.core.reject_codes import RejectCode, RowRejected
from shuntserve.core.structured import canonical_structured_outputs, from_response_format

DEFAULT_MAX_TOKENS = 2048
"""Used when neither row, job nor the model's generation config says how long an answer may get.

vLLM's own default of 16 cuts answers off and its server's default, the rest of the context, lets one rambling row cost
more than the job. Generation also ends at the model's context length, whatever `max_tokens` says.
"""

MAX_SAMPLES = 1024
MAX_SEED = 2**63 - 1 - MAX_SAMPLES
"""Sample i of a row uses seed + i, which must still fit a signed 64-bit integer."""

DEFAULT_MAX_LOGPROBS = 20
"""vLLM's own bound on `logprobs`; the engine option `max_logprobs` raises it."""

GREEDY_BELOW = 1e-5
"""vLLM treats temperatures below this as zero."""

ALIASES = {
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_length": "max_tokens",
    "max_gen_toks": "max_tokens",
    "temp": "temperature",
    "topp": "top_p",
    "topk": "top_k",
    "stop_sequences": "stop",
    "stop_strings": "stop",
    "num_return_sequences": "n",
    "random_seed": "seed",
    "guided_json": "structured_outputs",
    "guided_regex": "structured_outputs",
    "guided_choice": "structured_outputs",
    "guided_grammar": "structured_outputs",
    "guided_decoding": "structured_outputs",
    "eos_token_id": "stop_token_ids",
    "no_repeat_ngram_size": "repetition_penalty",
}

UNSUPPORTED = {
    "prompt_logprobs": "prompts are not scored by a batch job",
    "detokenize": "the output text is always produced",
    "best_of": "vLLM has removed it; use n and choose afterwards",
    "use_beam_search": "vLLM has removed it from sampling parameters",
    "length_penalty": "it belongs to beam search, which vLLM has removed",
    "early_stopping": "it belongs to beam search, which vLLM has removed",
    "logits_processors": "code cannot be shipped inside a row",
    "extra_args": "it is reserved for the engine plugin",
    "output_kind": "the engine adapter decides how output is streamed",
    "thinking_token_budget": "it cannot yet be continued after an interruption",
    "repetition_detection": "it cannot yet be continued after an interruption",
    "truncate_prompt_tokens": "over-long prompts are rejected, never cut",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model and the engine's configuration bound."""

    vocab_size: int
    max_logprobs: int = DEFAULT_MAX_LOGPROBS


class BadValue(ValueError):
    """A parameter's value cannot be used; the text says what it should be."""


Check = Callable[[Any, Limits], Any]


def _number(low: float, high: float, *, low_open: bool = False) -> Check:
    def check(value: Any, _: Limits) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise BadValue("must be a finite number")
        if value < low or value > high or (low_open and value == low):
            bound = "(" if low_open else "["
            end = f"{high:g}]" if math.isfinite(high) else "∞)"
            raise BadValue(f"must be in {bound}{low:g}, {end}, got {value:g}")
        return float(value)

    return check


def _integer(low: int, high: int) -> Check:
    def check(value: Any, _: Limits) -> int:
        whole = _as_int(value)
        if whole is None:
            raise BadValue("must be a whole number")
        if not low <= whole <= high:
            raise BadValue(f"must be from {low} to {high}, got {whole}")
        return whole

    return check


def _flag(value: Any, _: Limits) -> bool:
    if not isinstance(value, bool):
        raise BadValue("must be true or false")
    return value


def _strings(value: Any, _: Limits) -> list[str]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise BadValue("must be a string or a list of strings")
    if any(not item for item in items):
        raise BadValue("must not hold an empty string")
    return list(dict.fromkeys(items))


def _token_id(value: Any, limits: Limits) -> int:
    whole = _as_int(value)
    if whole is None or not 0 <= whole < limits.vocab_size:
        raise BadValue(f"must hold token ids from 0 to {limits.vocab_size - 1}")
    return whole


def _token_ids(value: Any, limits: Limits) -> list[int]:
    if not isinstance(value, list | tuple) or not value:
        raise BadValue("must be a list of token ids")
    return list(dict.fromkeys(_token_id(item, limits) for item in value))


def _logit_bias(value: Any, limits: Limits) -> dict[str, float]:
    if not isinstance(value, Mapping) or not value:
        raise BadValue("must map token ids to a bias")
    biases: dict[int, float] = {}
    for token, bias in value.items():
        if isinstance(token, str):
            try:
                token = int(token)
            except ValueError:
                raise BadValue("must have token ids as keys") from None
        biases[_token_id(token, limits)] = _number(-100.0, 100.0)(bias, limits)
    return {str(token): biases[token] for token in sorted(biases)}


def _logprobs(value: Any, limits: Limits) -> int:
    return int(_integer(0, limits.max_logprobs)(value, limits))


def _structured(value: Any, _: Limits) -> dict[str, Any]:
    try:
        return canonical_structured_outputs(value)
    except ValueError as error:
        raise BadValue(str(error)) from error


def _as_int(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return None


PARAMETERS: Mapping[str, Check] = {
    "n": _integer(1, MAX_SAMPLES),
    "presence_penalty": _number(-2.0, 2.0),
    "frequency_penalty": _number(-2.0, 2.0),
    "repetition_penalty": _number(0.0, math.inf, low_open=True),
    "temperature": _number(0.0, 2.0),
    "top_p": _number(0.0, 1.0, low_open=True),
    "top_k": _integer(-1, 2**31 - 1),
    "min_p": _number(0.0, 1.0),
    "seed": _integer(0, MAX_SEED),
    "stop": _strings,
    "stop_token_ids": _token_ids,
    "bad_words": _strings,
    "ignore_eos": _flag,
    "max_tokens": _integer(1, 2**31 - 1),
    "min_tokens": _integer(0, 2**31 - 1),
    "logprobs": _logprobs,
    "skip_special_tokens": _flag,
    "spaces_between_special_tokens": _flag,
    "include_stop_str_in_output": _flag,
    "structured_outputs": _structured,
    "logit_bias": _logit_bias,
    "allowed_token_ids": _token_ids,
}
"""Every parameter a job or a row may set, with the function that checks a value and returns its canonical form."""


@dataclass(frozen=True, slots=True)
class ResolvedParams:
    """What one row's sequences are generated with. `params` is canonical JSON without `n` and `seed`."""

    params: str
    n: int
    seed: int | None


def check_params(raw: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """The canonical form of some parameters. A null means "not given". Raises RowRejected.

    `response_format` (OpenAI's form) is accepted for `structured_outputs`; its type `text` gives a null, which takes
    the job's structured outputs back.
    """
    checked: dict[str, Any] = {}
    for name, value in raw.items():
        if value is None:
            continue
        if name == "response_format":
            if raw.get("structured_outputs") is not None:
                raise RowRejected(RejectCode.BAD_PARAMETER, "response_format and structured_outputs are both given")
            try:
                checked["structured_outputs"] = from_response_format(value)
            except ValueError as error:
                raise RowRejected(RejectCode.BAD_PARAMETER, f"response_format {error}") from error
            continue
        if name in UNSUPPORTED:
            raise RowRejected(RejectCode.UNSUPPORTED_PARAMETER, f"{name!r} is not supported: {UNSUPPORTED[name]}")
        check = PARAMETERS.get(name)
        if check is None:
            raise RowRejected(
                RejectCode.UNKNOWN_PARAMETER,
                f"unknown parameter {name!r}; {did_you_mean(name, PARAMETERS, ALIASES)}",
            )
        try:
            checked[name] = check(value, limits)
        except BadValue as error:
            raise RowRejected(RejectCode.BAD_PARAMETER, f"{name} {error}") from error
    return checked


def resolve_params(job: Mapping[str, Any], row: Mapping[str, Any]) -> ResolvedParams:
    """Row over job (which already stands over the model's generation config); both checked. Raises RowRejected.

    Rules between parameters are checked here, on the outcome, because a row may break one together with the job's
    settings.
    """
    merged = {**job, **row}
    merged = {name: value for name, value in merged.items() if value is not None}
    merged.setdefault("max_tokens", DEFAULT_MAX_TOKENS)
    n = merged.pop("n", 1)
    seed = merged.pop("seed", None)
    if merged.get("min_tokens", 0) > merged["max_tokens"]:
        raise RowRejected(
            RejectCode.BAD_PARAMETER,
            f"min_tokens {merged['min_tokens']} is greater than max_tokens {merged['max_tokens']}",
        )
    if n > 1 and merged.get("temperature", 1.0) < GREEDY_BELOW:
        raise RowRejected(
            RejectCode.BAD_PARAMETER, f"n is {n} but temperature 0 gives the same answer every time; raise temperature"
        )
    return ResolvedParams(json.dumps(merged, sort_keys=True, separators=(",", ":"), ensure_ascii=False), n, seed)


def generation_config_params(config: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling defaults in a model's generation_config.json, the same ones vLLM takes from it, unchecked."""
    names = (
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
    )
    params = {name: config[name] for name in names if config.get(name) is not None}
    if config.get("max_new_tokens") is not None:
        params["max_tokens"] = config["max_new_tokens"]
    return params

"""One request of an OpenAI batch file: its body in our terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shuntserve.core.near_miss import did_you_mean
from shuntserve.core.reject_codes import RejectCode, RowRejected
from shuntserve.core.sampling import ALIASES, PARAMETERS, UNSUPPORTED

CHAT_URL = "/v1/chat/completions"
COMPLETION_URL = "/v1/completions"
URLS = (CHAT_URL, COMPLETION_URL)

_LINE_KEYS = ("custom_id", "method", "url", "body")
_IGNORED = frozenset(
    {
        "model",
        "user",
        "metadata",
        "store",
        "service_tier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
    }
)
"""Keys that say who asks or how to bill, not what to generate. `model` is the job's; the answer repeats the row's."""

_SAMPLING = frozenset(PARAMETERS) - {"logprobs"} | {"response_format"}
_CHAT_KEYS = frozenset(
    {
        "messages",
        "chat_template_kwargs",
        "reasoning_effort",
        "add_generation_prompt",
        "continue_final_message",
        "logprobs",
        "top_logprobs",
        "max_completion_tokens",
    }
)
_COMPLETION_KEYS = frozenset({"prompt", "logprobs", "add_special_tokens"})
_REFUSED: Mapping[str, str] = {
    "tools": "tool calls are not parsed",
    "tool_choice": "tool calls are not parsed",
    "functions": "tool calls are not parsed",
    "function_call": "tool calls are not parsed",
    "audio": "answers are text",
    "modalities": "answers are text",
    "stream_options": "a batch does not stream",
    "suffix": "infilling is not supported",
    "prediction": "predicted outputs are not supported",
    "web_search_options": "there is no web search",
    "chat_template": "the job's chat template counts; set it in the job",
    **{name: reason for name, reason in UNSUPPORTED.items() if name != "best_of"},
}
_HARMLESS_VALUES: Mapping[str, Sequence[Any]] = {
    "stream": (False,),
    "echo": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "suffix": ("",),
    "verbosity": ("medium",),
}
"""Values that ask for what happens anyway."""


@dataclass(frozen=True, slots=True)
class OpenAiRequest:
    """A batch line in our terms; exactly one of `messages`, `prompt` and `prompt_token_ids` is set."""

    url: str
    model: str | None
    params: Mapping[str, Any]
    messages: Any = None
    prompt: str | None = None
    prompt_token_ids: Sequence[int] | None = None
    template_kwargs: Mapping[str, Any] | None = None
    special_tokens: bool = True


def parse_request(line: Mapping[str, Any]) -> OpenAiRequest:
    """Raises RowRejected; `custom_id` is the caller's business, since a reject wants it too."""
    for name in line:
        if name not in _LINE_KEYS:
            raise RowRejected(RejectCode.UNKNOWN_PARAMETER, f"unknown key {name!r}; {did_you_mean(name, _LINE_KEYS)}")
    if line.get("method", "POST") != "POST":
        raise RowRejected(RejectCode.BAD_PARAMETER, "method must be POST")
    body = line.get("body")
    if not isinstance(body, Mapping):
        raise RowRejected(RejectCode.WRONG_TYPE, "body must be an object")
    match line.get("url"):
        case "/v1/chat/completions":
            return _chat(body)
        case "/v1/completions":
            return _completion(body)
        case str(url):
            raise RowRejected(RejectCode.BAD_PARAMETER, f"url {url!r} is not answered; {did_you_mean(url, URLS)}")
        case _:
            raise RowRejected(RejectCode.WRONG_TYPE, "url must be a string")


def _chat(body: Mapping[str, Any]) -> OpenAiRequest:
    params = _params(body, _CHAT_KEYS)
    if body.get("messages") is None:
        raise RowRejected(RejectCode.NO_PROMPT, "body has no messages")
    _add_limit(params, body)
    if _flag(body, "logprobs"):
        params["logprobs"] = body.get("top_logprobs") or 0
    elif body.get("top_logprobs"):
        raise RowRejected(RejectCode.BAD_PARAMETER, "top_logprobs needs logprobs: true")
    kwargs = body.get("chat_template_kwargs")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise RowRejected(RejectCode.WRONG_TYPE, "chat_template_kwargs must be an object")
    kwargs = dict(kwargs or {})
    for name in ("reasoning_effort", "add_generation_prompt", "continue_final_message"):
        if body.get(name) is not None:
            kwargs[name] = body[name]
    if {"chat_template", "tokenize"} & kwargs.keys():
        raise RowRejected(RejectCode.BAD_PARAMETER, "chat_template_kwargs cannot set chat_template or tokenize")
    return OpenAiRequest(
        CHAT_URL, _model(body), params, messages=body["messages"], template_kwargs=kwargs or None, special_tokens=False
    )


def _completion(body: Mapping[str, Any]) -> OpenAiRequest:
    params = _params(body, _COMPLETION_KEYS)
    if body.get("best_of") is not None and body["best_of"] != body.get("n", 1):
        raise RowRejected(RejectCode.UNSUPPORTED_PARAMETER, "best_of is not supported; use n and choose afterwards")
    if body.get("logprobs") is not None:
        params["logprobs"] = body["logprobs"]
    special = _flag(body, "add_special_tokens", default=True)
    prompt = body.get("prompt")
    match prompt:
        case None:
            raise RowRejected(RejectCode.NO_PROMPT, "body has no prompt")
        case str():
            return OpenAiRequest(COMPLETION_URL, _model(body), params, prompt=prompt, special_tokens=special)
        case [str(only)]:
            return OpenAiRequest(COMPLETION_URL, _model(body), params, prompt=only, special_tokens=special)
        case []:
            raise RowRejected(RejectCode.EMPTY_PROMPT, "prompt is empty")
        case [list(only)] if _token_ids(only):
            return OpenAiRequest(COMPLETION_URL, _model(body), params, prompt_token_ids=only)
        case list() if _token_ids(prompt):
            return OpenAiRequest(COMPLETION_URL, _model(body), params, prompt_token_ids=prompt)
        case list() if len(prompt) > 1:
            raise RowRejected(RejectCode.UNSUPPORTED_PARAMETER, "several prompts in one line; write one line for each")
        case _:
            raise RowRejected(RejectCode.WRONG_TYPE, "prompt must be text or a list of token ids")


def _params(body: Mapping[str, Any], handled: frozenset[str]) -> dict[str, Any]:
    """The sampling parameters in a body under their own names; refuses what nobody knows or can honour."""
    params: dict[str, Any] = {}
    for name, value in body.items():
        if value is None or name in _IGNORED or name in handled or value in _HARMLESS_VALUES.get(name, ()):
            continue
        if name in _SAMPLING:
            params[name] = value
        elif name == "best_of":
            continue
        elif name in _REFUSED or name in _HARMLESS_VALUES:
            reason = _REFUSED.get(name, f"it can only be {' or '.join(map(str, _HARMLESS_VALUES.get(name, ())))}")
            raise RowRejected(RejectCode.UNSUPPORTED_PARAMETER, f"{name!r} is not supported: {reason}")
        else:
            raise RowRejected(
                RejectCode.UNKNOWN_PARAMETER,
                f"unknown parameter {name!r}; {did_you_mean(name, _SAMPLING | handled, ALIASES)}",
            )
    return params


def _add_limit(params: dict[str, Any], body: Mapping[str, Any]) -> None:
    """OpenAI renamed max_tokens to max_completion_tokens; both may be there when they agree."""
    newer = body.get("max_completion_tokens")
    if newer is None:
        return
    if params.get("max_tokens", newer) != newer:
        raise RowRejected(RejectCode.BAD_PARAMETER, "max_tokens and max_completion_tokens differ")
    params["max_tokens"] = newer


def _flag(body: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise RowRejected(RejectCode.BAD_PARAMETER, f"{name} must be true or false")
    return value


def _model(body: Mapping[str, Any]) -> str | None:
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise RowRejected(RejectCode.WRONG_TYPE, "model must be a string")
    return model


def _token_ids(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(item, int) and not isinstance(item, bool) for item in value)

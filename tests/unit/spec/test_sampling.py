"""Sampling parameters: the allow-list, its ranges, and how settings combine."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from shuntserve.core.reject_codes import RejectCode, RowRejected
from shuntserve.core.sampling import (
    DEFAULT_MAX_TOKENS,
    MAX_SAMPLES,
    MAX_SEED,
    PARAMETERS,
    UNSUPPORTED,
    Limits,
    check_params,
    generation_config_params,
    resolve_params,
)

LIMITS = Limits(vocab_size=100)


def vllm_fields(file: str, name: str) -> set[str]:
    """The annotated fields of a class of vLLM, read from its source: importing vLLM takes long."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / file).read_text())
    found = next(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name)
    return {
        item.target.id for item in found.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }


def test_every_allowed_parameter_is_one_of_vllms() -> None:
    """Nothing on the allow-list would be refused by the engine as unknown."""
    assert set(PARAMETERS) <= vllm_fields("sampling_params.py", "SamplingParams")


def test_a_parameter_is_allowed_or_unsupported_never_both() -> None:
    """A name has one answer."""
    assert not set(PARAMETERS) & set(UNSUPPORTED)


@pytest.mark.parametrize(
    ("raw", "canonical"),
    [
        ({"temperature": 1}, {"temperature": 1.0}),
        ({"top_k": -1}, {"top_k": -1}),
        ({"top_k": 5.0}, {"top_k": 5}),
        ({"stop": "a"}, {"stop": ["a"]}),
        ({"stop": ["a", "b", "a"]}, {"stop": ["a", "b"]}),
        ({"stop_token_ids": [3, 3, 1]}, {"stop_token_ids": [3, 1]}),
        ({"logit_bias": {"7": 1, 3: -100}}, {"logit_bias": {"3": -100.0, "7": 1.0}}),
        ({"seed": MAX_SEED}, {"seed": MAX_SEED}),
        ({"seed": 0}, {"seed": 0}),
        ({"n": MAX_SAMPLES}, {"n": MAX_SAMPLES}),
        ({"logprobs": 0}, {"logprobs": 0}),
        ({"ignore_eos": True}, {"ignore_eos": True}),
        ({"temperature": None}, {}),
        ({"structured_outputs": {"regex": "a+"}}, {"structured_outputs": {"regex": "a+"}}),
        ({"structured_outputs": {"json": '{"type": "object"}'}}, {"structured_outputs": {"json": {"type": "object"}}}),
        ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}),
    ],
    ids=str,
)
def test_values_become_canonical(raw: dict[str, Any], canonical: dict[str, Any]) -> None:
    """Different ways to write the same value give the same parameters; nulls are not given."""
    assert check_params(raw, LIMITS) == canonical


@pytest.mark.parametrize(
    ("raw", "code", "message"),
    [
        ({"temperature": -0.1}, RejectCode.BAD_PARAMETER, "[0, 2]"),
        ({"temperature": 2.1}, RejectCode.BAD_PARAMETER, "[0, 2]"),
        ({"temperature": float("nan")}, RejectCode.BAD_PARAMETER, "finite"),
        ({"temperature": "1"}, RejectCode.BAD_PARAMETER, "number"),
        ({"temperature": True}, RejectCode.BAD_PARAMETER, "number"),
        ({"top_p": 0}, RejectCode.BAD_PARAMETER, "(0, 1]"),
        ({"top_k": -2}, RejectCode.BAD_PARAMETER, "from -1"),
        ({"top_k": 1.5}, RejectCode.BAD_PARAMETER, "whole"),
        ({"repetition_penalty": 0}, RejectCode.BAD_PARAMETER, "(0, ∞)"),
        ({"n": 0}, RejectCode.BAD_PARAMETER, "from 1"),
        ({"n": MAX_SAMPLES + 1}, RejectCode.BAD_PARAMETER, "from 1"),
        ({"seed": -1}, RejectCode.BAD_PARAMETER, "from 0"),
        ({"seed": 2**63}, RejectCode.BAD_PARAMETER, "from 0"),
        ({"max_tokens": 0}, RejectCode.BAD_PARAMETER, "from 1"),
        ({"stop": [""]}, RejectCode.BAD_PARAMETER, "empty"),
        ({"stop": [1]}, RejectCode.BAD_PARAMETER, "string"),
        ({"stop_token_ids": [100]}, RejectCode.BAD_PARAMETER, "0 to 99"),
        ({"allowed_token_ids": []}, RejectCode.BAD_PARAMETER, "list"),
        ({"logit_bias": {"x": 1}}, RejectCode.BAD_PARAMETER, "token ids as keys"),
        ({"logit_bias": {"1": 101}}, RejectCode.BAD_PARAMETER, "[-100, 100]"),
        ({"logprobs": 21}, RejectCode.BAD_PARAMETER, "0 to 20"),
        ({"logprobs": -1}, RejectCode.BAD_PARAMETER, "0 to 20"),
        ({"ignore_eos": 1}, RejectCode.BAD_PARAMETER, "true or false"),
        ({"structured_outputs": {}}, RejectCode.BAD_PARAMETER, "exactly one"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, RejectCode.BAD_PARAMETER, "exactly one"),
        ({"structured_outputs": {"jsn": {}}}, RejectCode.BAD_PARAMETER, "'json'"),
        ({"structured_outputs": {"json": "{"}}, RejectCode.BAD_PARAMETER, "valid JSON"),
        ({"structured_outputs": {"choice": []}}, RejectCode.BAD_PARAMETER, "choice"),
        ({"structured_outputs": {"json_object": False}}, RejectCode.BAD_PARAMETER, "only be true"),
        ({"structured_outputs": {"regex": "a", "whitespace_pattern": 1}}, RejectCode.BAD_PARAMETER, "a string"),
        ({"response_format": {"type": "json_schema"}}, RejectCode.BAD_PARAMETER, "json_schema.schema"),
        (
            {"response_format": {"type": "text"}, "structured_outputs": {"regex": "a"}},
            RejectCode.BAD_PARAMETER,
            "both given",
        ),
        ({"temprature": 1}, RejectCode.UNKNOWN_PARAMETER, "'temperature'"),
        ({"Top-P": 1}, RejectCode.UNKNOWN_PARAMETER, "'top_p'"),
        ({"max_new_tokens": 1}, RejectCode.UNKNOWN_PARAMETER, "'max_tokens'"),
        ({"guided_json": {}}, RejectCode.UNKNOWN_PARAMETER, "'structured_outputs'"),
        ({"best_of": 2}, RejectCode.UNSUPPORTED_PARAMETER, "use n"),
        ({"prompt_logprobs": 1}, RejectCode.UNSUPPORTED_PARAMETER, "not scored"),
    ],
    ids=str,
)
def test_bad_values_are_refused_with_what_they_should_be(raw: dict[str, Any], code: RejectCode, message: str) -> None:
    """The message names the parameter and its range, or the near miss."""
    with pytest.raises(RowRejected) as caught:
        check_params(raw, LIMITS)

    assert caught.value.code is code
    assert message in caught.value.message
    assert next(iter(raw)).lower()[:4] in caught.value.message.lower()


def test_a_schema_nested_too_deeply_is_refused() -> None:
    """Building a grammar for it would take the engine minutes."""
    schema: dict[str, Any] = {}
    for _ in range(70):
        schema = {"properties": {"a": schema}}

    with pytest.raises(RowRejected, match="deeper than 64"):
        check_params({"structured_outputs": {"json": schema}}, LIMITS)


def test_a_row_stands_over_the_job() -> None:
    """Parameter by parameter; what nobody sets is left to the engine, max_tokens excepted."""
    resolved = resolve_params({"temperature": 0.5, "top_p": 0.9}, {"temperature": 1.0, "seed": 3, "n": 2})

    assert json.loads(resolved.params) == {"temperature": 1.0, "top_p": 0.9, "max_tokens": DEFAULT_MAX_TOKENS}
    assert (resolved.n, resolved.seed) == (2, 3)


def test_a_row_can_take_the_jobs_structured_outputs_back() -> None:
    """`response_format: text` in a row means free text for that row."""
    row = check_params({"response_format": {"type": "text"}}, LIMITS)

    resolved = resolve_params({"structured_outputs": {"regex": "a"}, "max_tokens": 1}, row)

    assert json.loads(resolved.params) == {"max_tokens": 1}


def test_equal_parameters_have_equal_text() -> None:
    """The text is canonical: order of keys does not matter."""
    one = resolve_params({}, {"temperature": 1.0, "top_p": 0.5})
    other = resolve_params({"top_p": 0.5}, {"temperature": 1.0})

    assert one == other


@pytest.mark.parametrize(
    ("job", "row", "message"),
    [
        ({"max_tokens": 4}, {"min_tokens": 5}, "greater than max_tokens 4"),
        ({"temperature": 0.0}, {"n": 2}, "raise temperature"),
        ({"n": 2}, {"temperature": 0.0}, "raise temperature"),
    ],
)
def test_contradictions_between_row_and_job_are_found(job: dict[str, Any], row: dict[str, Any], message: str) -> None:
    """Rules between parameters hold for the outcome, wherever its parts come from."""
    with pytest.raises(RowRejected, match=message):
        resolve_params(job, row)


def test_a_generation_config_gives_the_defaults_vllm_takes_from_it() -> None:
    """max_new_tokens becomes max_tokens; what is no sampling default is left out."""
    config = {"temperature": 0.6, "max_new_tokens": 9, "do_sample": True, "top_k": None, "eos_token_id": 3}

    assert generation_config_params(config) == {"temperature": 0.6, "max_tokens": 9}

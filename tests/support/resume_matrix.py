"""The resume matrix: every feature of the sampler, cut at every point, and what counts as the same.

`CASES` names each feature; rows of prompts of unlike lengths run undisturbed, are cut, and continued. What was compared
is noted in the test's report and printed as a table at the end of the test run (`tests.support.resume_table`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from shuntserve.engine.port import SequenceRequest
from shuntserve.sim.tiny_model import SPECIAL_TOKENS
from tests.support.vllm_driver import Output

MAX_TOKENS = 72
ROWS = 3
CUTS = ("1", "7", "33", "63", "last")
NOTE = "resume"
"""Name of the property under which a test's report says what was compared."""
LOGPROB_TOLERANCE = 1e-4

BYTES = list(range(len(SPECIAL_TOKENS), len(SPECIAL_TOKENS) + 256))
"""Ids of the single bytes: sampled at random they are broken UTF-8, the hardest text to cut."""
LETTERS = [BYTES[0] + byte - 0x21 for byte in b"abcdefgh"]
"""Printable bytes come first, from "!"."""
BAD_WORDS = ["ab", "cde", "f", "ba"]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 30, "maxLength": 60},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "age", "ok"],
    "additionalProperties": False,
}
CHOICES = ["quiet morning by the river in the valley", "quiet morning by the river and the sea", "silver stone"]
SEEDED = {"temperature": 0.9}
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "seeded": SEEDED,
    "seeded, top_p": {**SEEDED, "top_p": 0.8},
    "seeded, top_k": {**SEEDED, "top_k": 20},
    "seeded, min_p": {**SEEDED, "min_p": 0.05},
    "seeded, all filters": {**SEEDED, "top_p": 0.9, "top_k": 40, "min_p": 0.02},
    "samples of one prompt (n > 1)": {**SEEDED, "ignore_eos": True},
    "presence and frequency penalties": {"temperature": 0.0, "presence_penalty": 1.1, "frequency_penalty": 0.7},
    "repetition penalty": {"temperature": 0.0, "repetition_penalty": 1.3},
    "seeded, all penalties": {**SEEDED, "presence_penalty": 0.6, "frequency_penalty": 0.4, "repetition_penalty": 1.2},
    "logit bias": {**SEEDED, "logit_bias": {"477": 3.0, "320": -100.0, "449": 2.5}},
    "allowed token ids": {**SEEDED, "allowed_token_ids": list(range(262, 700)), "ignore_eos": True},
    "bad words": {**SEEDED, "allowed_token_ids": LETTERS, "bad_words": BAD_WORDS, "ignore_eos": True},
    "min_tokens and stop ids": {**SEEDED, "min_tokens": 50, "stop_token_ids": list(range(400, 700))},
    "stop ids": {**SEEDED, "stop_token_ids": [492, 445]},
    "log probabilities": {**SEEDED, "logprobs": 3},
    "log probabilities of bytes": {**SEEDED, "logprobs": 2, "allowed_token_ids": BYTES, "ignore_eos": True},
    "bytes that are no characters": {**SEEDED, "allowed_token_ids": BYTES, "ignore_eos": True},
    "no end": {**SEEDED, "ignore_eos": True},
    "special tokens shown": {
        **SEEDED,
        "logit_bias": {"1": 30.0, "2": 31.0, "3": 30.5},
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
    },
    "regex": {**SEEDED, "structured_outputs": {"regex": "[a-f]{28}-[0-9]{20}(x|y)[k-z]{18,24}"}, "max_tokens": 90},
    "JSON schema": {
        **SEEDED,
        "structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True},
        "max_tokens": 140,
    },
    "choice": {**SEEDED, "structured_outputs": {"choice": CHOICES}},
}
STOP_STRINGS = ("stop string", "stop string, shown")
"""Cases of their own: each row's stop string is made of its own text, so that the cut at 63 goes through it."""
_STOP_FROM_TOKEN = 62

Place = tuple[str, int]
"""(case, row)."""
Requests = dict[Place, SequenceRequest]
Outputs = dict[Place, Output]
Run = Callable[[Sequence[SequenceRequest]], dict[str, Output]]


def prompt(row: int) -> list[int]:
    """Prompts of 3, 63, 123… tokens: one, several and many chunks of prefill."""
    return [300 + (7 * row + 13 * i) % 390 for i in range(3 + 60 * row)]


def request(
    case: str, params: Mapping[str, Any], row: int, prior: Sequence[int] = (), tag: str = ""
) -> SequenceRequest:
    """Row `row` of a case, with the seed that a job gives it."""
    samples_of_one = case.startswith("samples")
    given = {"max_tokens": MAX_TOKENS, "seed": (17 + row if samples_of_one else 1000 * row + 17), **params}
    return SequenceRequest(f"{case}/{row}/{tag}", prompt(1 if samples_of_one else row), given, list(prior))


def cut(token_ids: Sequence[int], where: str) -> list[int]:
    """The prior tokens of a cut, always fewer than all."""
    return list(token_ids[: len(token_ids) - 1 if where == "last" else min(int(where), len(token_ids) - 1)])


def whole_runs(run: Run, cases: Mapping[str, Mapping[str, Any]] = CASES) -> tuple[Requests, Outputs]:
    """Every row of every case undisturbed, those with stop strings last."""
    requests = {(case, row): request(case, params, row) for case, params in cases.items() for row in range(ROWS)}
    outputs = _run(run, requests)
    if "no end" in cases:
        stopping = {
            (case, row): request(case, _stop_params(outputs["no end", row].text, shown), row)
            for case, shown in zip(STOP_STRINGS, (False, True), strict=True)
            for row in range(ROWS)
        }
        requests |= stopping
        outputs |= _run(run, stopping)
    return requests, outputs


def continued_runs(run: Run, requests: Requests, whole: Outputs, cuts: Sequence[str] = CUTS) -> dict[str, Outputs]:
    """Every row continued from every cut, in another order than the first time and all in one batch."""
    continuing: dict[tuple[str, Place], SequenceRequest] = {}
    for where in reversed(cuts):
        for place, original in reversed(requests.items()):
            continuing[where, place] = SequenceRequest(
                f"{original.seq_id}{where}",
                original.prompt_token_ids,
                original.params,
                cut(whole[place].token_ids, where),
            )
    outputs = run(list(continuing.values()))
    return {where: {place: outputs[continuing[where, place].seq_id] for place in requests} for where in cuts}


def differences(whole: Output, prior: Sequence[int], rest: Output) -> list[str]:
    """In what prior and rest together are not the whole; empty when they are."""
    if rest.refused is not None:
        return [f"refused: {rest.refused.message}"]
    found = {
        "tokens": [*prior, *rest.token_ids] != whole.token_ids,
        "text": rest.text != whole.text,
        "reasons": (rest.finish_reason, rest.stop_reason) != (whole.finish_reason, whole.stop_reason),
        "log probabilities": whole.logprobs is not None
        and not _same_logprobs(whole.logprobs[len(prior) :], rest.logprobs or []),
    }
    return [name for name, differs in found.items() if differs]


def assert_case_continues(
    record_property: Callable[[str, object], None],
    engine: str,
    case: str,
    where: str,
    whole: Outputs,
    continued: Outputs,
) -> None:
    """All rows of one case at one cut; says in the test's report how many were the same."""
    found = {
        row: differences(whole[case, row], cut(whole[case, row].token_ids, where), continued[case, row])
        for row in range(ROWS)
    }
    same = sum(not different for different in found.values())
    record_property(NOTE, [engine, case, where, same, ROWS])
    assert same == ROWS, {row: different for row, different in found.items() if different}


def _stop_params(text: str, shown: bool) -> dict[str, Any]:
    """A string of the last letters of one word and the first of the next but one, as each token is a word."""
    words = text.split(" ")[1 + _STOP_FROM_TOKEN :][:3]
    stop = f"{words[0][-2:]} {words[1]} {words[2][:2]}"
    return {**SEEDED, "ignore_eos": True, "stop": [stop, "never seen"], "include_stop_str_in_output": shown}


def _run(run: Run, requests: Requests) -> Outputs:
    outputs = run(list(requests.values()))
    return {place: outputs[request.seq_id] for place, request in requests.items()}


def _same_logprobs(expected: Sequence[Any], found: Sequence[Any]) -> bool:
    if len(expected) != len(found):
        return False
    return all(
        [(i, rank, text) for i, _, rank, text in ours] == [(i, rank, text) for i, _, rank, text in theirs]
        and [p for _, p, _, _ in ours] == pytest.approx([p for _, p, _, _ in theirs], abs=LOGPROB_TOLERANCE)
        for ours, theirs in zip(found, expected, strict=True)
    )

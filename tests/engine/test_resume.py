"""A sequence cut off anywhere and continued gives what an undisturbed one gives, for every feature of the sampler.

Every row of every case runs once undisturbed, then is cut after 1, 7 and all but one of its tokens and continued,
all cases mixed in one batch. Tokens, text, finish and stop reasons and log probabilities must be the same. The
engine prefills in small chunks and caches prefixes, so continued rows meet both.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shuntserve.engine.port import LossKind, SequenceRequest
from shuntserve.engine.process import EngineProcess
from shuntserve.sim.tiny_model import SPECIAL_TOKENS
from tests.support import vllm_driver as driver

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

MAX_TOKENS = 40
ROWS = 3
BYTES = list(range(len(SPECIAL_TOKENS), len(SPECIAL_TOKENS) + 256))
"""Ids of the single bytes: sampled at random they are broken UTF-8, the hardest text to cut."""
LETTERS = [BYTES[0] + byte - 0x21 for byte in b"abcdefgh"]
"""Printable bytes come first, from "!"."""
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "age", "ok"],
    "additionalProperties": False,
}
SEEDED = {"temperature": 0.9}
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "seeded": SEEDED,
    "seeded, top_p": {**SEEDED, "top_p": 0.8},
    "seeded, top_k": {**SEEDED, "top_k": 20},
    "seeded, min_p": {**SEEDED, "min_p": 0.05},
    "seeded, all filters": {**SEEDED, "top_p": 0.9, "top_k": 40, "min_p": 0.02},
    "presence and frequency penalties": {"temperature": 0.0, "presence_penalty": 1.1, "frequency_penalty": 0.7},
    "repetition penalty": {"temperature": 0.0, "repetition_penalty": 1.3},
    "seeded, all penalties": {**SEEDED, "presence_penalty": 0.6, "frequency_penalty": 0.4, "repetition_penalty": 1.2},
    "logit bias": {**SEEDED, "logit_bias": {"477": 3.0, "320": -100.0, "449": 2.5}},
    "allowed token ids": {**SEEDED, "allowed_token_ids": list(range(262, 700)), "ignore_eos": True},
    "bad words": {**SEEDED, "allowed_token_ids": LETTERS, "bad_words": ["ab", "cde", "f", "ba"], "ignore_eos": True},
    "min_tokens and stop ids": {**SEEDED, "min_tokens": 25, "stop_token_ids": list(range(400, 700))},
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
    "regex": {**SEEDED, "structured_outputs": {"regex": "[a-f]{8}-[0-9]{12}(x|y)[k-z]{6,12}"}},
    "JSON schema": {
        **SEEDED,
        "structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True},
        "max_tokens": 120,
    },
    "choice": {**SEEDED, "structured_outputs": {"choice": ["quiet morning", "quiet river", "silver stone"]}},
}
CUTS = ("1", "7", "last")


def prompt(row: int) -> list[int]:
    """Prompts of 3, 63, 123… tokens: one, several and many chunks of prefill."""
    return [300 + (7 * row + 13 * i) % 390 for i in range(3 + 60 * row)]


def request(
    case: str, params: dict[str, Any], row: int, prior: list[int] | None = None, tag: str = ""
) -> SequenceRequest:
    given = {"max_tokens": MAX_TOKENS, "seed": 1000 * row + 17, **params}
    return SequenceRequest(f"{case}/{row}/{tag}", prompt(row), given, prior or [])


def cut(token_ids: list[int], where: str) -> list[int]:
    """The prior tokens of a cut, always fewer than all."""
    return token_ids[: len(token_ids) - 1 if where == "last" else min(int(where), len(token_ids) - 1)]


@pytest.fixture(scope="module")
def engine(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    engine = driver.started(
        driver.options(llama, block_size=32, max_num_batched_tokens=64, max_num_seqs=48),
        tmp_path_factory.mktemp("log") / "engine.log",
    )
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def undisturbed(engine: EngineProcess) -> dict[str, driver.Output]:
    requests = [request(case, params, row) for case, params in CASES.items() for row in range(ROWS)]
    return driver.generate(engine, requests)


@pytest.fixture(scope="module")
def continued(engine: EngineProcess, undisturbed: dict[str, driver.Output]) -> dict[str, driver.Output]:
    """Every row continued from every cut, in another order than the first time and all in one batch."""
    requests = [
        request(case, params, row, cut(undisturbed[f"{case}/{row}/"].token_ids, where), where)
        for where in reversed(CUTS)
        for row in reversed(range(ROWS))
        for case, params in CASES.items()
    ]
    return driver.generate(engine, requests)


def assert_continues(whole: driver.Output, prior: list[int], rest: driver.Output) -> None:
    assert prior + rest.token_ids == whole.token_ids
    assert rest.text == whole.text
    assert (rest.finish_reason, rest.stop_reason) == (whole.finish_reason, whole.stop_reason)
    if whole.logprobs is not None:
        assert rest.logprobs is not None
        expected = whole.logprobs[len(prior) :]
        assert [[(i, rank, text) for i, _, rank, text in at] for at in rest.logprobs] == [
            [(i, rank, text) for i, _, rank, text in at] for at in expected
        ]
        assert [[p for _, p, _, _ in at] for at in rest.logprobs] == [
            pytest.approx([p for _, p, _, _ in at], abs=1e-4) for at in expected
        ]


@pytest.mark.parametrize("where", CUTS)
@pytest.mark.parametrize("case", CASES)
def test_a_continued_sequence_equals_an_undisturbed_one(
    undisturbed: dict[str, driver.Output], continued: dict[str, driver.Output], case: str, where: str
) -> None:
    """Cut anywhere, whatever the sampler does: the same tokens, text, reasons and log probabilities."""
    for row in range(ROWS):
        whole = undisturbed[f"{case}/{row}/"]
        assert whole.refused is None, whole.refused
        assert_continues(whole, cut(whole.token_ids, where), continued[f"{case}/{row}/{where}"])


def test_the_cases_do_what_their_names_say(undisturbed: dict[str, driver.Output]) -> None:
    """Every case differs from plain sampling, so that none of them passes by doing nothing."""
    plain = [undisturbed[f"seeded/{row}/"].token_ids for row in range(ROWS)]
    greedy = [undisturbed[f"greedy/{row}/"].token_ids for row in range(ROWS)]
    for case, params in CASES.items():
        outputs = [undisturbed[f"{case}/{row}/"] for row in range(ROWS)]
        if case not in ("greedy", "seeded", "log probabilities", "no end"):
            assert [output.token_ids for output in outputs] not in (plain, greedy), case
        assert all(len(output.token_ids) > 2 for output in outputs), case
        if "structured_outputs" in params:
            assert "stop" in {output.finish_reason for output in outputs}, case
    assert all(
        len(text := undisturbed[f"bad words/{row}/"].text) == MAX_TOKENS
        and not any(word in text for word in ("ab", "cde", "f", "ba"))
        for row in range(ROWS)
    )
    assert any("\ufffd" in undisturbed[f"bytes that are no characters/{row}/"].text for row in range(ROWS))
    assert all(
        isinstance(undisturbed[f"min_tokens and stop ids/{row}/"].stop_reason, int)
        and len(undisturbed[f"min_tokens and stop ids/{row}/"].token_ids) > 25
        for row in range(ROWS)
    )


def test_a_stop_string_that_crosses_the_cut_is_found(
    engine: EngineProcess, undisturbed: dict[str, driver.Output]
) -> None:
    """The end of a stop string may be generated by another engine than its beginning; shown or not, it ends the
    text."""
    row, params = 1, {**SEEDED, "ignore_eos": True}
    whole = undisturbed[f"no end/{row}/"]
    # A string of the last letters of one word and the first of the next, of three neighbouring words.
    words = whole.text.split(" ")[1:]
    stop = f"{words[9][-2:]} {words[10]} {words[11][:2]}"
    ends_with = 12  # tokens, as each word is one
    for shown in (False, True):
        stopping = {**params, "stop": [stop, "never seen"], "include_stop_str_in_output": shown}
        undisturbed_stop = driver.generate(engine, [request("stop", stopping, row, tag=f"{shown}")])[
            f"stop/{row}/{shown}"
        ]
        assert undisturbed_stop.stop_reason == stop
        assert len(undisturbed_stop.token_ids) == ends_with
        assert undisturbed_stop.text.endswith(stop) == shown

        cuts = range(8, ends_with)
        requests = [request("stop", stopping, row, whole.token_ids[:k], f"{shown}{k}") for k in cuts]
        rest = driver.generate(engine, requests)

        for k in cuts:
            assert_continues(undisturbed_stop, whole.token_ids[:k], rest[f"stop/{row}/{shown}{k}"])


def test_a_prior_that_was_the_end_needs_no_engine(engine: EngineProcess, undisturbed: dict[str, driver.Output]) -> None:
    """A finished prior comes back at once, with the reason, the text and no further token: by end token, stop id, stop
    string, grammar or length."""
    finished = {
        f"{case}/{row}": (params, row, undisturbed[f"{case}/{row}/"])
        for case, params in CASES.items()
        for row in range(ROWS)
    }
    assert {whole.finish_reason for _, _, whole in finished.values()} == {"stop", "length"}

    again = driver.generate(
        engine,
        [
            SequenceRequest(name, prompt(row), request(name, params, row).params, whole.token_ids)
            for name, (params, row, whole) in finished.items()
        ],
    )

    for name, (_, _, whole) in finished.items():
        output = again[name]
        assert output.token_ids == [], name
        assert output.deltas == 1, name
        assert (output.text, output.finish_reason, output.stop_reason) == (
            whole.text,
            whole.finish_reason,
            whole.stop_reason,
        ), name


def test_priors_that_went_beyond_their_end_are_refused(
    engine: EngineProcess, undisturbed: dict[str, driver.Output]
) -> None:
    """Tokens after the end cannot have been generated; the row is refused, the engine lives."""
    case = "stop ids"
    whole = undisturbed[f"{case}/0/"]
    assert whole.finish_reason == "stop"

    output = driver.generate(engine, [request("beyond", CASES[case], 0, [*whole.token_ids, 300])])["beyond/0/"]

    assert output.refused is not None
    assert output.refused.code == "prior_mismatch"


def test_a_prior_that_its_grammar_rejects_is_refused(engine: EngineProcess) -> None:
    """Tokens that a grammar could not have let through end their row, not the engine."""
    params = {**SEEDED, "structured_outputs": {"regex": "[a-f]{8}"}}

    output = driver.generate(engine, [request("foreign", params, 0, [477, 477])])["foreign/0/"]
    healthy = driver.generate(engine, [request("healthy", params, 0)])["healthy/0/"]

    assert output.refused is not None
    assert healthy.finish_reason == "stop"
    assert len(healthy.text) == 8


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_p": 0.0}, "top_p"),
        ({"logprobs": 100_000}, "logprobs"),
        ({"unknown": 1}, "unknown"),
        ({"structured_outputs": {"regex": "(unclosed"}}, ""),
        ({"structured_outputs": {"json": {"type": "nonsense"}}}, ""),
        ({"allowed_token_ids": [10**6]}, "allowed_token_ids"),
        ({"stop_token_ids": ["x"]}, "stop_token_ids"),
    ],
)
def test_a_bad_parameter_costs_its_row_alone(engine: EngineProcess, params: dict[str, Any], message: str) -> None:
    """The row is refused with vLLM's own words; a neighbour submitted with it is served."""
    outputs = driver.generate(engine, [request("bad", params, 0), request("good", {"temperature": 0.0}, 1)])

    assert (refused := outputs["bad/0/"].refused) is not None
    assert message in refused.message
    assert outputs["good/1/"].finish_reason in ("stop", "length")


def test_prompts_that_do_not_fit_are_refused(engine: EngineProcess) -> None:
    """Too long, empty, or not of this vocabulary."""
    params = {"max_tokens": 4, "temperature": 0.0, "seed": 0}
    prompts = {"long": [300] * 600, "full": [300] * 512, "empty": [], "foreign": [10**7], "negative": [-1]}

    outputs = driver.generate(engine, [SequenceRequest(name, ids, params) for name, ids in prompts.items()])

    assert {name: output.refused is not None for name, output in outputs.items()} == dict.fromkeys(prompts, True)


def test_a_sequence_ends_at_the_models_length_also_when_continued(engine: EngineProcess) -> None:
    """The context length counts prompt and all output; a continued sequence gets no extra room, with and without
    max_tokens."""
    for params in ({"max_tokens": 1000}, {"max_tokens": None}):
        given = {"temperature": 0.0, "seed": 0, "ignore_eos": True, **params}
        prompt_ids = [300 + i % 390 for i in range(480)]
        whole = driver.generate(engine, [SequenceRequest("whole", prompt_ids, given)])["whole"]
        assert (len(whole.token_ids), whole.finish_reason) == (32, "length")

        rest = driver.generate(engine, [SequenceRequest("rest", prompt_ids, given, whole.token_ids[:20])])["rest"]

        assert_continues(whole, whole.token_ids[:20], rest)


def test_an_aborted_sequence_is_silent_and_others_go_on(engine: EngineProcess) -> None:
    """After an abort nothing more of a sequence is computed or reported."""
    long = {"max_tokens": 400, "temperature": 0.0, "seed": 0, "ignore_eos": True}
    engine.submit([SequenceRequest("gone", prompt(0), long), SequenceRequest("gone at once", prompt(0), long)])
    engine.abort(["gone at once"])
    engine.poll(5.0)
    engine.abort(["gone"])

    output = driver.generate(engine, [request("after", {"temperature": 0.0}, 0)])

    assert output["after/0/"].finish_reason is not None
    assert engine.poll(0.5) == []


def test_a_killed_core_is_noticed_at_once(engine: EngineProcess) -> None:
    """SIGKILL of the engine core in the middle of generation: told apart from a crash, nothing left, within two
    seconds.

    Ends the engine that the tests above share.
    """
    long = {"max_tokens": 400, "temperature": 0.0, "seed": 0, "ignore_eos": True}
    engine.submit([SequenceRequest(f"long {row}", prompt(row), long) for row in range(2)])
    while not engine.poll(5.0):
        pass
    host, core = engine.process_ids
    before_s = time.monotonic()

    os.kill(core, signal.SIGKILL)
    lost, _ = driver.until_lost(engine, within_s=10)

    assert lost.kind is LossKind.KILLED
    assert "engine core ended by SIGKILL" in lost.detail
    assert time.monotonic() - before_s < 2
    assert engine.process_ids == ()
    assert not Path(f"/proc/{host}").exists()

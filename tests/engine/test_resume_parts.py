"""The parts of resume that need no engine: the split of prompt and prior, the seeds of positions."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", autouse=True)
def vllm_is_imported() -> None:
    """Once, so that no test's time is spent on it."""
    importlib.import_module("shuntserve.engine.resume")


def core_request(token_ids: Sequence[int], prior: Sequence[int]) -> Any:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.request import Request

    from shuntserve.engine.resume import PRIOR_KEY

    params = SamplingParams(max_tokens=9, extra_args={PRIOR_KEY: list(prior)} if prior else None)
    return Request("r", list(token_ids), params, None)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.lists(st.integers(0, 50), max_size=6))
def test_prior_tokens_become_output(prompt: list[int], prior: list[int]) -> None:
    """After the split a request has the prompt as prompt and the prior as output, and all of its tokens in order."""
    from shuntserve.engine.resume import split_prior

    request = core_request([*prompt, *prior], prior)

    split_prior(request)

    assert request.prompt_token_ids == prompt
    assert request.num_prompt_tokens == len(prompt)
    assert list(request.output_token_ids) == prior
    assert list(request.all_token_ids) == [*prompt, *prior]
    assert request.max_tokens == 9


def test_a_prompt_without_its_prior_is_an_error() -> None:
    """A mix-up is noticed instead of generating from the wrong tokens."""
    from shuntserve.engine.resume import split_prior

    with pytest.raises(ValueError, match="does not end with its 2 prior tokens"):
        split_prior(core_request([1, 2, 3], [2, 4]))


def test_generated_tokens_do_not_reach_the_log() -> None:
    """vLLM prints sampling parameters when its core crashes; the prior in them shows only its length."""
    from shuntserve.engine.resume import split_prior

    request = core_request([1, 2, 77_777], [77_777])

    split_prior(request)

    assert "77777" not in repr(request.sampling_params)
    assert "<1 token ids>" in repr(request.sampling_params)


def test_positions_and_seeds_give_unrelated_draws() -> None:
    """No two of many neighbouring seeds and positions share the 32 bits that torch's CPU generator uses, beyond
    chance."""
    from shuntserve.engine.resume import position_seed

    seeds = [position_seed(seed, position) for seed in range(200) for position in range(200)]

    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    # 40,000 values among 2³² collide 0.19 times on average; ten would be a broken mix.
    assert len({seed & 0xFFFFFFFF for seed in seeds}) > len(seeds) - 10


def test_a_position_seed_stays_the_same_for_ever() -> None:
    """Jobs resumed by a later release must draw the same noise."""
    from shuntserve.engine.resume import position_seed

    assert [position_seed(0, 0), position_seed(1, 0), position_seed(0, 1), position_seed(2**63 - 1, 4096)] == [
        1451402981258380768,
        6741865338941868714,
        6008695631215161454,
        1060097782813799034,
    ]

"""How a sequence continues in another engine exactly where it stopped.

The frontend sends prompt and prior tokens as one prompt, with the original sampling parameters and, in
`extra_args`, the prior tokens. In the engine's core the scheduler (`engine.scheduler`) turns them back into output,
so that the request looks like one vLLM itself had preempted: max_tokens, min_tokens, stop ids and penalties then
count them as output.

Two things are left to the worker, both only for vLLM's V1 model runner (CPU, and GPUs without Triton). Its state of
a new request starts without output, so `RESUMED_STATE` fills the prior tokens in. And it draws a seeded row's noise
from one sequential generator, whose position is lost with the engine; `reseed` makes every draw a function of seed
and absolute position instead, from the first token on. The V2 runner needs neither: it is told prompt and prefill
length apart, and draws its noise by position.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from vllm.v1.worker import gpu_model_runner
from vllm.v1.worker.gpu_input_batch import CachedRequestState

PRIOR_KEY = "shuntserve_prior"
"""Key of the prior token ids in a request's `extra_args`."""


class PriorTokens(list[int]):
    """Token ids that do not show up when vLLM prints a request: its crash reports go to the log."""

    def __repr__(self) -> str:
        return f"<{len(self)} token ids>"


def prior_of(params: Any) -> list[int]:
    """The prior token ids of a request's sampling parameters; empty when it starts afresh."""
    prior: list[int] = ((params.extra_args or {}) if params is not None else {}).get(PRIOR_KEY) or []
    return prior


def split_prior(request: Any) -> None:
    """Turn the prior tokens at the end of a core `Request`'s prompt back into its output. Raises ValueError when they
    are not there."""
    prior = prior_of(request.sampling_params)
    if not prior:
        return
    count = len(prior)
    if request.prompt_token_ids is None or list(request.prompt_token_ids[-count:]) != list(prior):
        raise ValueError(f"request {request.request_id}: the prompt does not end with its {count} prior tokens")
    request.sampling_params.extra_args = {**request.sampling_params.extra_args, PRIOR_KEY: PriorTokens(prior)}
    # `_all_token_ids`, and the block hashes made from it, hold prompt and prior already and stay as they are.
    request.prompt_token_ids = request.prompt_token_ids[:-count]
    request.num_prompt_tokens -= count
    request._output_token_ids.extend(prior)
    # As in any request that has given output. Otherwise the scheduler asserts that no more than the prompt is cached.
    request.prefill_stats = None


class ResumedRequestState(CachedRequestState):
    """The V1 runner's state of one request, with its prior tokens as output from the beginning."""

    def __post_init__(self) -> None:
        if not self.output_token_ids:
            self.output_token_ids: list[int] = list(prior_of(self.sampling_params))
        super().__post_init__()


def install_in_v1_runner() -> None:
    """Make the V1 runner build `ResumedRequestState`s. Idempotent."""
    gpu_model_runner.CachedRequestState = ResumedRequestState


def keep_output_tokens(model_runner: Any) -> None:
    """Make the V1 runner fill in every row's output tokens in every step. Call before the first one.

    With steps scheduled ahead, a token that is still on its way has a placeholder in the row's output. vLLM fills them
    in only while some row of the batch has a penalty or bad words; where that begins in the middle of a row, all of its
    placeholders so far become one token, and min_tokens then counts too few. Seen in vLLM 0.31 and 0.32.
    """
    model_runner.input_batch.logitsprocs_need_output_token_ids = True


_WORD = (1 << 64) - 1


def position_seed(seed: int, position: int) -> int:
    """The seed of the draw at one absolute position of a sequence: SplitMix64's finalizer (Steele et al., 2014) over
    both, so that neighbouring seeds and positions are unrelated."""
    z = (seed * 0x9E3779B97F4A7C15 + position * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & _WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return (z ^ (z >> 31)) >> 1


class PositionalGenerator(torch.Generator):
    """A CPU generator that is seeded anew for every draw.

    vLLM steps a row's generator back when it throws away the sample of a partial prefill; CPU generators have no offset
    and would raise. Here there is nothing to step back.
    """

    def get_offset(self) -> int:
        return 0

    def set_offset(self, offset: int) -> None:
        pass


def reseed(model_runner: Any) -> None:
    """Seed every seeded row of the V1 runner's batch for the position its next token will have.

    Call between the forward pass and sampling. The position counts prompt and output, so it is the same however the
    prompt was chunked, cached or continued.
    """
    batch = model_runner.input_batch
    if not batch.generators:
        return
    lengths = model_runner.optimistic_seq_lens_cpu[: batch.num_reqs].tolist()
    for index, generator in _seeded_rows(model_runner, batch):
        params = model_runner.requests[batch.req_ids[index]].sampling_params
        generator.manual_seed(position_seed(params.seed, lengths[index]))


def _seeded_rows(model_runner: Any, batch: Any) -> Iterable[tuple[int, torch.Generator]]:
    for index, generator in list(batch.generators.items()):
        if generator.device.type == "cpu" and not isinstance(generator, PositionalGenerator):
            generator = PositionalGenerator()
            batch.generators[index] = generator
            model_runner.requests[batch.req_ids[index]].generator = generator
        yield index, generator

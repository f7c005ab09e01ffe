"""One sequence between the port and vLLM: parameters in, a prior that may be finished already, deltas out."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.v1.core.sched.utils import check_stop
from vllm.v1.engine import EngineCoreRequest, FinishReason
from vllm.v1.engine.detokenizer import IncrementalDetokenizer
from vllm.v1.engine.output_processor import RequestState
from vllm.v1.request import Request

from shuntserve.engine.port import Delta, SequenceRequest
from shuntserve.engine.resume import PRIOR_KEY

_CONTEXT_TOKENS = 4
"""How far back vLLM looks to decode a token that is part of a character, as it does for logprobs."""


class PriorMismatch(ValueError):
    """The prior tokens cannot have come from these parameters: generation would have ended before their end."""


def sampling_params(request: SequenceRequest, stream_interval_tokens: int) -> SamplingParams:
    """vLLM's parameters of a sequence. Raises ValueError, TypeError or VLLMValidationError for bad ones."""
    given = dict(request.params)
    structured = given.pop("structured_outputs", None)
    return SamplingParams.from_optional(
        **given,
        structured_outputs=StructuredOutputsParams(**structured) if structured else None,
        output_kind=RequestOutputKind.DELTA,
        stream_interval=stream_interval_tokens,
        extra_args={PRIOR_KEY: list(request.prior_token_ids)} if request.prior_token_ids else None,
        skip_clone=True,
    )


def core_request(request: EngineCoreRequest, prior: Sequence[int]) -> EngineCoreRequest:
    """What the core gets: prompt and prior as one prompt; its scheduler tells them apart again."""
    if not prior:
        return request
    continued = copy(request)
    continued.prompt_token_ids = [*(request.prompt_token_ids or ()), *prior]
    return continued


class Prior:
    """The prior tokens of a sequence, detokenized, and whether generation had ended with the last of them."""

    def __init__(
        self, tokenizer: Any, request: EngineCoreRequest, token_ids: Sequence[int], max_model_len: int
    ) -> None:
        """`request` holds the prompt alone. Raises PriorMismatch."""
        self._token_ids = list(token_ids)
        self.detokenizer = IncrementalDetokenizer.from_new_request(tokenizer, request)
        core = Request.from_engine_core_request(request, None)
        self._finish_reason: FinishReason | None = None
        self._stop_reason: int | str | None = None
        for position, token_id in enumerate(self._token_ids):
            if self._finish_reason is not None:
                raise PriorMismatch(f"generation ended after {position} of {len(self._token_ids)} prior tokens")
            self._take(core, token_id, max_model_len)

    def _take(self, core: Request, token_id: int, max_model_len: int) -> None:
        """The same two checks, in the same order, as a new token gets in vLLM: the core's, then the stop strings'."""
        core.append_output_token_ids(token_id)
        if check_stop(core, max_model_len):
            self._finish_reason, self._stop_reason = core.get_finished_reason(), core.stop_reason
        stop_string = self.detokenizer.update([token_id], self._finish_reason == FinishReason.STOP)
        if stop_string:
            self._finish_reason, self._stop_reason = FinishReason.STOP, stop_string

    def finish(self, seq_id: str) -> Delta | None:
        """The one delta of a sequence that was finished already; None when there is something left to generate."""
        if self._finish_reason is None:
            return None
        text = self.detokenizer.get_next_output_text(True, True)
        return Delta(seq_id, [], text, None, str(self._finish_reason), self._stop_reason)

    def prime(self, state: RequestState) -> None:
        """Put the prior into vLLM's frontend state of the continued request: its first delta begins with the prior's
        text but not with its tokens, and stop strings and characters may cross the cut."""
        state.detokenizer = self.detokenizer
        state.sent_tokens_offset = len(self._token_ids)
        context = state.logprobs_processor.logprobs if state.logprobs_processor is not None else None
        if context is not None:
            context.extend({token_id: None} for token_id in self._token_ids[-_CONTEXT_TOKENS:])


def delta_of(seq_id: str, output: CompletionOutput) -> Delta:
    """vLLM's output in the port's words."""
    return Delta(
        seq_id,
        list(output.token_ids),
        output.text,
        _logprobs(output.logprobs) if output.logprobs is not None else None,
        output.finish_reason,
        output.stop_reason,
    )


def _logprobs(positions: Any) -> list[list[list[Any]]]:
    """vLLM puts the sampled token first and keeps the order."""
    return [
        [[token_id, entry.logprob, entry.rank, entry.decoded_token] for token_id, entry in position.items()]
        for position in positions
    ]

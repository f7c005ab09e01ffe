"""vLLM's schedulers, taught to continue sequences, to seat the urgent first and to show their pulse."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from shuntserve.engine import plugin
from shuntserve.engine.pulse import StepClock
from shuntserve.engine.resume import prior_of, split_prior
from shuntserve.engine.seats import UrgentFirstMixin

Features = tuple[bool, ...]


def features_of(params: Any) -> Features:
    """Which parts of vLLM's sampler a request goes through."""
    return (
        params.temperature > 0,
        params.top_p < 1,
        params.top_k > 0,
        params.min_p > 0,
        params.presence_penalty != 0 or params.frequency_penalty != 0,
        params.repetition_penalty != 1,
        params.logprobs is not None,
        params.min_tokens > 0,
        bool(params.logit_bias),
        bool(params.allowed_token_ids),
        bool(params.bad_words),
        params.structured_outputs is not None,
    )


class ResumeMixin:
    """What both variants add. Lives in the engine's core process."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        plugin.register()
        super().__init__(*args, **keywords)
        self._clock = StepClock.from_environment()
        self._tried_features: set[Features] = set()
        self._untried: dict[str, Features] = {}
        """Requests that use a combination of features from which no token has been sampled yet."""

    def add_request(self, request: Any) -> None:
        """Take the request in, its prior tokens as output."""
        split_prior(request)
        super().add_request(request)  # type: ignore[misc]
        features = features_of(request.sampling_params)
        if features not in self._tried_features:
            self._untried[request.request_id] = features

    def _handle_blocked_waiting_request(self, request: Any) -> bool:
        """When a continued request's grammar is compiled, move it over the prior tokens before anything is sampled."""
        waited_for_grammar = request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
        if not super()._handle_blocked_waiting_request(request):  # type: ignore[misc]
            return False
        prior = prior_of(request.sampling_params) if waited_for_grammar else []
        if prior and not self.structured_output_manager.accept_tokens(request, list(prior)):  # type: ignore[attr-defined]
            # These tokens never came from this grammar: the request fails, as one whose grammar does not compile.
            request.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
            self.grammar_compile_error_reqs.add(request.request_id)  # type: ignore[attr-defined]
            return False
        return True

    def schedule(self, *args: Any, **keywords: Any) -> Any:
        output = super().schedule(*args, **keywords)  # type: ignore[misc]
        if output.total_num_scheduled_tokens > 0:
            first_time = any(request_id in output.num_scheduled_tokens for request_id in self._untried)
            self._clock.begin(output.total_num_scheduled_tokens, time.monotonic(), first_time=first_time)
        elif any(_waits_for_grammar(request) for request in self.waiting):  # type: ignore[attr-defined]
            self._clock.wait_for_grammar()
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        outputs = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]
        if scheduler_output.total_num_scheduled_tokens > 0:
            self._clock.end(time.monotonic())
        if self._untried:
            self._note_tried(scheduler_output.num_scheduled_tokens)
        return outputs

    def _note_tried(self, scheduled: Mapping[str, int]) -> None:
        """A request that has sampled a token, or is gone, has tried its features."""
        for request_id in [request_id for request_id in self._untried if request_id in scheduled]:
            request = self.requests.get(request_id)  # type: ignore[attr-defined]
            if request is None or request.num_output_tokens > len(prior_of(request.sampling_params)):
                self._tried_features.add(self._untried[request_id])
        self._untried = {
            request_id: features
            for request_id, features in self._untried.items()
            if features not in self._tried_features and request_id in self.requests  # type: ignore[attr-defined]
        }


def _waits_for_grammar(request: Any) -> bool:
    return bool(request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR)


class ResumeScheduler(ResumeMixin, UrgentFirstMixin, Scheduler):
    """For engines that wait for each step's output before scheduling the next."""


class ResumeAsyncScheduler(ResumeMixin, UrgentFirstMixin, AsyncScheduler):
    """For engines that schedule ahead (vLLM's default on GPUs)."""

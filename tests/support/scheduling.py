"""vLLM's real schedulers, ours on top, over a model that is a pure function: thousands of steps in a second, and every
lost, repeated or misplaced token shows.

The token after n tokens of a sequence depends on the sequence and n alone. `Course` plays the worker: it keeps each
sequence's length as vLLM's does, and answers a step's output when it is that step's turn: at once, or with several
steps under way as in a pipeline, or with tokens still on their way as when steps are scheduled ahead.
"""

from __future__ import annotations

import copy
import functools
import os
import tempfile
import zlib
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from shuntserve.sim.tiny_model import TinyModel, write_tiny_model

BLOCK_TOKENS = 16
MAX_MODEL_LEN = 128


@dataclass(frozen=True)
class Arrival:
    """A sequence that comes before step `step`."""

    step: int
    priority: int
    prompt_tokens: int
    tokens: int


@dataclass(frozen=True)
class Setting:
    """An engine: how it schedules, its seats, and the blocks of KV cache that it may use."""

    ahead: bool
    under_way: int
    """Steps scheduled before the oldest one's output is known."""
    seats: int
    blocks: int
    step_tokens: int = 32


def token_after(name: str, length: int) -> int:
    """What the model says after `length` tokens of this sequence."""
    return 1 + zlib.crc32(f"{name}/{length}".encode()) % 500


@functools.cache
def _model_directory() -> tempfile.TemporaryDirectory[str]:
    """Removed when this process ends; vLLM looks into it again and again."""
    directory = tempfile.TemporaryDirectory()
    write_tiny_model(Path(directory.name), TinyModel(max_model_len=MAX_MODEL_LEN))
    return directory


@functools.cache
def _stock() -> tuple[Any, Any]:
    """vLLM's configuration, and its manager of grammars (none are used)."""
    from vllm import AsyncEngineArgs
    from vllm.v1.structured_output import StructuredOutputManager

    with mock.patch.dict(os.environ):
        config = AsyncEngineArgs(
            model=_model_directory().name,
            max_model_len=MAX_MODEL_LEN,
            block_size=BLOCK_TOKENS,
            enable_prefix_caching=False,
            scheduling_policy="priority",
            enforce_eager=True,
            kv_cache_memory_bytes=1 << 20,
        ).create_engine_config()
    return config, StructuredOutputManager(config)


def _config(setting: Setting) -> Any:
    config = copy.copy(_stock()[0])
    config.scheduler_config = copy.copy(config.scheduler_config)
    config.scheduler_config.max_num_seqs = setting.seats
    config.scheduler_config.max_num_batched_tokens = setting.step_tokens
    config.scheduler_config.max_num_scheduled_tokens = setting.step_tokens
    config.cache_config = copy.copy(config.cache_config)
    config.cache_config.num_gpu_blocks = setting.blocks + 1  # vLLM keeps one for itself
    return config


def scheduler_of(setting: Setting) -> Any:
    """One of our schedulers; `gave_way` counts how often each sequence gave its seat to a more urgent one."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

    from shuntserve.engine.scheduler import ResumeAsyncScheduler, ResumeScheduler

    base: Any = ResumeAsyncScheduler if setting.ahead else ResumeScheduler

    class Counting(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **keywords: Any) -> None:
            super().__init__(*args, **keywords)
            self.gave_way: Counter[str] = Counter()

        def _give_way(self, row: Any) -> None:
            self.gave_way[row.request_id] += 1
            super()._give_way(row)

    spec = FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=1, dtype=torch.float32)
    return Counting(
        _config(setting),
        KVCacheConfig(setting.blocks + 1, [], [KVCacheGroupSpec(["layer"], spec)]),
        _stock()[1],
        BLOCK_TOKENS,
        hash_block_size=BLOCK_TOKENS,
    )


@dataclass
class Course:
    """One engine, step by step."""

    setting: Setting
    outputs: dict[str, list[int]] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)
    first_token_at: dict[str, int] = field(default_factory=dict)
    """The step whose output held a sequence's first token."""

    def __post_init__(self) -> None:
        self.scheduler = scheduler_of(self.setting)
        self._lengths: dict[str, int] = {}
        """Tokens of each sequence, as the worker knows them."""
        self._under_way: deque[tuple[Any, Any]] = deque()
        self._step = 0

    def submit(self, name: str, arrival: Arrival) -> None:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        prompt = [token_after(name, -i) for i in range(arrival.prompt_tokens)]
        params = SamplingParams(max_tokens=arrival.tokens, temperature=0.0, ignore_eos=True)
        self.outputs[name] = []
        self.scheduler.add_request(
            Request(name, prompt, params, None, arrival_time=float(len(self.outputs)), priority=arrival.priority)
        )

    def step(self) -> None:
        """Schedule one step, and take the output of the oldest when as many as may be are under way."""
        scheduled = self.scheduler.schedule()
        self._under_way.append((scheduled, self._work(scheduled)))
        if len(self._under_way) >= self.setting.under_way:
            self._take(*self._under_way.popleft())
        self._step += 1

    def _work(self, scheduled: Any) -> Any:
        from vllm.v1.outputs import ModelRunnerOutput

        for new in scheduled.scheduled_new_reqs:
            self._lengths[new.req_id] = len(new.prompt_token_ids)
        computed = {new.req_id: new.num_computed_tokens for new in scheduled.scheduled_new_reqs}
        cached = scheduled.scheduled_cached_reqs
        for name, tokens in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            computed[name] = tokens
            if name in cached.all_token_ids:
                # Sent anew: vLLM's worker takes the scheduler's word for what there is.
                self._lengths[name] = max(self._lengths[name], len(cached.all_token_ids[name]))
                assert self._lengths[name] == len(cached.all_token_ids[name]), name
        names = list(scheduled.num_scheduled_tokens)
        sampled = []
        for name in names:
            end = computed[name] + scheduled.num_scheduled_tokens[name]
            assert end <= self._lengths[name], (name, end, self._lengths[name])
            complete = end == self._lengths[name]
            sampled.append([token_after(name, end)] if complete else [])
            self._lengths[name] += complete
        return ModelRunnerOutput(names, {name: i for i, name in enumerate(names)}, sampled)

    def _take(self, scheduled: Any, output: Any) -> None:
        for of_client in self.scheduler.update_from_output(scheduled, output).values():
            for item in of_client.outputs:
                self.outputs[item.request_id] += item.new_token_ids
                if item.new_token_ids:
                    self.first_token_at.setdefault(item.request_id, self._step)
                if item.finish_reason is not None:
                    self.finished.append(item.request_id)


def expected(name: str, arrival: Arrival) -> list[int]:
    """The sequence's output undisturbed."""
    return [token_after(name, arrival.prompt_tokens + i) for i in range(arrival.tokens)]


def run(setting: Setting, arrivals: Sequence[Arrival], after_step: Any = None, most_steps: int = 20_000) -> Course:
    """Until every sequence is finished."""
    course = Course(setting)
    waiting = deque(sorted(enumerate(arrivals), key=lambda pair: pair[1].step))
    for step in range(most_steps):
        while waiting and waiting[0][1].step <= step:
            number, arrival = waiting.popleft()
            course.submit(f"s{number}", arrival)
        course.step()
        if after_step is not None:
            after_step(course)
        if not waiting and len(course.finished) == len(arrivals):
            return course
    raise AssertionError(f"unfinished after {most_steps} steps: {set(course.outputs) - set(course.finished)}")

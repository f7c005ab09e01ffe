"""A scheduler with planted faults, for engines in tests: option `scheduler_cls` names it, a marker in a prompt sets
it off.

The faults happen inside the engine core while the marked row is being computed, as a real one would. A marker is a
token id three times in a row.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any

from shuntserve.engine.scheduler import ResumeScheduler

NAME = "tests.support.faulty_scheduler.FaultyScheduler"
ABORT, RAISE, HANG = 1, 2, 3
"""Ids of special tokens, which prompts made of words do not hold."""


def marked(prompt_token_ids: Sequence[int], fault: int) -> list[int]:
    """The prompt, with a marker at its end."""
    return [*prompt_token_ids, fault, fault, fault]


class FaultyScheduler(ResumeScheduler):
    """Fails when a marked row has been computed."""

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        for request_id in scheduler_output.num_scheduled_tokens:
            request = self.requests.get(request_id)
            match _marker(request.prompt_token_ids) if request is not None else None:
                case 1:
                    os.abort()
                case 2:
                    raise RuntimeError("planted fault")
                case 3:
                    while True:
                        signal.sigtimedwait([], 60)
        return super().update_from_output(scheduler_output, model_runner_output)


def _marker(token_ids: Sequence[int] | None) -> int | None:
    ids = list(token_ids or ())
    for fault in (ABORT, RAISE, HANG):
        if any(ids[i : i + 3] == [fault] * 3 for i in range(len(ids) - 2)):
            return fault
    return None

"""A scheduler with planted faults, for engines in tests: option `scheduler_cls` names it, a marked prompt sets it off.

The faults happen inside the engine core while the marked row is being computed, as a real one would.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from shuntserve.engine.scheduler import ResumeScheduler
from tests.support.markers import ABORT, HANG, RAISE, marker_of


class FaultyScheduler(ResumeScheduler):
    """Fails when a marked row has been computed."""

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        for request_id in scheduler_output.num_scheduled_tokens:
            request = self.requests.get(request_id)
            fault = marker_of(request.prompt_token_ids) if request is not None else None
            if fault == ABORT:
                os.abort()
            if fault == RAISE:
                raise RuntimeError("planted fault")
            while fault == HANG:
                signal.sigtimedwait([], 60)
        return super().update_from_output(scheduler_output, model_runner_output)

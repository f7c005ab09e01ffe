"""Urgent sequences come first: less urgent rows give up their seats to them, and continue later where they were.

vLLM's own priority policy orders those who wait, and lets a row give way when a *running* one needs KV cache. A waiting
one stays waiting until a seat is free, however urgent it is: with long batch rows, for minutes. Here a waiting sequence
that is more urgent than a seated one gets its seat. The rules:

- A smaller `priority` is more urgent. Rows of one priority never displace each other.
- Who gives way: the least urgent row, among these the one that arrived last, as when vLLM lacks KV cache.
- No seat is free: as many rows give way, in the same step, as urgent sequences are ready to run.
- A seat is free, but the sequence was not admitted in the last step (for want of KV cache, or of tokens in the step's
  budget): one row gives way in each step until it is.
- Urgent rows take their share of a step's token budget first.
- A row gives way at most `MOST_YIELDS` times; then it keeps its seat to its end. So a trickle of urgent sequences
  costs a batch row no more than that many prefills. (When running rows exhaust the KV cache, vLLM still takes back
  whatever it must; and while more urgent sequences wait than there are seats, those who gave way wait behind them.)

A row that gives way loses nothing: it is vLLM's own preemption, prompt and output are prefilled again, and sampling
continues at the same position (`engine.resume`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.request import RequestStatus

MOST_YIELDS = 3
_READY = (RequestStatus.WAITING, RequestStatus.PREEMPTED)


class UrgentFirstMixin:
    """What a scheduler adds under vLLM's policy "priority". Lives in the engine's core process."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._yields: Counter[str] = Counter()
        """How often each unfinished request has given way."""
        self._left_out: str | None = None
        """The request that was ready, had a seat, and still was not admitted in the last step."""

    def schedule(self, *args: Any, **keywords: Any) -> Any:
        if self.policy != SchedulingPolicy.PRIORITY:  # type: ignore[attr-defined]
            return super().schedule(*args, **keywords)  # type: ignore[misc]
        self._make_room()
        self.running.sort(key=_priority)  # type: ignore[attr-defined] # stable: by arrival within a priority
        output = super().schedule(*args, **keywords)  # type: ignore[misc]
        first = next(self._urgent(), None) if self._free_seats() > 0 else None
        self._left_out = first.request_id if first is not None else None
        return output

    def _make_room(self) -> None:
        """Let rows give way to the urgent sequences that are ready to run."""
        free = self._free_seats()
        for urgent in self._urgent():
            if free > 0 and urgent.request_id != self._left_out:
                free -= 1
                continue
            victim = self._least_urgent(urgent.priority)
            if victim is None:
                return
            self._give_way(victim)

    def _free_seats(self) -> int:
        taken = len(self.running) + self.num_waiting_for_streaming_input  # type: ignore[attr-defined]
        free: int = self.max_num_active_reqs - taken  # type: ignore[attr-defined]
        return free

    def _urgent(self) -> Iterator[Any]:
        """Waiting requests that are ready to run and more urgent than some seated row, the most urgent first."""
        least = max(map(_priority, self.running), default=None)  # type: ignore[attr-defined]
        if least is None or not self.waiting or self.waiting.peek_request().priority >= least:  # type: ignore[attr-defined]
            return
        for request in self.waiting:  # type: ignore[attr-defined]
            if request.priority >= least:
                return
            if self._is_ready(request):
                yield request

    def _is_ready(self, request: Any) -> bool:
        if request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR:
            # vLLM looks whether a grammar is compiled only when there is a seat.
            return bool(self._handle_blocked_waiting_request(request))  # type: ignore[attr-defined]
        awaits_own_output = request.num_stale_output_tokens and not request.drop_stale_output
        return request.status in _READY and not awaits_own_output

    def _least_urgent(self, than: int) -> Any | None:
        """The row to give way to a sequence of priority `than`; None when all who could have done so often enough."""
        candidates = [
            row
            for row in self.running  # type: ignore[attr-defined]
            if row.priority > than
            and self._yields[row.request_id] < MOST_YIELDS
            and self._request_blocks_can_be_freed(row)  # type: ignore[attr-defined]
        ]
        return max(candidates, key=lambda row: (row.priority, row.arrival_time), default=None)

    def _give_way(self, row: Any) -> None:
        self.running.remove(row)  # type: ignore[attr-defined]
        self._preempt_request(row, time.monotonic())  # type: ignore[attr-defined]
        # Should it be admitted again in this very step, the worker must take it for a newcomer.
        self.prev_step_scheduled_req_ids.discard(row.request_id)  # type: ignore[attr-defined]
        self._yields = Counter({name: n for name, n in self._yields.items() if name in self.requests})  # type: ignore[attr-defined]
        self._yields[row.request_id] += 1


def _priority(request: Any) -> int:
    priority: int = request.priority
    return priority

"""Virtual time: a queue of things to happen, in one thread, in an order that depends on nothing but the seed."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Clock:
    """Runs callbacks in the order of their times; ties in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._asked = 0

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Call `action` `delay_s` from now."""
        self._asked += 1
        heapq.heappush(self._queue, (self.now_s + max(delay_s, 0.0), self._asked, action))

    def step(self) -> bool:
        """Let the next thing happen; False when nothing is left."""
        if not self._queue:
            return False
        self.now_s, _, action = heapq.heappop(self._queue)
        action()
        return True

    def run_until(self, finished: Callable[[], bool], limit_s: float) -> bool:
        """Step until `finished()`; False when virtual time runs out first."""
        while not finished():
            if self.now_s > limit_s or not self.step():
                return False
        return True

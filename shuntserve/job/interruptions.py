"""Workers found dead and engines lost, as events: each is told once, by whoever watches the job when it shows."""

from __future__ import annotations

from collections import Counter

from shuntserve.job.timeline import History, Timeline
from shuntserve.job.watch import Snapshot

_LOSSES = ("crashed", "hung", "killed")
"""Counters of a worker's object: engines lost under it, by kind (`engine.port.LossKind`)."""


class InterruptionWatch:
    """Compares snapshots of a job with what its timeline has told already.

    So an interruption that nobody saw, because whoever watched was killed with it, is told by the next to watch. Two
    that watch at once may both tell it; `History.interruptions` counts it once.
    """

    def __init__(self, told: History) -> None:
        self._told: Counter[tuple[str, str]] = Counter()
        for event in told.interruptions:
            self._told[str(event.fields.get("worker")), str(event.fields.get("loss"))] += 1

    def tell(self, now_unix_s: float, snapshot: Snapshot, timeline: Timeline) -> None:
        """Record what is new in this snapshot."""
        for worker in snapshot.workers:
            name = worker.incarnation
            node = worker.facts.get("node")
            slot = worker.facts.get("slot")
            if worker.killed and not self._told[name, "worker"]:
                self._told[name, "worker"] = 1
                timeline.event(now_unix_s, "worker_killed", node, worker=name, loss="worker", n=0, slot=slot)
            for loss in _LOSSES:
                for n in range(self._told[name, loss], worker.count(loss)):
                    self._told[name, loss] += 1
                    timeline.event(now_unix_s, "engine_lost", node, worker=name, loss=loss, n=n, slot=slot)

"""A worker's lease: a progress counter kept moving for others to see, and the moment to stop when it cannot be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shuntserve.errors import ShuntServeError
from shuntserve.job import claims, procedures
from shuntserve.job.worker_config import Spawner, Tolerate, WorkerConfig
from shuntserve.store import keys


class Lease:
    """One worker's name and life as others see it. `check` at the head of a tick, `renew` in it."""

    def __init__(
        self,
        config: WorkerConfig,
        spawner: Spawner,
        new_incarnation: Callable[[], str],
        report: Callable[[], Mapping[str, Any]],
        tolerate: Tolerate,
    ) -> None:
        self._config = config
        self._spawner = spawner
        self._new_incarnation = new_incarnation
        self._report = report
        self._tolerate = tolerate
        self._progress = 0
        self._now_s = 0.0
        self._begin_incarnation()

    def _begin_incarnation(self) -> None:
        self.incarnation = self._new_incarnation()
        self._renewed_from_s: float | None = None
        self._acknowledged_from_s: float | None = None
        self._renewing = False
        self._next_renewal_s = self._now_s

    @property
    def visible(self) -> bool:
        """Whether others can see this incarnation live, so that it may claim."""
        return self._renewed_from_s is not None

    def check(self, now_s: float) -> bool:
        """True when the lease has run out: drop every claim; from here on this worker is somebody new.

        Only while the old lease still runs does an acknowledged renewal extend it: after a long pause it may have
        landed too late to be seen.
        """
        self._now_s = now_s
        ended = self._ended()
        if not ended and self._acknowledged_from_s is not None:
            self._renewed_from_s, self._acknowledged_from_s = self._acknowledged_from_s, None
            ended = self._ended()
        if ended:
            self._begin_incarnation()
        return ended

    def _ended(self) -> bool:
        return self._renewed_from_s is not None and self._config.rules.must_fence(self._renewed_from_s, self._now_s)

    def renew(self) -> None:
        """Start the next renewal if it is due."""
        if self._renewing or self._now_s < self._next_renewal_s:
            return
        began_s, incarnation = self._now_s, self.incarnation
        self._progress += 1
        self._renewing = True

        def done(_: None, error: ShuntServeError | None) -> None:
            if incarnation != self.incarnation:
                return
            self._renewing = False
            interval_s = self._config.renew_interval_s
            if error is None:
                # counts from the next tick on: its clock says whether the old lease was still running by now
                self._acknowledged_from_s = began_s
                self._next_renewal_s = began_s + interval_s
            else:
                self._tolerate(error, "renewal")
                self._next_renewal_s = self._now_s + interval_s / 3

        body = claims.worker_body(incarnation, self._progress, facts=self._report())
        self._spawner.spawn(procedures.put(keys.worker(self._config.job_id, incarnation), body), done)

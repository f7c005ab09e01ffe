"""One controller at a time: epochs of a job's control, claimed, renewed and taken over by the rules of leases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shuntserve import telemetry
from shuntserve.core.ledger import Reading, Rules, Watch
from shuntserve.job import claims, fleet_records
from shuntserve.store import keys
from shuntserve.store.port import Bucket


class ControllerLease:
    """`tick` says whether this process may act now. Blocks for a few bucket requests at a time.

    The epoch after the newest may be created when the newest one's controller has signed off or its counter stood
    still for the lease. A controller that could not renew for most of the lease stops acting, and has to win a later
    epoch, as somebody new, before it acts again.
    """

    def __init__(
        self,
        bucket: Bucket,
        job_id: str,
        rules: Rules,
        new_incarnation: Callable[[], str],
        facts: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._bucket = bucket
        self._job_id = job_id
        self.rules = rules
        self._new_incarnation = new_incarnation
        self._facts = facts
        self.incarnation = new_incarnation()
        self.epoch: int | None = None
        """The epoch this process acts in; None while it does not."""
        self._progress = 0
        self._renewed_s = 0.0
        self._due_s = 0.0
        self._watched: str | None = None
        self._watch: Watch | None = None

    def must_stop(self, now_s: float) -> bool:
        """Whether others may soon hold this controller dead. Ask before anything is done that cannot be repeated."""
        return self.epoch is not None and self.rules.must_fence(self._renewed_s, now_s)

    def tick(self, now_s: float) -> bool:
        """Renew, or try to win; True when this process acts. Raises Unavailable."""
        if self.must_stop(now_s):
            telemetry.emit(telemetry.Event.CONTROLLER_FENCED, job=self._job_id, epoch=self.epoch)
            self.epoch = None
            self.incarnation = self._new_incarnation()
            self._watched = None
        if now_s >= self._due_s:
            self._due_s = now_s + self.rules.lease_s / 15  # soon again, unless it is answered
            if self.epoch is not None:
                self._renew(now_s)
            else:
                self._try_to_win(now_s)
            self._due_s = now_s + self.rules.lease_s / 5
        return self.epoch is not None

    def tell(self, now_s: float) -> None:
        """Renew now, because the facts have changed. Raises Unavailable."""
        if self.epoch is not None:
            self._renew(now_s)

    def release(self) -> None:
        """Sign off, so that nobody waits for the lease to run out. Raises Unavailable."""
        if self.epoch is not None:
            self._bucket.put(keys.controller_pulse(self._job_id, self.epoch), self._body(gone=True))
            self.epoch = None

    def _body(self, *, gone: bool = False) -> bytes:
        return claims.worker_body(self.incarnation, self._progress, gone=gone, facts=self._facts())

    def _renew(self, now_s: float) -> None:
        assert self.epoch is not None
        self._progress += 1
        self._bucket.put(keys.controller_pulse(self._job_id, self.epoch), self._body())
        self._renewed_s = now_s

    def _try_to_win(self, now_s: float) -> None:
        newest = fleet_records.newest_controller(self._bucket, self._job_id)
        if newest is not None:
            if newest.incarnation != self._watched:
                self._watched, self._watch = newest.incarnation, None
            self._watch = self.rules.observe(self._watch, Reading(newest.progress, newest.gone), now_s)
            if not self.rules.is_dead(self._watch):
                return
        epoch = 0 if newest is None else newest.epoch + 1
        self._progress = 0
        if self._bucket.create(keys.controller(self._job_id, epoch), fleet_records.body(self.incarnation)):
            self.epoch = epoch
            self._renew(now_s)
            telemetry.emit(telemetry.Event.CONTROLLER_ACTING, job=self._job_id, epoch=epoch)

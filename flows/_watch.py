"""Watching a job from a flow: look, tell, keep a controller alive. Everything that counts happens elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from prefect.logging import get_logger

from flows._artifacts import Artifacts
from flows._events import Emitter, News, news
from flows._states import ENDED, PAUSED
from shuntserve.errors import Unavailable

EVERY_S = 3.0
PROGRESS_EVERY_S = 60.0
"""Progress is told as an event at most this often; artifacts are kept up to date at each look."""

Status = Mapping[str, Any]


class WatchedJob(Protocol):
    """What a flow does with a job (`shuntserve.api.Job`)."""

    @property
    def job_id(self) -> str: ...

    @property
    def output_url(self) -> str: ...

    def status(self) -> Any: ...

    def start(self) -> Any: ...


@dataclass(slots=True)
class Starts:
    """When to start a controller again: at once, then ever later, and no more when none stays alive."""

    most: int = 5
    longest_s: float = 60.0
    _failed: int = 0
    _next_s: float = float("-inf")

    def seen_alive(self) -> None:
        """A controller works: what was before is forgotten."""
        self._failed, self._next_s = 0, float("-inf")

    def due(self, now_s: float, failure: str | None = None) -> bool:
        """Whether to start one now. Raises Unavailable, with the last one's `failure`, when that has been tried often
        enough."""
        if now_s < self._next_s:
            return False
        if self._failed >= self.most:
            raise Unavailable(
                "the job's controller",
                failure or f"ended {self._failed} times as soon as it was started",
                "see its log, put it right, and run this flow again",
            )
        self._next_s = now_s + min(self.longest_s, 5.0 * 2**self._failed)
        self._failed += 1
        return True


def wants_controller(status: Status) -> bool:
    """Whether the job should have a living controller and has none."""
    if status["state"] in ENDED or status["state"] == PAUSED:
        return False
    controller = status.get("controller")
    return controller is None or not controller["alive"]


class Watch:
    """One flow run's eye on one job. (No dataclass: Prefect looks into those it is handed.)"""

    def __init__(
        self,
        job: WatchedJob,
        emitter: Emitter,
        artifacts: Artifacts,
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.job = job
        self.artifacts = artifacts
        self._emitter = emitter
        self._clock = clock
        self._pause = pause
        self._starts = Starts()
        self._last: Status | None = None
        self._progress_s = float("-inf")

    def until(self, reached: Callable[[Status], bool]) -> Status:
        """Look every few seconds until a status is as wanted, or the job has ended or paused. Its controller is
        started again whenever it is gone. A store that does not answer is asked again; raises Unavailable when no
        controller stays alive."""
        while True:
            status = self.look()
            if status is not None:
                if reached(status) or status["state"] in ENDED or status["state"] == PAUSED:
                    return status
                if not wants_controller(status):
                    self._starts.seen_alive()
                elif self._starts.due(self._clock(), status.get("failure")):
                    self.job.start()
            self._pause(EVERY_S)

    def until_settled(self, limit_s: float = 120.0) -> Status:
        """The status of a job that has ended, once its controller has ended its machines, written the report and left;
        or as it is after a while."""
        give_up_s = self._clock() + limit_s
        while True:
            status = self.look()
            if status is not None and (not (status["controller"] or {}).get("alive") or self._clock() >= give_up_s):
                return status
            self._pause(1.0)

    def look(self) -> Status | None:
        """One look, told in events and artifacts; None when the store did not answer."""
        try:
            status: Status = {**self.job.status().to_json(), "output": self.job.output_url}
        except Unavailable as error:
            get_logger("shuntserve").warning("the store does not answer: %s", error)
            return None
        for one in news(self._last, status):
            if self._worth_telling(one):
                self._emitter.emit(one)
        self._last = status
        self.artifacts.watched(status)
        return status

    def _worth_telling(self, one: News) -> bool:
        if one.event != "shuntserve.job.progress":
            return True
        now_s = self._clock()
        if now_s < self._progress_s + PROGRESS_EVERY_S:
            return False
        self._progress_s = now_s
        return True

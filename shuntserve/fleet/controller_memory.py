"""What a controller is given, and what it knows as long as it acts."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from shuntserve.core.manifest import Manifest
from shuntserve.core.offers import Want
from shuntserve.core.resolved import ResolvedJob
from shuntserve.fleet.observe import FleetObserver
from shuntserve.fleet.prediction import Prediction
from shuntserve.job.final import Final
from shuntserve.job.fleet_records import PlanRecord
from shuntserve.job.interruptions import InterruptionWatch
from shuntserve.job.local import LocalWorkers
from shuntserve.job.timeline import Timeline
from shuntserve.job.watch import Watcher

Beside = Callable[[Callable[[], Any]], "Future[Any]"]
"""Starts one long thing and does not wait for it."""


@dataclass(frozen=True, slots=True)
class ControllerTimes:
    """How often it looks, and how long machines are given to drain."""

    look_s: float = 1.0
    drain_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Work:
    """The long parts of a job, each safe to repeat and to break off."""

    current: Callable[[], ResolvedJob]
    """The job as it is to be run now."""
    ingest: Callable[[ResolvedJob], Manifest]
    finalize: Callable[[ResolvedJob, Manifest], Final]
    report: Callable[[ResolvedJob, Manifest, Final], None]
    predict: Callable[[ResolvedJob, Manifest, tuple[Want, ...]], Prediction | None]
    closer: Callable[[ResolvedJob], LocalWorkers]
    """A worker without an engine: commits what is left of a stopped job."""


@dataclass(slots=True)
class Memory:
    """What is known as long as this process acts. Forgotten with the lease."""

    job: ResolvedJob
    wants: tuple[Want, ...]
    observer: FleetObserver
    timeline: Timeline
    interruptions: InterruptionWatch
    manifest: Manifest | None = None
    proposal: dict[str, Any] | None = None
    watcher: Watcher | None = None
    plan: PlanRecord | None = None
    final: Final | None = None
    reported: bool = False
    phase: str | None = None
    adjusted: dict[str, Any] = field(default_factory=dict)
    told: set[tuple[str | None, str]] = field(default_factory=set)
    """(node, kind) of the events the timeline has."""
    terminated_s: dict[str, float] = field(default_factory=dict)
    cooling: dict[str, float] = field(default_factory=dict)
    """Offer → until when."""
    paused: bool = False
    failures: int = 0
    failed_nodes: set[str] = field(default_factory=set)
    last_failure: str | None = None
    committed: int = 0
    closer: LocalWorkers | None = None
    spending_due_s: float = -math.inf
    spending_counter: int = 0
    asked_to_leave_s: dict[str, float] = field(default_factory=dict)


def on_a_thread(do: Callable[[], Any]) -> Future[Any]:
    """Run it on a thread that does not keep the process alive: whatever it does may be broken off."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(do())
        except BaseException as error:  # whoever asks for the value gets it
            future.set_exception(error)

    threading.Thread(target=run, name="work", daemon=True).start()
    return future

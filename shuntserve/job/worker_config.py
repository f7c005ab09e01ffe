"""What one worker is told about its job, and what it counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from shuntserve.core.ledger import Rules
from shuntserve.errors import ShuntServeError
from shuntserve.job.ops import Procedure

DEFAULT_RULES = Rules()

Tolerate = Callable[[ShuntServeError | None, str], None]
"""Told of every error of bucket work: Unavailable passes (whoever tells it tries again), others end the worker."""


class Spawner(Protocol):
    """Runs procedures beside the loop. Their outcomes are collected by the loop, in its own tick."""

    def spawn(self, procedure: Procedure[Any], done: Callable[[Any, ShuntServeError | None], None]) -> None:
        """Start a procedure; `done(value, error)` is called inside a later `deliver`."""
        ...

    def deliver(self) -> None:
        """Call `done` of every procedure that has ended."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What one worker needs to know of its job."""

    job_id: str
    pages: Mapping[str, str]
    """Page → key of its list of chunks."""
    page_sha256: Mapping[str, str]
    rules: Rules = DEFAULT_RULES
    checkpoint_interval_s: float = 10.0
    renew_interval_s: float = 3.0
    survey_interval_s: float = 2.0
    control_interval_s: float = 3.0
    watched_workers: int = 16
    engine_restart_delays_s: tuple[float, ...] = (2.0, 10.0)
    """Waits before the next attempt after an engine that did not start; the last one repeats."""
    engine_start_attempts: int = 3


@dataclass(slots=True)
class Counters:
    """What this worker did; written with its progress."""

    rows_finished: int = 0
    rows_rejected: int = 0
    sequences_out: int = 0
    length_finishes: int = 0
    """Of `sequences_out`, those cut off by max_tokens."""
    chunks_committed: int = 0
    tokens_generated: int = 0
    tokens_durable: int = 0
    tokens_kept: int = 0
    resumed: int = 0
    crashed: int = 0
    hung: int = 0
    killed: int = 0
    checkpoints: int = 0

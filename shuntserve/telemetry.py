"""The catalogue of log events: one line of JSON per change of state, fields instead of sentences.

Prompts and outputs never get into a log: `emit` takes ids, counts and times, and refuses fields that could hold text of
the user's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import TextIO

LOGGER = logging.getLogger("shuntserve")


class Event(StrEnum):
    """Every event that is logged. The name says what has happened."""

    JOB_SUBMITTED = "job_submitted"
    JOB_FINISHED = "job_finished"
    INGEST_STARTED = "ingest_started"
    INGEST_FINISHED = "ingest_finished"
    WORKER_STARTED = "worker_started"
    WORKER_EXITED = "worker_exited"
    WORKER_FENCED = "worker_fenced"
    ENGINE_STARTING = "engine_starting"
    ENGINE_READY = "engine_ready"
    ENGINE_LOST = "engine_lost"
    KV_CACHE_MISMATCH = "kv_cache_mismatch"
    PIPELINE_PHASE = "pipeline_phase"
    PIPELINE_NODE_JOINED = "pipeline_node_joined"
    PIPELINE_NODE_LOST = "pipeline_node_lost"
    CHUNK_CLAIMED = "chunk_claimed"
    CHUNK_COMMITTED = "chunk_committed"
    CHUNK_RELEASED = "chunk_released"
    CHECKPOINT_WRITTEN = "checkpoint_written"
    ROW_POISONED = "row_poisoned"
    DRAIN_STARTED = "drain_started"
    JOB_PAUSED = "job_paused"
    STORE_UNAVAILABLE = "store_unavailable"
    AGENT_STARTED = "agent_started"
    AGENT_EXITED = "agent_exited"
    INTERRUPTION_NOTICED = "interruption_noticed"
    REBALANCE_RECOMMENDED = "rebalance_recommended"
    METADATA_UNAVAILABLE = "metadata_unavailable"
    CONTROLLER_ACTING = "controller_acting"
    CONTROLLER_FENCED = "controller_fenced"
    CONTROLLER_EXITED = "controller_exited"
    PLAN_WRITTEN = "plan_written"
    MACHINE_LAUNCHED = "machine_launched"
    MACHINE_ENDED = "machine_ended"
    LAUNCH_FAILED = "launch_failed"
    JOB_STOPPED = "job_stopped"
    FINALIZE_STARTED = "finalize_started"
    FINALIZE_FINISHED = "finalize_finished"
    REPORT_FAILED = "report_failed"
    TIMELINE_UNREADABLE = "timeline_unreadable"
    METRICS_SERVED = "metrics_served"
    METRICS_UNAVAILABLE = "metrics_unavailable"
    TRACING_UNAVAILABLE = "tracing_unavailable"


FORBIDDEN_FIELDS = frozenset({"prompt", "messages", "text", "output_text", "content", "token_ids", "row_values"})


def emit(event: Event, *, level: int = logging.INFO, **fields: object) -> None:
    """Log one event. Field values are ids, numbers and short codes."""
    forbidden = FORBIDDEN_FIELDS & fields.keys()
    if forbidden:
        raise ValueError(f"{event}: field {min(forbidden)} may hold the user's text, which is never logged")
    LOGGER.log(level, event.value, extra={"fields": fields})


class JsonLines(logging.Formatter):
    """One JSON object per record: time, level, event, then what is true of the whole process, then the event's own
    fields."""

    def __init__(self, always: Mapping[str, object]) -> None:
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, tz=UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **self._always,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to(stream: TextIO, level: str, **always: object) -> None:
    """Send this process's events to `stream`, each with the fields in `always` (its job, its node); replaces an earlier
    choice."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines({name: value for name, value in always.items() if value is not None}))
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(level.upper())
    LOGGER.propagate = False

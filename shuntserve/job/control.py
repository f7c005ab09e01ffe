"""The job's control log: pause, resume, cancel, changed settings; appended by whoever decides, read by every worker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from shuntserve.core.states import StopCode
from shuntserve.job import claims
from shuntserve.store import keys
from shuntserve.store.port import Bucket

SCHEMA_VERSION = 1


class Action(StrEnum):
    """What an entry asks for. Cancelling cannot be taken back; a pause ends with the next resume; an adjustment stands
    until the next one of the same setting."""

    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    ADJUST = "adjust"


@dataclass(frozen=True, slots=True)
class Standing:
    """What the log says now: why the job is paused (None: it is not), and what it was stopped by for good."""

    paused: str | None = None
    stopped: StopCode | None = None
    adjusted: Mapping[str, Any] = field(default_factory=dict)
    """Operations that were changed after the first submission."""
    submitted: Mapping[str, Any] = field(default_factory=dict)
    """Of them, what later submissions have asked for."""


def pause(bucket: Bucket, job_id: str, writer: str, reason: str) -> None:
    """Ask every worker to drain; new ones leave again until the job is resumed."""
    _append(bucket, job_id, {"writer": writer, "action": str(Action.PAUSE), "reason": reason})


def resume(bucket: Bucket, job_id: str, writer: str) -> None:
    """Take back all pauses so far."""
    _append(bucket, job_id, {"writer": writer, "action": str(Action.RESUME)})


def stop(bucket: Bucket, job_id: str, writer: str, code: StopCode) -> None:
    """Ask every worker to commit what is left as rejects with this code, partial output included."""
    _append(bucket, job_id, {"writer": writer, "action": str(Action.CANCEL), "code": str(code)})


def adjust(bucket: Bucket, job_id: str, writer: str, changes: Mapping[str, Any], *, submitted: bool) -> None:
    """Change how the job is run from now on (`core.resolved.Operations`). `submitted`: by submitting it again."""
    entry = {"writer": writer, "action": str(Action.ADJUST), "operations": dict(changes), "submitted": submitted}
    _append(bucket, job_id, entry)


def _append(bucket: Bucket, job_id: str, entry: Mapping[str, Any]) -> None:
    """Add an entry after all that are there; repeated when somebody else takes the number first."""
    number = _last_number(bucket, job_id) + 1
    body = json.dumps({"schema_version": SCHEMA_VERSION, **entry}).encode()
    while not bucket.create(keys.control_entry(job_id, number), body):
        number += 1


def standing(bucket: Bucket, job_id: str) -> Standing:
    """The net effect of the log."""
    paused: str | None = None
    stopped: StopCode | None = None
    adjusted: dict[str, Any] = {}
    submitted: dict[str, Any] = {}
    for info in bucket.list(keys.control(job_id)):
        entry = claims.load(info.key, bucket.get(info.key))
        match entry["action"]:
            case Action.PAUSE:
                paused = str(entry["reason"])
            case Action.RESUME:
                paused = None
            case Action.CANCEL:
                stopped = stopped or StopCode(entry["code"])
            case Action.ADJUST:
                adjusted |= entry["operations"]
                submitted |= entry["operations"] if entry["submitted"] else {}
    return Standing(paused, stopped, adjusted, submitted)


def _last_number(bucket: Bucket, job_id: str) -> int:
    last = -1
    for info in bucket.list(keys.control(job_id)):
        last = int(info.key.rsplit("/", 1)[1].removesuffix(".json"))
    return last

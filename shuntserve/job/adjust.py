"""A stored job as it is to be run now: limits and places may be changed after it was submitted.

`spec.json` is frozen. Every later change of `Operations` (another budget, another limit, another output) is an entry of
the control log, so that a controller on another machine runs the job as its user last asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from shuntserve.core.near_miss import did_you_mean
from shuntserve.core.resolved import TEXTS, Operations, ResolvedJob
from shuntserve.core.specs import JobSpec, parse_deadline
from shuntserve.errors import Corrupt, InvalidInput
from shuntserve.job import control
from shuntserve.job.submission import load_job
from shuntserve.store.port import Bucket

_FIXED = frozenset({"lease_s", "spending_lease_s"})
"""All processes of a job must agree on these for its whole life."""


def current_job(bucket: Bucket, job_id: str) -> ResolvedJob:
    """The job with every change so far. Raises NotFound, Corrupt."""
    job = load_job(bucket, job_id)
    changes = control.standing(bucket, job_id).adjusted
    try:
        asked = {name: tuple(value) if name in TEXTS else value for name, value in changes.items()}
        operations = Operations(**{**asdict(job.operations), **asked})
    except TypeError as error:
        raise Corrupt(f"job {job_id}", f"holds a setting that is not known: {error}", "upgrade shuntserve") from error
    return replace(job, operations=operations)


def resubmitted(bucket: Bucket, job: ResolvedJob, writer: str) -> None:
    """Take note of what this submission asks for otherwise than the one before it; of nothing else.

    So a flow that attaches to its job again, with the parameters it always had, takes back no limit that somebody has
    raised since.
    """
    before = control.standing(bucket, job.job_id).submitted
    stored = {**asdict(load_job(bucket, job.job_id).operations), **before}
    wanted: dict[str, Any] = asdict(job.operations)
    changes = {name: value for name, value in wanted.items() if name not in _FIXED and _differs(stored[name], value)}
    if "deadline" not in changes:
        changes.pop("deadline_unix_s", None)
    if changes:
        control.adjust(bucket, job.job_id, writer, changes, submitted=True)


def _differs(one: Any, other: Any) -> bool:
    """Whether two settings differ; JSON knows no tuples."""
    return (list(one) if isinstance(one, tuple) else one) != (list(other) if isinstance(other, tuple) else other)


def change(bucket: Bucket, job_id: str, changes: Mapping[str, Any], writer: str, now_unix_s: float) -> None:
    """Change settings of a job; a deadline that is a duration begins now. Raises InvalidInput."""
    after = asdict(changed(current_job(bucket, job_id), changes, now_unix_s).operations)
    names = [*changes, *(["deadline_unix_s"] if "deadline" in changes else [])]
    control.adjust(bucket, job_id, writer, {name: after[name] for name in names}, submitted=False)


def changed(job: ResolvedJob, changes: Mapping[str, Any], now_unix_s: float) -> ResolvedJob:
    """The job with these operations, checked as a spec's settings are. Raises InvalidInput."""
    names = [item.name for item in fields(Operations) if item.name not in _FIXED]
    for name in changes:
        if name not in names:
            raise InvalidInput(f"setting {name!r}", "cannot be changed after submission", did_you_mean(name, names))
    if "deadline_unix_s" in changes and not _is_time(changes["deadline_unix_s"]):
        raise InvalidInput("deadline_unix_s", "is not a Unix time", "give seconds since 1970, or null for none")
    asked = {name: value for name, value in changes.items() if name in JobSpec.model_fields}
    checked = JobSpec(input=("checked",), model="checked", **{**_as_spec(job.operations), **asked})
    values = {name: getattr(checked, name) for name in asked}
    if "deadline" in asked:
        deadline = checked.deadline
        values["deadline"] = None if deadline is None else str(deadline)
        values["deadline_unix_s"] = None if deadline is None else parse_deadline(deadline, now_unix_s)
    return replace(job, operations=replace(job.operations, **{**changes, **values}))


def _is_time(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))


def _as_spec(operations: Operations) -> dict[str, Any]:
    return {name: value for name, value in asdict(operations).items() if name in JobSpec.model_fields}

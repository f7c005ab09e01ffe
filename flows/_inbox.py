"""The steps of the inbox flow: a scan, batch runs for what it found, adopted jobs, warnings."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefect import runtime, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.events import emit_event
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.variables import Variable

from flows._run import cost_cap_usd
from flows._spec import capped
from flows.blocks import open_store
from shuntserve.api import attach
from shuntserve.job.inbox import Scan, mark_told, scan, submit_taken
from shuntserve.job.orphans import perhaps_orphans
from shuntserve.job.run import open_store as open_bucket
from shuntserve.settings import settings as environment

INBOX_SETTINGS = "shuntserve_inbox"
MOST_RUNS = 20
"""Batch runs that are started for one submission, each because the one before it crashed, before a person must look."""
LOOK_AGAIN_S = 20.0
"""A controller tells of its progress far more often, and a flow run that watches its job starts another one sooner."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the inbox of a store."""

    store: str | None
    url: str
    scan: Scan


@task(cache_policy=NO_CACHE, task_run_name="look", retries=3, retry_delay_seconds=[2, 10, 30])
def look(store: str | None, model: str | None, settings: Mapping[str, Any], quiet_s: float, rerun: str | None) -> Look:
    """Scan, and take what is complete."""
    url = open_store(store) or environment().store_url
    usual: Any = Variable.get(INBOX_SETTINGS, default={})
    defaults = {**(usual if isinstance(usual, dict) else {}), **settings}
    if model is not None:
        defaults["model"] = model
    defaults["max_cost_usd"] = capped(defaults.get("max_cost_usd"), cost_cap_usd())
    asked = {} if rerun is None else {rerun: str(runtime.flow_run.get_id())}
    return Look(store, url, scan(open_bucket(url), defaults=defaults, quiet_s=quiet_s, rerun=asked))


@task(cache_policy=NO_CACHE, task_run_name="start", retries=3, retry_delay_seconds=[2, 10, 30])
def start(found: Look, deployment: str) -> int:
    """A batch run for each submission that has no job yet; asked twice, it is the same run."""
    for record in found.scan.start:
        parameters = {"store": found.store, "submission": record.submission, "submission_number": record.number}
        if not _run_batch(deployment, f"submission-{record.key}", parameters):
            job_id = submit_taken(open_bucket(found.url), record.submission, record.number)
            attach(job_id, store=found.url).start()
        emit_event(
            "shuntserve.submission.taken",
            {"prefect.resource.id": f"shuntserve.submission.{record.submission}"},
            payload={"files": len(record.files), "number": record.number},
        )
    return len(found.scan.start)


@task(cache_policy=NO_CACHE, task_run_name="adopt")
def adopt(found: Look, deployment: str) -> int:
    """A batch run for each job whose controller is gone and that nobody starts again."""
    bucket = open_bucket(found.url)
    first = perhaps_orphans(bucket)
    if not first:
        return 0
    time.sleep(LOOK_AGAIN_S)
    still = {job_id: seen for job_id, seen in perhaps_orphans(bucket).items() if first.get(job_id) == seen}
    for job_id, (epoch, _) in still.items():
        get_run_logger().warning("job %s has no controller: adopted", job_id)
        if not _run_batch(deployment, f"adopt-{job_id}-{epoch}", {"store": found.store, "job": job_id}):
            attach(job_id, store=found.url).start()
    return len(still)


@task(cache_policy=NO_CACHE, task_run_name="tell")
def tell(found: Look) -> None:
    """Say once what a person should know: late or changed files, refused submissions."""
    rows = _warnings(found.scan)
    for row in rows:
        get_run_logger().warning("submission %s: %s", row["submission"], row["what"])
        emit_event(
            f"shuntserve.submission.{row['kind']}",
            {"prefect.resource.id": f"shuntserve.submission.{row['submission']}"},
            payload=row,
        )
    if rows:
        create_table_artifact(rows, key="shuntserve-inbox-warnings", description="Submissions that need a look")
    mark_told(open_bucket(found.url), found.scan)


def summary(found: Look, started: int, adopted: int) -> str:
    """The run in one line."""
    one = found.scan
    waiting = ", ".join(f"{item.submission} ({item.reason})" for item in one.waiting[:5])
    parts = [f"{started} started", f"{len(one.waiting)} not complete{': ' + waiting if waiting else ''}"]
    parts += [f"{one.known} done before", f"{len(one.warned) + len(one.refused)} warnings", f"{adopted} jobs adopted"]
    return ", ".join(parts)


def _warnings(found: Scan) -> list[dict[str, Any]]:
    late: list[dict[str, Any]] = [
        {
            "kind": "late",
            "submission": one.submission,
            "job": one.job_id,
            "what": f"{one.changes}; the job stays as it is",
        }
        for one in found.warned
    ]
    refused = [
        {"kind": "refused", "submission": one.submission, "job": "", "what": one.reason} for one in found.refused
    ]
    return late + refused


def _run_batch(deployment: str, key: str, parameters: dict[str, Any]) -> bool:
    """Start a run of the deployment unless one of this key is under way; False when there is no such deployment.

    A run that crashed or failed before it had made its job is followed by another.
    """
    for attempt in range(MOST_RUNS):
        try:
            run = run_deployment(
                deployment, parameters=parameters, idempotency_key=f"{key}-{attempt}", timeout=0, as_subflow=False
            )
        except ObjectNotFound:
            return False
        assert isinstance(run, FlowRun)
        if run.state is None or run.state.type not in (StateType.CRASHED, StateType.FAILED):
            return True
    get_run_logger().error("%s runs of %s failed for %s; start it by hand", MOST_RUNS, deployment, key)
    return True

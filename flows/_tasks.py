"""The steps of a batch: a handful of coarse tasks, and the two moments at which a person is asked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.logging import get_run_logger
from prefect.states import State

from flows import _tables
from flows._artifacts import Artifacts
from flows._events import Emitter
from flows._outages import await_server
from flows._run import JOB, STORE, ThisRun, cost_cap_usd, note, noted_job
from flows._spec import job_spec
from flows._states import ENDED, PAUSED, Ending, ending, paused_ending
from flows._watch import Status, Watch
from flows.blocks import open_store
from shuntserve import submit as submit_job
from shuntserve.api import attach
from shuntserve.errors import Unavailable
from shuntserve.job.inbox import submit_taken
from shuntserve.job.run import open_store as open_bucket
from shuntserve.settings import settings

AWAITING_APPROVAL = "AWAITING_APPROVAL"
BEFORE_INGEST = ("SUBMITTED", "INGESTING")
ASK_AGAIN_S = 5
"""A paused run keeps its process, which asks Prefect so often whether somebody has answered."""
LONGEST_PAUSE_S = 30 * 86400


@dataclass(frozen=True, slots=True)
class Source:
    """What a flow run's job is made from: parameters, a submission of the inbox, or a job that exists."""

    given: Mapping[str, Any]
    settings: Mapping[str, Any]
    submission: str | None
    submission_number: int
    job: str | None


class Approval(RunInput):
    """The answer to a plan: launch these machines, or cancel the job."""

    approve: bool = True
    by: str = ""


class Resumption(RunInput):
    """How a paused job goes on; limits that are left out stay as they are."""

    max_reject_fraction: float | None = None
    max_length_finish_fraction: float | None = None


def _is_unavailable(_task: object, _run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), Unavailable)


@task(
    cache_policy=NO_CACHE,
    task_run_name="submit",
    retries=5,
    retry_delay_seconds=[2, 5, 15, 30, 60],
    retry_condition_fn=_is_unavailable,
)
def submit(run: ThisRun, source: Source, store: str | None) -> Watch:
    """Put the job into the store, or find the one this run has made, and see that it has a controller."""
    url = open_store(store) or settings().store_url
    job_id = run.job_id or source.job
    if job_id is None and source.submission is not None:
        job_id = submit_taken(open_bucket(url), source.submission, source.submission_number)
    if job_id is None:
        spec = job_spec(source.given, source.settings, run.as_of, cost_cap_usd(), run.run_id or "")
        job_id = submit_job(spec, store=url).job_id
    job = attach(job_id, store=url)
    note(run.run_id, {JOB: job_id, STORE: store or url})
    status = job.status().to_json()
    if status["state"] == PAUSED and not run.again:
        job.resume()
    elif status["state"] not in ENDED and status["state"] != PAUSED:
        job.start()
    get_run_logger().info("job %s in %s, output to %s", job_id, url, job.output_url)
    return Watch(job, Emitter(job_id, status["name"], run.run_id), Artifacts(status["name"]))


@task(cache_policy=NO_CACHE, task_run_name="ingest")
def ingest(watch: Watch) -> Status:
    """Watch until the input has been read."""
    return watch.until(lambda status: status["state"] not in BEFORE_INGEST)


def approve(run: ThisRun, watch: Watch, timeout_s: float) -> None:
    """Where the plan waits for somebody, pause the run and ask; what they say is passed on."""
    status = watch.until(lambda status: status["state"] not in BEFORE_INGEST)
    if status["state"] != AWAITING_APPROVAL:
        return
    if not run.can_be_paused:
        get_run_logger().warning("job %s waits for approval: %s", status["id"], status["next_step"])
        return
    asked = Approval.with_initial_data(description=_tables.proposal_text(status))
    key = f"approval-{watch.job.job_id}"
    answer = pause_flow_run(wait_for_input=asked, timeout=int(timeout_s), poll_interval=ASK_AGAIN_S, key=key)
    job: Any = watch.job
    if answer.approve:
        job.approve(by=answer.by or "a Prefect user")
    else:
        job.cancel()


def run_to_end(run: ThisRun, watch: Watch) -> Status:
    """Watch until the job has ended. When it pauses, pause the run; resumed, it resumes the job."""
    while True:
        status = work(watch)
        if status["state"] != PAUSED or not run.can_be_paused:
            return status
        text = f"Job {status['id']} is paused ({status['pause']}). {status['next_step']}"
        asked = Resumption.with_initial_data(description=text)
        key = _pause_key(status)
        answer = pause_flow_run(wait_for_input=asked, timeout=LONGEST_PAUSE_S, poll_interval=ASK_AGAIN_S, key=key)
        job: Any = watch.job
        job.resume(**{name: value for name, value in answer.model_dump().items() if value is not None})


@task(cache_policy=NO_CACHE, task_run_name="run")
def work(watch: Watch) -> Status:
    """Watch until the job has ended or paused."""
    return watch.until(lambda _: False)


@task(cache_policy=NO_CACHE, task_run_name="finalize")
def finalize(watch: Watch, status: Status) -> tuple[Ending, str]:
    """Show what came out, and decide the run's colour and what it says."""
    job: Any = watch.job
    if status["state"] == PAUSED:
        return paused_ending(status["pause"]), f"paused ({status['pause']}): {status['next_step']}"
    status = watch.until_settled()
    watch.artifacts.ended(status, job.report(), lambda: _tables.reject_rows(_rejects(job)))
    await_server()
    end = ending(status["state"], status["exit_code"], status.get("stopped_by"))
    return end, f"{_tables.progress_text(status)}. Output: {status['output']}. {status['next_step']}".strip()


def cancel_job(flow: object, flow_run: FlowRun, state: State[Any]) -> None:
    """Cancelling the run cancels its job: what is committed stays, the rest is rejected as cancelled, and the output is
    written by the job's controller."""
    found = noted_job(flow_run)
    if found is not None:
        job: Any = attach(found[0], store=open_store(found[1]))
        job.cancel(wait=False)


def _rejects(job: Any) -> Iterator[list[dict[str, Any]]]:
    columns = ["code", "source_file", "source_row"]
    for batch in job.rejects().to_batches(columns=columns):
        yield batch.to_pylist()


def _pause_key(status: Status) -> str:
    """One for each pause, the same before and after it is answered."""
    seen = (status["pause"], status["rows"], status["chunks"], (status.get("controller") or {}).get("epoch"))
    return f"pause-{hashlib.sha256(repr(seen).encode()).hexdigest()[:16]}"

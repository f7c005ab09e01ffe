"""The deployment `shuntserve-batch`: one job from prompts to answers.

Its tasks start the job's controller and watch it; none does the work. So a flow run that dies loses nothing: run again
it finds its job. A job that pauses, or waits for approval, pauses the run; resuming the run resumes the job.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from prefect import flow
from prefect.states import State

from flows import _tasks
from flows._run import this_run
from flows._spec import Approval, Market


@flow(name="shuntserve-batch", on_cancellation=[_tasks.cancel_job], persist_result=False)
def batch(
    input: list[str] | str | None = None,  # noqa: A002  the users' word
    output: str | None = None,
    model: str | None = None,
    max_cost_usd: float | None = None,
    deadline: str | None = None,
    market: Market = "prefer_spot",
    approval: Approval = "over_budget",
    as_of: datetime | None = None,
    name: str | None = None,
    settings: dict[str, Any] | None = None,
    store: str | None = None,
    rerun: bool | str = False,
    approval_timeout_h: float = 24.0,
    submission: str | None = None,
    submission_number: int = 0,
    job: str | None = None,
) -> State[Any]:
    """Run a batch of prompts through a model.

    Args:
        input: Parquet or OpenAI batch JSONL: paths, globs, s3:// URLs. May hold {as_of:%Y-%m-%d}.
        output: where the answers go; by default outbox/<job> in the store. May hold {as_of:%Y-%m-%d}.
        model: a model directory or a name on the Hugging Face hub.
        max_cost_usd: the job is stopped before its machines cost more.
        deadline: a duration (2h30m) or a moment with its zone.
        market: which machines may be used.
        approval: when somebody must agree before machines are launched.
        as_of: the day this run stands for; by default its scheduled start.
        name: a readable name; artifacts are kept by it.
        settings: any other setting of a job, by name.
        store: where jobs live: a URL, a directory or block:NAME; by default SHUNTSERVE_STORE.
        rerun: make another job of the same submission: true, or one for each text.
        approval_timeout_h: the run fails when nobody has answered for so long; the job keeps waiting.
        submission: a submission that the inbox has taken, instead of input.
        submission_number: which of that submission's records.
        job: the id of a job that exists, instead of all the above: watch it to its end.
    """
    run = this_run(as_of)
    given: dict[str, Any] = {
        "input": input,
        "output": output,
        "model": model,
        "max_cost_usd": max_cost_usd,
        "deadline": deadline,
        "market": market,
        "approval": approval,
        "name": name,
        "rerun": rerun,
    }
    source = _tasks.Source(given, settings or {}, submission, submission_number, job)
    watch = _tasks.submit(run, source, store)
    _tasks.ingest(watch)
    _tasks.approve(run, watch, approval_timeout_h * 3600)
    status = _tasks.run_to_end(run, watch)
    end, message = _tasks.finalize(watch, status)
    return end.state(message)

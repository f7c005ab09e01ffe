"""The deployment `shuntserve-stop`: stops one job, or all of a store. It asks nothing, so it must be told which."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.logging import get_run_logger
from prefect.states import Completed, State

from flows._states import ENDED
from flows.blocks import open_store
from shuntserve.api import attach
from shuntserve.errors import InvalidInput
from shuntserve.job.run import open_store as open_bucket
from shuntserve.job.status import job_ids
from shuntserve.settings import settings


@flow(name="shuntserve-stop", persist_result=False)
def stop(
    job: str | None = None,
    all_jobs: bool = False,
    now: bool = False,
    store: str | None = None,
) -> State[Any]:
    """Stop jobs: their machines write what they have and end.

    Args:
        job: the id of one job.
        all_jobs: every job of the store that has not ended.
        now: do not wait for machines to write what they have; what is durable stays.
        store: where jobs live: a URL, a directory or block:NAME; by default SHUNTSERVE_STORE.
    """
    if (job is None) == (not all_jobs):
        raise InvalidInput("stop", "needs to know what to stop", "set either job or all_jobs")
    url = open_store(store) or settings().store_url
    stopped = 0
    for job_id in [job] if job is not None else job_ids(open_bucket(url)):
        one = attach(job_id, store=url)
        if one.status().state in ENDED:
            continue
        one.stop(now=now)
        get_run_logger().info("job %s: told to stop", job_id)
        stopped += 1
    return Completed(message=f"{stopped} jobs told to stop")

"""The deployment `shuntserve-inbox`: looks into the drop folder, and starts one batch for each complete submission.

A run takes seconds and decides nothing: what is complete, late or refused is `shuntserve.job.inbox`'s to say, and two
runs at once start one job. Jobs that have lost their controller and their flow run are adopted.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.states import Completed, State

from flows import _inbox


@flow(name="shuntserve-inbox", persist_result=False)
def inbox(
    store: str | None = None,
    model: str | None = None,
    settings: dict[str, Any] | None = None,
    quiet_s: float = 60.0,
    rerun: str | None = None,
    batch_deployment: str = "shuntserve-batch/batch",
) -> State[Any]:
    """Start a batch for each submission that is complete.

    Args:
        store: where jobs and the inbox live: a URL, a directory or block:NAME; by default SHUNTSERVE_STORE.
        model: for submissions whose job.yaml names none; by default as in the variable shuntserve_inbox.
        settings: job settings under each submission's own job.yaml, over those of the variable shuntserve_inbox.
        quiet_s: a submission without a marker is complete when nothing was written to it for so long.
        rerun: the name of a submission to make another job of, once for this run.
        batch_deployment: the deployment that runs jobs.
    """
    found = _inbox.look(store, model, settings or {}, quiet_s, rerun)
    started = _inbox.start(found, batch_deployment)
    adopted = _inbox.adopt(found, batch_deployment)
    _inbox.tell(found)
    return Completed(message=_inbox.summary(found, started, adopted))

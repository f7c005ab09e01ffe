"""What a flow run knows of itself: its id, the day it stands for, and the job it made, kept in its labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.variables import Variable

from shuntserve.errors import Unavailable

JOB, STORE, AS_OF = "shuntserve.job", "shuntserve.store", "shuntserve.as_of"
CAP = "shuntserve_max_cost_usd"
MOST_CRASHES = 20
"""An automation takes a crashed run up again; not for ever."""


@dataclass(frozen=True, slots=True)
class ThisRun:
    """The flow run that this process executes. `again`: its process was lost, and it goes on where it was."""

    run_id: str | None
    as_of: datetime
    job_id: str | None
    again: bool
    can_be_paused: bool


def this_run(as_of: datetime | None) -> ThisRun:
    """Read once, at the beginning. The day is fixed by the first process: a run that is resumed tomorrow stays
    today's."""
    run_id = runtime.flow_run.get_id()
    if run_id is None:
        return ThisRun(None, _aware(as_of or datetime.now(UTC)), None, False, False)
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(UUID(run_id))
        states = [state.type for state in client.read_flow_run_states(run.id)]
    noted = run.labels.get(AS_OF)
    day = datetime.fromisoformat(str(noted)) if noted else _aware(as_of or runtime.flow_run.get_scheduled_start_time())
    if not noted:
        note(run_id, {AS_OF: day.isoformat()})
    if states.count(StateType.CRASHED) >= MOST_CRASHES:
        raise Unavailable(
            "this flow run",
            f"has crashed {MOST_CRASHES} times",
            "see its worker's log, then run it again: its job goes on",
        )
    job_id = run.labels.get(JOB)
    return ThisRun(run_id, day, None if job_id is None else str(job_id), lost(states), run.deployment_id is not None)


def lost(states: Iterable[StateType]) -> bool:
    """Whether the run's last process crashed, as against one that ended, was paused or never was."""
    endings = {StateType.CRASHED, StateType.FAILED, StateType.PAUSED, StateType.CANCELLED, StateType.COMPLETED}
    return next((state for state in reversed(list(states)) if state in endings), None) == StateType.CRASHED


def note(run_id: str | None, labels: dict[str, str]) -> None:
    """Keep something with the flow run, for its hooks and its next process."""
    if run_id is not None:
        with get_client(sync_client=True) as client:
            client.update_flow_run_labels(UUID(run_id), dict(labels))


def noted_job(run: FlowRun) -> tuple[str, str | None] | None:
    """The job that a flow run made, and its store; read anew, since `run` may be older than the note."""
    with get_client(sync_client=True) as client:
        labels = client.read_flow_run(run.id).labels
    job_id, store = labels.get(JOB), labels.get(STORE)
    return None if job_id is None else (str(job_id), str(store) if store else None)


def cost_cap_usd() -> float | None:
    """The installation's cap on what one job may cost: the variable `shuntserve_max_cost_usd`."""
    value = Variable.get(CAP, default=None)
    return None if value is None else float(str(value))


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)

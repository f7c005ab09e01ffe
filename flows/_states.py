"""How a job's end or pause shows as a Prefect state: one table.

    job                                                    exit code   flow run
    COMPLETED                                              0           Completed
    COMPLETED_WITH_REJECTS                                 0           Completed, named CompletedWithRejects
    COMPLETED_WITH_REJECTS, beyond max_reject_fraction     3           Failed, named TooManyRejects
    PARTIAL, cancelled                                     1           Cancelled
    PARTIAL, out of budget                                 4           Failed, named OutOfBudget
    PARTIAL, past its deadline                             5           Failed, named PastDeadline
    FAILED (not one row has output)                        1 or 3      Failed
    paused by its rejects                                  3           Paused, or Failed named PausedByRejects
    paused by cut-off outputs                              3           Paused, or Failed named PausedByLength
    paused because no engine or machine works              1           Paused, or Failed named PausedByEngine
    paused on request, or drained                          130         Paused, or Failed named Paused

Green means that every row has ended and rejects are within what the user accepts. A flow run that has no deployment
cannot be paused: it fails, and running it again resumes the job.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prefect.client.schemas.objects import StateType
from prefect.states import State

from shuntserve.core.states import (
    EXIT_BUDGET,
    EXIT_DEADLINE,
    EXIT_OK,
    EXIT_REJECTS,
    JobState,
    Pause,
    read_pause,
)

ENDED = frozenset(str(state) for state in JobState)
PAUSED = "PAUSED"


@dataclass(frozen=True, slots=True)
class Ending:
    """A Prefect state's type and name."""

    type: StateType
    name: str

    def state(self, message: str) -> State[Any]:
        """The state itself."""
        return State(type=self.type, name=self.name, message=message)


_FAILED = Ending(StateType.FAILED, "Failed")
_BY_EXIT_CODE = {
    (JobState.COMPLETED, EXIT_OK): Ending(StateType.COMPLETED, "Completed"),
    (JobState.COMPLETED_WITH_REJECTS, EXIT_OK): Ending(StateType.COMPLETED, "CompletedWithRejects"),
    (JobState.COMPLETED_WITH_REJECTS, EXIT_REJECTS): Ending(StateType.FAILED, "TooManyRejects"),
    (JobState.PARTIAL, EXIT_BUDGET): Ending(StateType.FAILED, "OutOfBudget"),
    (JobState.PARTIAL, EXIT_DEADLINE): Ending(StateType.FAILED, "PastDeadline"),
}
_BY_PAUSE = {Pause.REJECTS: "PausedByRejects", Pause.LENGTH: "PausedByLength", Pause.ENGINE: "PausedByEngine"}


def ending(state: str, exit_code: int | None, stopped_by: str | None = None) -> Ending:
    """How a flow run ends whose job has ended. What the table does not know is a failure, never green."""
    if state == JobState.PARTIAL and exit_code not in (EXIT_BUDGET, EXIT_DEADLINE) and stopped_by == "cancelled":
        return Ending(StateType.CANCELLED, "Cancelled")
    known = JobState(state) if state in ENDED else None
    return _FAILED if known is None or exit_code is None else _BY_EXIT_CODE.get((known, exit_code), _FAILED)


def paused_ending(pause: str | None) -> Ending:
    """How a flow run ends whose job is paused, where it cannot be paused."""
    return Ending(StateType.FAILED, _BY_PAUSE.get(read_pause(pause or ""), "Paused"))

"""How a job ends or pauses, and which exit code tells it: one table.

    state                    when                                                     exit code
    COMPLETED                every row has its output                                 0
    COMPLETED_WITH_REJECTS   every row has ended, some as rejects                     0, or 3 beyond max_reject_fraction
    PARTIAL                  stopped early: cancelled, out of budget, past deadline   1, 4, 5
    FAILED                   not one row has output                                   3 beyond the limit, else 1

A paused job has no terminal state: it goes on when it is run again.

    pause                    when                                                     exit code
    REJECTS                  more rejects than max_reject_fraction                    3
    LENGTH                   more rows ran out of max_tokens than allowed             3
    ENGINE                   its engines do not start, or no machine can be had       1
    DRAINED                  Ctrl-C or SIGTERM                                        130
    REQUESTED                a pause was asked for                                    130
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class JobState(StrEnum):
    """The four ways a job can end."""

    COMPLETED = "COMPLETED"
    COMPLETED_WITH_REJECTS = "COMPLETED_WITH_REJECTS"
    PARTIAL = "PARTIAL"
    FAILED = "FAILED"


class StopCode(StrEnum):
    """Reject codes of rows that ended because their job was stopped early."""

    CANCELLED = "cancelled"
    BUDGET = "budget"
    DEADLINE = "deadline"


class Pause(StrEnum):
    """Why a job that could go on does not."""

    REJECTS = "rejects"
    LENGTH = "length"
    ENGINE = "engine"
    DRAINED = "drained"
    REQUESTED = "requested"


EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REJECTS = 3
EXIT_BUDGET = 4
EXIT_DEADLINE = 5
EXIT_INTERRUPTED = 130

_STOPPED_EXIT = {StopCode.CANCELLED: EXIT_FAILED, StopCode.BUDGET: EXIT_BUDGET, StopCode.DEADLINE: EXIT_DEADLINE}
_PAUSED_EXIT = {
    Pause.REJECTS: EXIT_REJECTS,
    Pause.LENGTH: EXIT_REJECTS,
    Pause.ENGINE: EXIT_FAILED,
    Pause.DRAINED: EXIT_INTERRUPTED,
    Pause.REQUESTED: EXIT_INTERRUPTED,
}


@dataclass(frozen=True, slots=True)
class RowCounts:
    """How the rows of a job ended. `rows_stopped` are those rejects whose code is a `StopCode`."""

    rows_in: int
    rows_out: int
    rows_rejected: int
    rows_stopped: int = 0
    stopped_by: StopCode | None = None
    length_finishes: int = 0
    """Output sequences that ended because max_tokens ran out; of `sequences_out` in all."""
    sequences_out: int = 0


def terminal_state(counts: RowCounts) -> JobState:
    """The state of a job of which every row has ended."""
    if counts.rows_stopped:
        return JobState.PARTIAL
    if counts.rows_in and not counts.rows_out:
        return JobState.FAILED
    if counts.rows_rejected:
        return JobState.COMPLETED_WITH_REJECTS
    return JobState.COMPLETED


def ended_exit_code(state: JobState, counts: RowCounts, max_reject_fraction: float) -> int:
    """Exit code of a command whose job has ended."""
    beyond = too_many_rejects(counts.rows_rejected, counts.rows_in, max_reject_fraction)
    match state:
        case JobState.COMPLETED:
            return EXIT_OK
        case JobState.COMPLETED_WITH_REJECTS:
            return EXIT_REJECTS if beyond else EXIT_OK
        case JobState.PARTIAL:
            return _STOPPED_EXIT[counts.stopped_by or StopCode.CANCELLED]
        case JobState.FAILED:
            return EXIT_REJECTS if beyond else EXIT_FAILED


def paused_exit_code(pause: Pause) -> int:
    """Exit code of a command whose job was paused."""
    return _PAUSED_EXIT[pause]


def too_many_rejects(rows_rejected: int, rows_in: int, max_reject_fraction: float) -> bool:
    """Whether this share of all input rows is beyond what the user accepts."""
    return rows_rejected > max_reject_fraction * rows_in


def too_many_length_finishes(
    length_finishes: int, sequences_out: int, max_length_finish_fraction: float, *, least_sequences: int = 100
) -> bool:
    """Whether too many outputs were cut off by max_tokens; judged once there are enough of them to mean something."""
    return sequences_out >= least_sequences and length_finishes > max_length_finish_fraction * sequences_out


def read_pause(reason: str) -> Pause:
    """The pause a control entry names; any other text was somebody's own reason."""
    return Pause(reason) if reason in set(Pause) else Pause.REQUESTED


def next_step(
    state: str, paused: str | None, job_id: str, failure: str | None = None, *, looked_after: bool = True
) -> str:
    """What the user can do now, in one sentence. `looked_after`: a controller or a worker is at work."""
    if not looked_after and state in ("INGESTING", "WAITING", "RUNNING", "STOPPING", "FINALIZING"):
        return f"nobody is at work on it; go on with: shuntserve resume {job_id}"
    match state:
        case "SUBMITTED":
            return f"start it: shuntserve resume {job_id}" if failure is None else f"mend this, then resume: {failure}"
        case "AWAITING_APPROVAL":
            return f"look at the proposal, then agree: shuntserve approve {job_id}"
        case "WAITING":
            return "wait for machines" if failure is None else f"wait for machines; the last attempt: {failure}"
        case "PAUSED":
            match read_pause(paused or ""):
                case Pause.REJECTS:
                    look = f"see why: shuntserve rows rejected {job_id}"
                    return f"{look}; then shuntserve resume {job_id} --set max_reject_fraction=…, or cancel"
                case Pause.LENGTH:
                    go_on = f"shuntserve resume {job_id} --set max_length_finish_fraction=1"
                    return f"raise max_tokens in a new job, or accept it: {go_on}"
                case Pause.ENGINE:
                    return f"mend it ({failure or 'see the logs'}), then shuntserve resume {job_id}"
                case _:
                    return f"go on: shuntserve resume {job_id}"
        case "COMPLETED_WITH_REJECTS" | "FAILED":
            return f"see the rejects: shuntserve rows rejected {job_id}; run them again: shuntserve retry {job_id}"
        case "PARTIAL":
            return f"the output says what is missing; run that again: shuntserve retry {job_id}"
        case "COMPLETED":
            return "read the output"
        case _:
            return "wait"

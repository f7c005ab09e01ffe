"""How jobs end and pause, in one table: state, exit code, next step. Green means complete and within the limit."""

from __future__ import annotations

import pytest

from shuntserve.core.states import (
    JobState,
    Pause,
    RowCounts,
    StopCode,
    ended_exit_code,
    next_step,
    paused_exit_code,
    read_pause,
    terminal_state,
)

IN = 1000


def counts(out: int, rejected: int, stopped: int = 0, by: StopCode | None = None) -> RowCounts:
    return RowCounts(IN, out, rejected, stopped, by)


@pytest.mark.parametrize(
    ("ended", "limit", "state", "exit_code", "step"),
    [
        (counts(1000, 0), 0.01, JobState.COMPLETED, 0, "read the output"),
        (counts(1000, 0), 0.0, JobState.COMPLETED, 0, "read the output"),
        (counts(999, 1), 0.01, JobState.COMPLETED_WITH_REJECTS, 0, "see the rejects"),
        (counts(990, 10), 0.01, JobState.COMPLETED_WITH_REJECTS, 0, "see the rejects"),
        (counts(989, 11), 0.01, JobState.COMPLETED_WITH_REJECTS, 3, "see the rejects"),
        (counts(999, 1), 0.0, JobState.COMPLETED_WITH_REJECTS, 3, "see the rejects"),
        (counts(0, 1000), 0.01, JobState.FAILED, 3, "see the rejects"),
        (counts(0, 1000), 1.0, JobState.FAILED, 1, "see the rejects"),
        (counts(500, 500, 500, StopCode.CANCELLED), 0.01, JobState.PARTIAL, 1, "the output says what is missing"),
        (counts(500, 500, 500, StopCode.BUDGET), 0.01, JobState.PARTIAL, 4, "the output says what is missing"),
        (counts(500, 500, 500, StopCode.DEADLINE), 1.0, JobState.PARTIAL, 5, "the output says what is missing"),
        (counts(0, 1000, 1000, StopCode.BUDGET), 1.0, JobState.PARTIAL, 4, "the output says what is missing"),
        (counts(500, 500, 1, StopCode.DEADLINE), 0.01, JobState.PARTIAL, 5, "the output says what is missing"),
        (RowCounts(0, 0, 0), 0.01, JobState.COMPLETED, 0, "read the output"),
    ],
)
def test_how_a_job_ends(ended: RowCounts, limit: float, state: JobState, exit_code: int, step: str) -> None:
    """Rows decide the state, state and limit the exit code; the next step names a command."""
    assert terminal_state(ended) is state
    assert ended_exit_code(state, ended, limit) == exit_code
    assert next_step(str(state), None, "j").startswith(step)


def test_a_job_with_nothing_but_rejects_is_never_green() -> None:
    """Whatever is accepted."""
    for limit in (0.0, 0.01, 0.5, 0.999, 1.0):
        everything = counts(0, IN)
        assert ended_exit_code(terminal_state(everything), everything, limit) != 0


@pytest.mark.parametrize(
    ("reason", "exit_code", "step"),
    [
        (Pause.REJECTS, 3, "shuntserve rows rejected j; then shuntserve resume j --set max_reject_fraction"),
        (Pause.LENGTH, 3, "shuntserve resume j --set max_length_finish_fraction=1"),
        (Pause.ENGINE, 1, "mend it (no driver), then shuntserve resume j"),
        (Pause.DRAINED, 130, "go on: shuntserve resume j"),
        (Pause.REQUESTED, 130, "go on: shuntserve resume j"),
        ("lunch", 130, "go on: shuntserve resume j"),
        ("", 130, "go on: shuntserve resume j"),
    ],
)
def test_how_a_job_pauses(reason: str, exit_code: int, step: str) -> None:
    """Each reason with its exit code and the way on; a reason of somebody's own is a request."""
    assert paused_exit_code(read_pause(str(reason))) == exit_code
    assert step in next_step("PAUSED", str(reason), "j", "no driver")


@pytest.mark.parametrize(
    ("state", "failure", "looked_after", "step"),
    [
        ("SUBMITTED", None, False, "start it: shuntserve resume j"),
        ("SUBMITTED", "input: is gone", False, "mend this, then resume: input: is gone"),
        ("INGESTING", None, True, "wait"),
        ("INGESTING", None, False, "nobody is at work on it; go on with: shuntserve resume j"),
        ("AWAITING_APPROVAL", None, True, "look at the proposal, then agree: shuntserve approve j"),
        ("AWAITING_APPROVAL", None, False, "look at the proposal, then agree: shuntserve approve j"),
        ("WAITING", None, True, "wait for machines"),
        ("WAITING", "no capacity", True, "wait for machines; the last attempt: no capacity"),
        ("WAITING", "no capacity", False, "nobody is at work on it; go on with: shuntserve resume j"),
        ("RUNNING", None, True, "wait"),
        ("RUNNING", None, False, "nobody is at work on it; go on with: shuntserve resume j"),
        ("STOPPING", None, True, "wait"),
        ("STOPPING", None, False, "nobody is at work on it; go on with: shuntserve resume j"),
        ("FINALIZING", None, False, "nobody is at work on it; go on with: shuntserve resume j"),
    ],
)
def test_what_to_do_while_a_job_goes_on(state: str, failure: str | None, looked_after: bool, step: str) -> None:
    """Wait only for somebody who is at work."""
    assert next_step(state, None, "j", failure, looked_after=looked_after) == step

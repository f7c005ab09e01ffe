"""The table of endings and exit codes, row by row."""

from __future__ import annotations

import pytest

from shuntserve.core.states import (
    JobState,
    Pause,
    RowCounts,
    StopCode,
    ended_exit_code,
    paused_exit_code,
    terminal_state,
    too_many_length_finishes,
    too_many_rejects,
)


@pytest.mark.parametrize(
    ("counts", "limit", "state", "exit_code"),
    [
        (RowCounts(10, 10, 0), 0.01, JobState.COMPLETED, 0),
        (RowCounts(100, 99, 1), 0.01, JobState.COMPLETED_WITH_REJECTS, 0),
        (RowCounts(100, 98, 2), 0.01, JobState.COMPLETED_WITH_REJECTS, 3),
        (RowCounts(100, 98, 2), 0.5, JobState.COMPLETED_WITH_REJECTS, 0),
        (RowCounts(10, 0, 10), 0.01, JobState.FAILED, 3),
        (RowCounts(10, 0, 10), 1.0, JobState.FAILED, 1),
        (RowCounts(10, 4, 6, 5, StopCode.CANCELLED), 0.01, JobState.PARTIAL, 1),
        (RowCounts(10, 4, 6, 5, StopCode.BUDGET), 0.01, JobState.PARTIAL, 4),
        (RowCounts(10, 4, 6, 5, StopCode.DEADLINE), 0.01, JobState.PARTIAL, 5),
        (RowCounts(10, 0, 10, 10, StopCode.CANCELLED), 0.01, JobState.PARTIAL, 1),
    ],
)
def test_an_ended_job_has_this_state_and_exit_code(
    counts: RowCounts, limit: float, state: JobState, exit_code: int
) -> None:
    """State follows from the rows alone, the exit code from the state and the user's limit."""
    assert terminal_state(counts) is state
    assert ended_exit_code(state, counts, limit) == exit_code


@pytest.mark.parametrize(
    ("pause", "exit_code"), [(Pause.REJECTS, 3), (Pause.LENGTH, 3), (Pause.DRAINED, 130), (Pause.REQUESTED, 130)]
)
def test_a_paused_job_has_this_exit_code(pause: Pause, exit_code: int) -> None:
    """Limits exit with 3 like rejects beyond the limit, an interrupted command as shells do."""
    assert paused_exit_code(pause) == exit_code


def test_the_reject_limit_is_a_share_of_all_rows() -> None:
    """Exactly the allowed share is fine, one more row is not; no rows at all are fine."""
    assert not too_many_rejects(10, 1000, 0.01)
    assert too_many_rejects(11, 1000, 0.01)
    assert not too_many_rejects(0, 0, 0.0)


def test_the_length_limit_waits_for_enough_outputs() -> None:
    """A handful of cut-off outputs says nothing yet."""
    assert not too_many_length_finishes(99, 99, 0.2)
    assert too_many_length_finishes(21, 100, 0.2)
    assert not too_many_length_finishes(20, 100, 0.2)

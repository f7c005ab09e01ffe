"""How a job's end or pause shows in Prefect: the whole table."""

from __future__ import annotations

import itertools

import pytest
from prefect.client.schemas.objects import StateType

from flows._states import ending, paused_ending
from shuntserve.core.states import (
    JobState,
    Pause,
    RowCounts,
    StopCode,
    ended_exit_code,
    paused_exit_code,
    terminal_state,
)

C, F, X = StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED

ENDS = [
    # rows in, out, rejected, stopped, by, max_reject_fraction → state, exit code, Prefect's type and name
    (RowCounts(10, 10, 0), 0.01, JobState.COMPLETED, 0, C, "Completed"),
    (RowCounts(10, 9, 1), 0.2, JobState.COMPLETED_WITH_REJECTS, 0, C, "CompletedWithRejects"),
    (RowCounts(10, 9, 1), 0.01, JobState.COMPLETED_WITH_REJECTS, 3, F, "TooManyRejects"),
    (RowCounts(10, 4, 6, 6, StopCode.CANCELLED), 1.0, JobState.PARTIAL, 1, X, "Cancelled"),
    (RowCounts(10, 4, 6, 6, StopCode.BUDGET), 1.0, JobState.PARTIAL, 4, F, "OutOfBudget"),
    (RowCounts(10, 4, 6, 6, StopCode.DEADLINE), 1.0, JobState.PARTIAL, 5, F, "PastDeadline"),
    (RowCounts(10, 0, 10), 0.01, JobState.FAILED, 3, F, "Failed"),
    (RowCounts(10, 0, 10), 1.0, JobState.FAILED, 1, F, "Failed"),
]


@pytest.mark.parametrize(("counts", "limit", "state", "exit_code", "type_", "name"), ENDS)
def test_ends(counts: RowCounts, limit: float, state: JobState, exit_code: int, type_: StateType, name: str) -> None:
    """Rows → state → exit code → flow run's state, in one line each."""
    stopped_by = None if counts.stopped_by is None else str(counts.stopped_by)

    end = ending(str(state), exit_code, stopped_by)

    assert (terminal_state(counts), ended_exit_code(state, counts, limit)) == (state, exit_code)
    assert (end.type, end.name) == (type_, name)


PAUSES = [
    (Pause.REJECTS, 3, "PausedByRejects"),
    (Pause.LENGTH, 3, "PausedByLength"),
    (Pause.ENGINE, 1, "PausedByEngine"),
    (Pause.DRAINED, 130, "Paused"),
    (Pause.REQUESTED, 130, "Paused"),
]


@pytest.mark.parametrize(("pause", "exit_code", "name"), PAUSES)
def test_pauses(pause: Pause, exit_code: int, name: str) -> None:
    """A paused job's run, where it cannot be paused, is red and says which pause it is."""
    end = paused_ending(str(pause))

    assert paused_exit_code(pause) == exit_code
    assert (end.type, end.name) == (F, name)


def test_the_tables_are_whole() -> None:
    """Every state, every way to be stopped and every pause has its line."""
    assert {line[2] for line in ENDS} == set(JobState)
    assert {line[0].stopped_by for line in ENDS} - {None} == set(StopCode)
    assert {line[0] for line in PAUSES} == set(Pause)


def test_nothing_but_exit_code_0_is_green() -> None:
    """Whatever combination of words a status may hold, one this version does not know included."""
    states = [*map(str, JobState), "PAUSED", "SOMETHING_NEW"]
    codes = [None, 1, 2, 3, 4, 5, 130]

    for state, code, stopped in itertools.product(states, codes, [None, "cancelled", "budget", "other"]):
        assert ending(state, code, stopped).type is not C
    assert ending("FAILED", 0).type is F


def test_a_reason_in_somebody_s_own_words_is_a_pause_on_request() -> None:
    """`pause --reason` takes any text."""
    assert paused_ending("lunch").name == paused_ending(None).name == "Paused"

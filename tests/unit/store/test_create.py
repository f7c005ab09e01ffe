"""The rule of honest create, case by case."""

from __future__ import annotations

import itertools

import pytest

from shuntserve.core.create import Found, Put, Verdict, settle

FAILURES = [put for put in Put if put is not Put.STORED]


def test_success_wins_without_a_look() -> None:
    """A put that the store confirmed is ours, however many tries are left."""
    for tries_left in (0, 3):
        assert settle(Put.STORED, None, tries_left=tries_left) is Verdict.WON


@pytest.mark.parametrize("put", FAILURES)
def test_every_error_is_read_back(put: Put) -> None:
    """No error decides by itself, 'already exists' and a refusal included."""
    for tries_left in (0, 3):
        assert settle(put, None, tries_left=tries_left) is Verdict.READ_BACK


@pytest.mark.parametrize("put", FAILURES)
def test_stored_bytes_decide(put: Put) -> None:
    """Mine is won and another's is lost, after whatever error."""
    for tries_left in (0, 3):
        assert settle(put, Found.MINE, tries_left=tries_left) is Verdict.WON
        assert settle(put, Found.ANOTHERS, tries_left=tries_left) is Verdict.LOST


@pytest.mark.parametrize("put", [Put.EXISTS, Put.FAILED])
@pytest.mark.parametrize("found", [Found.ABSENT, Found.UNREADABLE])
def test_what_is_not_seen_is_tried_again_and_never_lost(put: Put, found: Found) -> None:
    """Absent or unreadable: another try, and when none is left, unknown."""
    assert settle(put, found, tries_left=1) is Verdict.TRY_AGAIN
    assert settle(put, found, tries_left=0) is Verdict.UNKNOWN


@pytest.mark.parametrize("found", [Found.ABSENT, Found.UNREADABLE])
def test_a_refusal_is_not_repeated(found: Found) -> None:
    """What the store refused and does not hold is an error to report, not to retry."""
    assert settle(Put.REFUSED, found, tries_left=3) is Verdict.REFUSED


def test_only_stored_bytes_or_a_confirmation_end_in_won_or_lost() -> None:
    """Over all cases: WON needs STORED or MINE, LOST needs ANOTHERS."""
    for put, found, tries_left in itertools.product(Put, [None, *Found], (0, 1)):
        verdict = settle(put, found, tries_left=tries_left)
        if verdict is Verdict.WON:
            assert put is Put.STORED or found is Found.MINE
        if verdict is Verdict.LOST:
            assert put is not Put.STORED
            assert found is Found.ANOTHERS

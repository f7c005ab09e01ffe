"""Changing how a stored job is run: what is asked is checked, written once, and read by whoever runs it next."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from shuntserve.core.resolved import Operations, ResolvedJob
from shuntserve.errors import InvalidInput, NotFound
from shuntserve.job import control
from shuntserve.job.adjust import change, changed, current_job, resubmitted
from shuntserve.job.submission import submit_resolved
from shuntserve.store import keys
from shuntserve.store.port import Bucket
from tests.support.fleet_world import memory_bucket
from tests.unit.outputs.builders import JOB

NOW_UNIX_S = 1_800_000_000.0


@pytest.fixture
def bucket() -> Bucket:
    bucket = memory_bucket()
    submit_resolved(bucket, JOB)
    return bucket


def operations(bucket: Bucket) -> Operations:
    return current_job(bucket, JOB.job_id).operations


def asking(**more: Any) -> ResolvedJob:
    return replace(JOB, operations=replace(JOB.operations, **more))


@pytest.mark.parametrize(
    ("name", "given", "becomes"),
    [
        ("max_cost_usd", 20, 20.0),
        ("max_cost_usd", None, None),
        ("max_reject_fraction", 1, 1.0),
        ("max_length_finish_fraction", 0.5, 0.5),
        ("pools", ["local=3@1"], ("local=3@1",)),
        ("market", "spot", "spot"),
        ("approval", "never", "never"),
        ("checkpoint_interval_s", 5, 5.0),
        ("output", "/elsewhere", "/elsewhere"),
        ("deadline_unix_s", 1.9e9, 1.9e9),
        ("deadline_unix_s", None, None),
    ],
)
def test_a_setting_is_changed_and_stays(bucket: Bucket, name: str, given: Any, becomes: Any) -> None:
    """Whoever looks next sees it; all others are as they were."""
    before = asdict(operations(bucket))
    change(bucket, JOB.job_id, {name: given}, "user", NOW_UNIX_S)

    assert asdict(operations(bucket)) == {**before, name: becomes}


def test_a_new_deadline_counts_from_now(bucket: Bucket) -> None:
    """A duration begins when it is asked for; a moment is one; none takes it away."""
    change(bucket, JOB.job_id, {"deadline": "2h"}, "user", NOW_UNIX_S)
    assert operations(bucket).deadline_unix_s == NOW_UNIX_S + 7200
    change(bucket, JOB.job_id, {"deadline": "2030-01-31T18:00:00Z"}, "user", NOW_UNIX_S)
    assert operations(bucket).deadline_unix_s == 1896112800.0
    change(bucket, JOB.job_id, {"deadline": None}, "user", NOW_UNIX_S)
    assert operations(bucket).deadline_unix_s is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_cost_usd": -1}, "max_cost_usd"),
        ({"max_cost_usd": 0}, "max_cost_usd"),
        ({"max_cost_usd": "much"}, "max_cost_usd"),
        ({"max_cost_usd": float("nan")}, "max_cost_usd"),
        ({"max_reject_fraction": 2}, "max_reject_fraction"),
        ({"pools": ["g6=1"]}, "local fleet"),
        ({"pools": ["local=0"]}, "not positive"),
        ({"market": "cheap"}, "market"),
        ({"approval": "sometimes"}, "approval"),
        ({"deadline": "soon"}, "soon"),
        ({"deadline": "2030-01-31T18:00:00"}, "time zone"),
        ({"deadline_unix_s": "tomorrow"}, "Unix time"),
        ({"deadline_unix_s": True}, "Unix time"),
        ({"deadline_unix_s": float("nan")}, "Unix time"),
        ({"lease_s": 5}, "cannot be changed"),
        ({"spending_lease_s": 900}, "cannot be changed"),
        ({"max_cost": 3}, "max_cost_usd"),
        ({"model": "other"}, "cannot be changed"),
    ],
)
def test_a_change_that_cannot_be_is_refused_and_changes_nothing(
    bucket: Bucket, changes: dict[str, Any], told: str
) -> None:
    """Each with the setting and what to do; nothing is written."""
    with pytest.raises(InvalidInput) as refused:
        change(bucket, JOB.job_id, changes, "user", NOW_UNIX_S)

    assert told in str(refused.value)
    assert list(bucket.list(keys.control(JOB.job_id))) == []


def test_a_value_is_checked_with_those_it_meets() -> None:
    """Pools that the market rule in force forbids are refused though each alone is fine."""
    with pytest.raises(InvalidInput, match="none may be used"):
        changed(asking(market="on_demand"), {"pools": ["local/spot=1"]}, NOW_UNIX_S)


def test_submitting_the_same_again_changes_nothing(bucket: Bucket) -> None:
    """Not one entry is written."""
    resubmitted(bucket, JOB, "again")

    assert list(bucket.list(keys.control(JOB.job_id))) == []


def test_a_flow_that_attaches_again_takes_back_no_limit_raised_since(bucket: Bucket) -> None:
    """Submitted with 5 $, raised to 50 $ by hand, submitted with 5 $ again: 50 $; with 7 $: 7 $."""
    resubmitted(bucket, asking(max_cost_usd=5.0), "flow")
    change(bucket, JOB.job_id, {"max_cost_usd": 50}, "user", NOW_UNIX_S)
    resubmitted(bucket, asking(max_cost_usd=5.0), "flow, retried")
    assert operations(bucket).max_cost_usd == 50.0
    resubmitted(bucket, asking(max_cost_usd=7.0), "flow, other parameters")
    assert operations(bucket).max_cost_usd == 7.0


def test_the_same_duration_submitted_again_is_the_same_deadline(bucket: Bucket) -> None:
    """A retry an hour later moves no deadline; another duration does."""
    resubmitted(bucket, asking(deadline="2h", deadline_unix_s=NOW_UNIX_S + 7200), "flow")
    resubmitted(bucket, asking(deadline="2h", deadline_unix_s=NOW_UNIX_S + 10800), "flow, retried")
    assert operations(bucket).deadline_unix_s == NOW_UNIX_S + 7200
    resubmitted(bucket, asking(deadline="4h", deadline_unix_s=NOW_UNIX_S + 18000), "flow")
    assert operations(bucket).deadline_unix_s == NOW_UNIX_S + 18000


def test_a_later_change_of_the_same_setting_stands(bucket: Bucket) -> None:
    """In the order of the log; a pause in between changes nothing."""
    change(bucket, JOB.job_id, {"max_cost_usd": 1}, "user", NOW_UNIX_S)
    control.pause(bucket, JOB.job_id, "user", "requested")
    change(bucket, JOB.job_id, {"max_cost_usd": 2, "market": "spot"}, "user", NOW_UNIX_S)

    assert (operations(bucket).max_cost_usd, operations(bucket).market) == (2.0, "spot")


def test_no_such_job() -> None:
    """It is said, with what to do."""
    with pytest.raises(NotFound):
        current_job(memory_bucket(), "nothing")

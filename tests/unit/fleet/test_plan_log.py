"""The plan log: the next number wins, but never a controller that was replaced; the same for controller and agents."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuntserve.core.desired import Desired, Pipeline, StagePlace
from shuntserve.errors import Corrupt
from shuntserve.job import fleet_records
from shuntserve.store import keys
from shuntserve.store.port import Bucket
from tests.support.fleet_world import memory_bucket


def plan(number: int) -> Desired:
    return Desired((Pipeline("a", number, (StagePlace("n1", 2, 2, (0, 16)), StagePlace("n2"))),), (f"leaves-{number}",))


def write(bucket: Bucket, number: int, epoch: int) -> None:
    body = fleet_records.body(
        f"c{epoch}", epoch=epoch, desired=plan(number).to_json(), reason="test", created_unix_s=float(number)
    )
    assert bucket.create(keys.plan("job", number), body)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(0, 8))
def test_the_newest_plan_of_the_newest_epoch_counts(epochs: list[int], looked_after: int) -> None:
    """Entries of an older epoch than one before them mean nothing, however late they come; it makes no difference
    whether the log is read at once or as it grows."""
    bucket = memory_bucket()
    seen = None
    for number, epoch in enumerate(epochs):
        write(bucket, number, epoch)
        if number == looked_after:
            seen = fleet_records.newest_plan(bucket, "job")
    newest = max(epochs)
    counts = max(number for number, epoch in enumerate(epochs) if epoch == newest)

    for found in (fleet_records.newest_plan(bucket, "job"), fleet_records.newest_plan(bucket, "job", seen)):
        assert found is not None
        assert (found.desired, found.epoch) == (plan(counts), newest)
        assert found.number == len(epochs) - 1, "the next entry goes after all that are there"


def test_no_plan_yet() -> None:
    """Before the first entry there is none."""
    assert fleet_records.newest_plan(memory_bucket(), "job") is None


def test_a_plan_reads_as_it_was_written() -> None:
    """Stages with and without a split, and who leaves."""
    assert Desired.from_json(plan(3).to_json()) == plan(3)
    assert plan(3).of_node("n2") == plan(3).pipelines
    assert plan(3).of_node("n9") == ()


@pytest.mark.parametrize("text", [{}, {"pipelines": [{}], "leave": []}, {"pipelines": 3, "leave": []}])
def test_what_is_no_plan_is_corrupt(text: dict[str, object]) -> None:
    """It is said so, and not taken for an empty fleet."""
    with pytest.raises(Corrupt):
        Desired.from_json(text)

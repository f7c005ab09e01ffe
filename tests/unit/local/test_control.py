"""The control log: what it says is the net effect of all its entries."""

from __future__ import annotations

from pathlib import Path

import pytest

from shuntserve.core.states import StopCode
from shuntserve.job import claims, control, watch
from shuntserve.job.control import Standing
from shuntserve.store import keys
from shuntserve.store.open import open_bucket
from shuntserve.store.port import Bucket


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return open_bucket(tmp_path)


def test_a_pause_ends_with_a_resume(bucket: Bucket) -> None:
    """Nothing, pause, resume, pause again: each as it stands then."""
    seen = [control.standing(bucket, "j")]
    control.pause(bucket, "j", "w", "rejects")
    seen.append(control.standing(bucket, "j"))
    control.resume(bucket, "j", "w")
    seen.append(control.standing(bucket, "j"))
    control.pause(bucket, "j", "w", "length")
    seen.append(control.standing(bucket, "j"))

    assert seen == [Standing(), Standing("rejects"), Standing(), Standing("length")]


def test_a_stop_is_for_good_and_the_first_one_counts(bucket: Bucket) -> None:
    """Neither a resume nor a second reason changes what a job was stopped by."""
    control.stop(bucket, "j", "w1", StopCode.DEADLINE)
    control.stop(bucket, "j", "w2", StopCode.CANCELLED)
    control.resume(bucket, "j", "w1")

    assert control.standing(bucket, "j").stopped is StopCode.DEADLINE


def test_two_writers_take_two_numbers(bucket: Bucket) -> None:
    """An entry whose number was taken meanwhile is written under the next one; none is lost."""

    class Late:
        """A bucket whose listing is older than another writer's entry."""

        def __init__(self) -> None:
            self.create = bucket.create

        def list(self, prefix: str) -> list[object]:
            return []

    control.pause(bucket, "j", "w1", "rejects")
    control.resume(Late(), "j", "w2")  # type: ignore[arg-type]

    assert control.standing(bucket, "j") == Standing()
    assert len(list(bucket.list(keys.control("j")))) == 2


def test_burying_keeps_the_last_report_and_leaves_the_signed_off_alone(bucket: Bucket) -> None:
    """A killed worker is declared gone with what it had told; one that left in order is not called killed."""
    bucket.put(keys.worker("j", "a"), claims.worker_body("a", 7, facts={"tokens_generated": 5}))
    bucket.put(keys.worker("j", "b"), claims.worker_body("b", -1, gone=True, facts={}))

    killed, left, unknown = (watch.bury(bucket, "j", name) for name in ("a", "b", "c"))

    assert killed is not None
    assert killed == watch.read_worker(bucket, "j", "a")
    assert (killed.killed, killed.count("tokens_generated"), killed.progress) == (True, 5, 7)
    assert left is not None
    assert not left.killed
    assert unknown is None

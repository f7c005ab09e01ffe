"""One controller at a time: any interleaving of contenders, stalls and outages over one bucket, on their own clocks."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuntserve.core.ledger import Rules
from shuntserve.errors import Unavailable
from shuntserve.fleet.controller_lease import ControllerLease
from shuntserve.job import fleet_records
from shuntserve.store.port import Bucket
from tests.support.fleet_world import Door, memory_bucket

LEASE_S = 10.0
RULES = Rules(lease_s=LEASE_S)


@dataclass
class Contender:
    """One controller process on a clock of its own."""

    bucket: Bucket
    offset_s: float = 0.0
    rate: float = 1.0
    stalled: bool = False
    door: Door = field(init=False)
    lease: ControllerLease = field(init=False)

    def __post_init__(self) -> None:
        self.door = Door(self.bucket)
        self.lease = ControllerLease(self.door, "job", RULES, lambda: uuid.uuid4().hex, dict)

    def clock(self, true_s: float) -> float:
        return self.offset_s + true_s * self.rate

    def tick(self, true_s: float) -> bool:
        """Whether it acts. While the bucket is out its loop goes round without acting."""
        try:
            return self.lease.tick(self.clock(true_s))
        except Unavailable:
            return False

    def would_act(self, true_s: float) -> bool:
        """Whether it would do a deed now: it thinks that it acts, and asks its clock."""
        return self.lease.epoch is not None and not self.lease.must_stop(self.clock(true_s))


def until_acting(contender: Contender, true_s: float, limit_s: float = 100.0) -> float:
    """Tick until it acts; the time then."""
    end_s = true_s + limit_s
    while not contender.tick(true_s):
        true_s += 0.5
        assert true_s < end_s
    return true_s


@pytest.fixture
def bucket() -> Bucket:
    return memory_bucket()


def test_the_first_acts_and_the_second_stands_by(bucket: Bucket) -> None:
    """As long as the first renews, the second never acts."""
    first, second = Contender(bucket), Contender(bucket, offset_s=5000.0)

    assert first.tick(0.0)
    assert not any(second.tick(step / 2) for step in range(200) if first.tick(step / 2))


def test_a_killed_one_is_replaced_after_its_lease(bucket: Bucket) -> None:
    """It signs nothing off: the second waits for the lease, and not much longer."""
    first, second = Contender(bucket), Contender(bucket, offset_s=77.0)
    first.tick(0.0)

    assert LEASE_S <= until_acting(second, 0.0) <= 1.7 * LEASE_S
    assert second.lease.epoch == 1


def test_one_that_signs_off_is_replaced_at_the_next_look(bucket: Bucket) -> None:
    """Nobody waits for the lease of a controller that said that it is gone."""
    first, second = Contender(bucket), Contender(bucket)
    first.tick(0.0)
    second.tick(0.0)
    first.lease.release()

    assert until_acting(second, 0.5) <= LEASE_S / 5 + 0.5


def test_a_controller_that_slept_is_somebody_new_when_it_wakes(bucket: Bucket) -> None:
    """Its first tick after the stall does not act; it comes back in a later epoch, under another name."""
    one = Contender(bucket)
    one.tick(0.0)
    before = one.lease.incarnation

    assert not one.tick(1000.0)
    assert one.lease.incarnation != before
    until_acting(one, 1000.5)
    assert one.lease.epoch == 1


def test_a_renewal_that_was_answered_too_late_does_not_count(bucket: Bucket) -> None:
    """The request went out in time and came back after the lease: what is done next asks the clock first."""
    one = Contender(bucket)
    one.tick(0.0)
    one.tick(3.0)

    assert one.would_act(3.0 + 0.7 * LEASE_S)
    assert not one.would_act(3.0 + 0.8 * LEASE_S)


def test_a_win_whose_reply_was_lost_is_no_win(bucket: Bucket) -> None:
    """Who does not know that it won does not act; the epoch it took dies as any other, and the job is not stuck."""
    one, other = Contender(bucket), Contender(bucket)

    class LostReply(Door):
        def create(self, key: str, body: bytes) -> bool:
            super().create(key, body)
            raise Unavailable("bucket", "did not answer")

    one.lease = ControllerLease(LostReply(bucket), "job", RULES, lambda: uuid.uuid4().hex, dict)
    assert not one.tick(0.0)
    assert one.lease.epoch is None
    until_acting(other, 0.5)
    assert other.lease.epoch == 1


def test_the_newest_controller_is_told_with_its_facts(bucket: Bucket) -> None:
    """Status reads who acts, what it said last, and that it has gone."""
    assert fleet_records.newest_controller(bucket, "job") is None
    one = Contender(bucket)
    one.lease = ControllerLease(bucket, "job", RULES, lambda: "me", lambda: {"state": "running"})
    one.tick(0.0)
    seen = fleet_records.newest_controller(bucket, "job")
    one.lease.release()
    after = fleet_records.newest_controller(bucket, "job")

    assert seen is not None
    assert after is not None
    assert (seen.epoch, seen.incarnation, seen.gone, seen.facts) == (0, "me", False, {"state": "running"})
    assert after.gone


Move = Callable[[list[Contender], int], None]


def stall(contenders: list[Contender], number: int) -> None:
    contenders[number % len(contenders)].stalled ^= True


def cut_off(contenders: list[Contender], number: int) -> None:
    contenders[number % len(contenders)].door.out ^= True


def sign_off(contenders: list[Contender], number: int) -> None:
    one = contenders[number % len(contenders)]
    if not one.door.out and not one.stalled:
        one.lease.release()


@given(
    clocks=st.lists(st.tuples(st.floats(0, 1e6), st.floats(0.97, 1.03)), min_size=2, max_size=3),
    moves=st.lists(
        st.tuples(st.integers(1, 60), st.sampled_from([stall, cut_off, sign_off]), st.integers(0, 2)), max_size=12
    ),
)
def test_never_do_two_act_at_once_and_in_the_end_one_does(
    clocks: list[tuple[float, float]], moves: list[tuple[int, Move, int]]
) -> None:
    """Contenders stall, lose the bucket, sign off, at any moments; their clocks start anywhere and drift. At no moment
    would two of them do a deed; once all is calm, exactly one would."""
    bucket = memory_bucket()
    contenders = [Contender(bucket, offset_s, rate) for offset_s, rate in clocks]
    true_s = 0.0

    def go(steps: int) -> None:
        nonlocal true_s
        for _ in range(steps):
            true_s += 0.25
            for one in contenders:
                if not one.stalled:
                    one.tick(true_s)
            assert sum(one.would_act(true_s) for one in contenders) <= 1

    for steps, move, number in moves:
        go(steps)
        move(contenders, number)
    for one in contenders:
        one.stalled = one.door.out = False
    go(200)

    assert sum(one.would_act(true_s) for one in contenders) == 1

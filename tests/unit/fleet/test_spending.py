"""The spending lease: whatever the schedule of renewals and looks, a machine ends in time, also across restarts."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from shuntserve.core.spending import SpendingWatch
from shuntserve.fleet.spending_memory import FIRST_LEASE_S, SpendingMemory

LEASE_S = 30.0


@given(
    renewals=st.lists(st.floats(0.0, 200.0), max_size=12).map(sorted),
    looks=st.lists(st.tuples(st.floats(0.0, 20.0), st.floats(0.0, 10.0), st.booleans()), max_size=25),
    begun_s=st.floats(0.0, 50.0),
)
def test_a_lease_never_ends_late(renewals: list[float], looks: list[tuple[float, float, bool]], begun_s: float) -> None:
    """At no time is a machine still allowed to run whose last renewal (or own start) is a lease ago.

    Looks come whenever they like, take as long as they like, read the value at any moment in between, or fail."""
    now_s = begun_s
    watch = SpendingWatch.begin(LEASE_S, now_s)
    for pause_s, takes_s, fails in looks:
        asked_s = now_s + pause_s
        now_s = asked_s + takes_s
        renewed = [at_s for at_s in renewals if at_s <= asked_s + takes_s / 2]  # read half-way
        if renewed and not fails:
            watch = watch.seen(f"controller/{len(renewed)}", asked_s)
        last_s = max([begun_s, *renewed])

        if now_s - last_s >= LEASE_S:
            assert watch.ended(now_s)


@given(st.floats(0.5, 8.0), st.floats(0.1, 5.0))
def test_a_lease_that_is_renewed_and_looked_at_in_time_never_ends(renew_every_s: float, look_every_s: float) -> None:
    """Renewals and looks that together leave room within the lease keep a machine alive for ever."""
    watch = SpendingWatch.begin(LEASE_S, 0.0)
    look = 0
    while look * look_every_s < 200.0:
        look += 1
        now_s = look * look_every_s
        watch = watch.seen(f"controller/{int(now_s / renew_every_s)}", now_s)

        assert not watch.ended(now_s)


def test_a_bucket_that_cannot_be_read_ends_a_machine() -> None:
    """Looks that fail change nothing: a lease after the last renewal that was seen, it is over."""
    watch = SpendingWatch.begin(LEASE_S, 0.0).seen("c/1", 1.0).seen("c/2", 6.0)

    assert not watch.ended(1.0 + LEASE_S - 0.1)
    assert watch.ended(1.0 + LEASE_S)


def test_a_renewal_of_long_ago_is_worth_one_lease() -> None:
    """A machine that boots where an old renewal lies about ends a lease after its own start."""
    watch = SpendingWatch.begin(LEASE_S, 100.0).seen("dead/7", 101.0)
    for at_s in range(102, 140):
        watch = watch.seen("dead/7", float(at_s))

    assert not watch.ended(129.9)
    assert watch.ended(130.0)


def test_an_agent_that_is_started_again_gets_no_new_lease(tmp_path: Path) -> None:
    """Life after life, each too short to see a renewal: the lease runs from the first one's start."""
    memory = SpendingMemory(tmp_path / "deep" / "spending.json", "s3://b", "host/boot")
    first = memory.recall(10.0)
    ended = [memory.recall(now_s).ended(now_s) for now_s in (20.0, 200.0, 10.0 + FIRST_LEASE_S)]

    assert first == SpendingWatch.begin(FIRST_LEASE_S, 10.0)
    assert ended == [False, False, True]


def test_what_was_seen_is_remembered(tmp_path: Path) -> None:
    """The next life knows the renewal, since when it counts, and the job's own lease."""
    memory = SpendingMemory(tmp_path / "spending.json", "s3://b", "host/boot")
    watch = SpendingWatch.begin(LEASE_S, 0.0).seen("c/1", 4.0).seen("c/2", 8.0)
    memory.keep(watch)

    assert memory.recall(9.0) == watch


def test_a_memory_of_elsewhere_means_nothing(tmp_path: Path) -> None:
    """Another boot, another store, a clock that had not begun, or a file that is not whole: the lease begins now."""
    path = tmp_path / "spending.json"
    kept = SpendingWatch(LEASE_S, "c/1", 5.0, 5.0)
    for store, place, text in (
        ("s3://b", "host/earlier-boot", None),
        ("s3://other", "host/boot", None),
        ("s3://b", "host/boot", '{"store": "s3://b"'),
        ("s3://b", "host/boot", "[1, 2]"),
        ("s3://b", "host/boot", json.dumps({"store": "s3://b", "place": "host/boot", "since_s": "soon"})),
    ):
        SpendingMemory(path, store, place).keep(kept)
        if text is not None:
            path.write_text(text)

        assert SpendingMemory(path, "s3://b", "host/boot").recall(7.0) == SpendingWatch.begin(FIRST_LEASE_S, 7.0)
    SpendingMemory(path, "s3://b", "host/boot").keep(SpendingWatch(LEASE_S, "c/1", 500.0, 500.0))
    assert SpendingMemory(path, "s3://b", "host/boot").recall(7.0).since_s == 7.0

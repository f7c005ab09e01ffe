"""The timeline: what watchers of a job tell of it, kept small and merged, whatever happens to them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from shuntserve.job.interruptions import InterruptionWatch
from shuntserve.job.timeline import FLUSH_INTERVAL_S, History, Sample, Timeline, read_timeline
from shuntserve.job.watch import Snapshot, WorkerView
from shuntserve.store import keys
from shuntserve.store.faults import Fault, FaultyBucket, Lost
from shuntserve.store.open import open_bucket
from shuntserve.store.port import Bucket
from shuntserve.store.verbs import Call

DAY_S = 86400.0


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return open_bucket(tmp_path)


def sample(rows: int) -> Sample:
    return Sample(rows, 0, 10 * rows, 9 * rows, workers=2, nodes=1, spent_usd=rows / 100, usd_per_h=1.5)


def rows_told(history: History) -> list[int]:
    return [one.rows_ended for _, one in history.samples]


def kinds_told(history: History) -> list[str]:
    return [event.kind for event in history.events]


def worker(incarnation: str = "w", *, ended: str | None = None, crashed: int = 0) -> WorkerView:
    facts = {"slot": 3, "node": "n1", "crashed": crashed, **({"ended": ended} if ended else {})}
    return WorkerView(incarnation, 1, ended is not None, facts)


def snapshot(*workers: WorkerView) -> Snapshot:
    return Snapshot(rows_in=10, rows_ended=0, rows_refused=0, chunks=1, chunks_committed=0, workers=workers)


def test_what_was_told_is_read_back(bucket: Bucket) -> None:
    """Samples with all their numbers, the newest included, and events with theirs."""
    timeline = Timeline(bucket, "j", "w")
    timeline.event(99.5, "phase_started", phase="run")
    timeline.sample(100.0, sample(1))
    timeline.sample(100.2, sample(2))
    timeline.event(101.0, "notice", "node-7", deadline_s=120)

    timeline.flush(102.0, force=True)

    history = read_timeline(bucket, "j")
    assert history.samples == ((100.0, sample(1)), (100.2, sample(2)))
    assert [(one.unix_s, one.kind, one.node, one.fields) for one in history.events] == [
        (99.5, "phase_started", None, {"phase": "run"}),
        (101.0, "notice", "node-7", {"deadline_s": 120}),
    ]
    assert history.interruptions == history.events[1:]


def test_a_month_is_a_few_thousand_small_objects(bucket: Bucket) -> None:
    """One sample every 20 s for 30 days: rarer and rarer ones are kept, in parts of at most 64 KB, never far apart
    relative to the job's age."""
    timeline = Timeline(bucket, "j", "w")

    for tick in range(int(30 * DAY_S / 20)):
        timeline.sample(20.0 * tick, sample(tick))
        timeline.flush(20.0 * tick)
    timeline.flush(30 * DAY_S, force=True)

    parts = list(bucket.list(keys.timeline("j")))
    times = [unix_s for unix_s, _ in read_timeline(bucket, "j").samples]
    assert len(times) < 4_000
    assert len(parts) <= len(times)
    assert max(part.size_bytes for part in parts) <= 64 << 10
    assert all(after - before <= 20.0 + max(20.0, after / 400) for before, after in itertools.pairwise(times))
    assert times[-1] == 30 * DAY_S - 20.0


def test_twice_the_time_adds_a_fixed_number_of_samples(bucket: Bucket) -> None:
    """Size grows with the logarithm of time."""
    kept = []
    timeline = Timeline(bucket, "j", "w")
    for tick in range(int(2 * DAY_S / 10)):
        timeline.sample(10.0 * tick, sample(tick))
        timeline.flush(10.0 * tick)
        if 10.0 * (tick + 1) in (DAY_S, 2 * DAY_S):
            kept.append(len(read_timeline(bucket, "j").samples))

    one_day, two_days = kept
    assert one_day < two_days <= one_day + 300


def test_a_killed_writer_takes_at_most_half_a_minute_with_it(bucket: Bucket) -> None:
    """Without any flush at its end, what it told more than one interval ago is there, and every event but those of the
    last second."""
    timeline = Timeline(bucket, "j", "w")
    for second in range(100):
        timeline.sample(float(second), sample(second))
        if second % 40 == 39:
            timeline.event(float(second), "node_lost", f"n{second}")
        timeline.flush(float(second))

    history = read_timeline(bucket, "j")
    assert history.samples[-1][0] >= 99 - FLUSH_INTERVAL_S
    assert [event.unix_s for event in history.events] == [39.0, 79.0]


def test_events_that_come_together_share_an_object(bucket: Bucket) -> None:
    """A fleet that dies in one second costs a few writes, not one for each machine."""
    timeline = Timeline(bucket, "j", "w")

    for tick in range(40):
        timeline.event(tick / 20, "node_lost", f"n{tick}")
        timeline.flush(tick / 20)
    timeline.flush(10.0)

    assert len(read_timeline(bucket, "j").events) == 40
    assert len(list(bucket.list(keys.timeline("j")))) <= 4


def test_an_outage_delays_and_loses_nothing(tmp_path: Path) -> None:
    """While every write fails, samples and events wait; no flush raises; all is there once the bucket answers."""
    down = [False]

    def plan(call: Call) -> Fault:
        return Fault(Lost.REQUEST) if down[0] and call.verb.writes else Fault()

    timeline = Timeline(FaultyBucket(open_bucket(tmp_path), plan), "j", "w")
    for second in range(300):
        down[0] = 50 <= second < 200
        timeline.sample(float(second), sample(second))
        if second in (60, 120, 250):
            timeline.event(float(second), "worker_killed", worker=f"w{second}")
        timeline.flush(float(second))
    timeline.flush(300.0, force=True)

    history = read_timeline(open_bucket(tmp_path), "j")
    assert rows_told(history) == list(range(300))
    assert [event.unix_s for event in history.events] == [60.0, 120.0, 250.0]


def test_one_flush_after_an_outage_writes_everything(tmp_path: Path) -> None:
    """A part that could not be written and what came after it: the last flush of a writer leaves nothing behind."""
    down = [True]

    def plan(call: Call) -> Fault:
        return Fault(Lost.REQUEST) if down[0] and call.verb.writes else Fault()

    timeline = Timeline(FaultyBucket(open_bucket(tmp_path), plan), "j", "w")
    timeline.sample(0.0, sample(0))
    timeline.flush(1.0, force=True)
    timeline.sample(2.0, sample(2))
    timeline.event(3.0, "stop")
    down[0] = False
    timeline.flush(4.0, force=True)

    history = read_timeline(open_bucket(tmp_path), "j")
    assert rows_told(history) == [0, 2]
    assert kinds_told(history) == ["stop"]


def test_a_write_whose_reply_is_lost_is_not_told_twice(tmp_path: Path) -> None:
    """Every create takes effect and says it failed: still each sample is there once."""
    losses = [0]

    def plan(call: Call) -> Fault:
        losses[0] += 1
        return Fault(Lost.REPLY) if losses[0] % 3 else Fault()

    timeline = Timeline(FaultyBucket(open_bucket(tmp_path), plan), "j", "w")
    for second in range(0, 400, 10):
        timeline.sample(float(second), sample(second))
        timeline.flush(float(second))
    for tries in range(20):
        timeline.flush(400.0 + 100 * tries, force=True)

    assert rows_told(read_timeline(open_bucket(tmp_path), "j")) == list(range(0, 400, 10))


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"\xff", b'{"schema_version": 1, "writer": "w", "samples": [[1]], "events": []}',
     b'{"schema_version": 99, "writer": "w", "samples": [], "events": []}'],
)  # fmt: skip
def test_a_part_that_cannot_be_read_is_a_gap(bucket: Bucket, body: bytes) -> None:
    """Damaged, of something else, or by a newer program: the rest of the history is read."""
    timeline = Timeline(bucket, "j", "w")
    timeline.sample(0.0, sample(1))
    timeline.flush(1.0, force=True)
    bucket.put(keys.timeline_part("j", "other", 0), body)

    assert rows_told(read_timeline(bucket, "j")) == [1]


def test_writers_are_merged_in_time(bucket: Bucket) -> None:
    """Two writers, one after the other and overlapping: one history in order."""
    first, second = Timeline(bucket, "j", "controller-1"), Timeline(bucket, "j", "controller-2")
    for time_s in (0.0, 10.0, 20.0, 30.0):
        first.sample(time_s, sample(int(time_s)))
    for time_s in (15.0, 25.0, 35.0):
        second.sample(time_s, sample(int(time_s)))
    first.event(31.0, "stop")
    second.event(14.0, "phase_started", phase="run")
    second.flush(40.0, force=True)
    first.flush(40.0, force=True)

    history = read_timeline(bucket, "j")

    assert rows_told(history) == [0, 10, 15, 20, 25, 30, 35]
    assert kinds_told(history) == ["phase_started", "stop"]


def test_two_writers_of_one_name_lose_nothing(bucket: Bucket) -> None:
    """A zombie that writes under its successor's name takes other numbers."""
    zombie, alive = Timeline(bucket, "j", "controller"), Timeline(bucket, "j", "controller")
    for round_ in range(4):
        alive.sample(100.0 * round_, sample(2 * round_))
        zombie.sample(100.0 * round_ + 50, sample(2 * round_ + 1))
        alive.flush(100.0 * round_ + 60, force=True)
        zombie.flush(100.0 * round_ + 60, force=True)

    assert rows_told(read_timeline(bucket, "j")) == list(range(8))


def test_a_clock_that_is_set_back_does_not_silence_a_writer(bucket: Bucket) -> None:
    """After a jump into the past, samples go on being kept and written."""
    timeline = Timeline(bucket, "j", "w")
    timeline.sample(10_000.0, sample(1))
    timeline.flush(10_031.0)

    for second in range(40):
        timeline.sample(5_000.0 + second, sample(2 + second))
        timeline.flush(5_000.0 + second)

    assert len(read_timeline(bucket, "j").samples) >= 10


def test_nothing_new_writes_nothing(bucket: Bucket) -> None:
    """An idle writer costs no requests."""
    timeline = Timeline(bucket, "j", "w")
    timeline.sample(0.0, sample(0))
    timeline.flush(30.0, force=True)
    for second in range(31, 3000):
        timeline.flush(float(second))

    assert len(list(bucket.list(keys.timeline("j")))) == 1


def test_an_interruption_is_told_once_by_whoever_watches(bucket: Bucket) -> None:
    """A worker's death and its engine's crashes: one event each, though two watch and a third comes later."""
    seen = snapshot(worker("a", ended="killed"), worker("b", crashed=2), worker("c"))
    for name in ("one", "two"):
        timeline = Timeline(bucket, "j", name)
        watch = InterruptionWatch(History())
        watch.tell(1.0, snapshot(worker("a"), worker("b", crashed=1)), timeline)
        watch.tell(2.0, seen, timeline)
        watch.tell(3.0, seen, timeline)
        timeline.flush(4.0, force=True)
    third = Timeline(bucket, "j", "three")
    InterruptionWatch(read_timeline(bucket, "j")).tell(9.0, seen, third)
    third.flush(9.0, force=True)

    history = read_timeline(bucket, "j")

    assert seen.interruptions == 3
    assert sorted((one.unix_s, one.kind, one.node) for one in history.interruptions) == [
        (1.0, "engine_lost", "n1"),
        (2.0, "engine_lost", "n1"),
        (2.0, "worker_killed", "n1"),
    ]
    assert len(history.events) == 6


def test_what_nobody_saw_is_told_by_the_next_to_watch(bucket: Bucket) -> None:
    """The death of a worker whose watcher died with it shows in the next watcher's first snapshot, and is told then."""
    timeline = Timeline(bucket, "j", "next")

    InterruptionWatch(read_timeline(bucket, "j")).tell(50.0, snapshot(worker(ended="killed")), timeline)
    timeline.flush(50.0, force=True)

    assert [(one.unix_s, one.kind) for one in read_timeline(bucket, "j").interruptions] == [(50.0, "worker_killed")]

"""Single decisions of the worker loop, over a real bucket in memory and a virtual clock."""

from __future__ import annotations

import json
import random
from dataclasses import replace

from shuntserve.core.ledger import Rules
from shuntserve.errors import InvalidInput, Unavailable
from shuntserve.job import checkpoints, claims, ops
from shuntserve.sim.job import committed, make_rows
from shuntserve.sim.tokens import VOCABULARY
from shuntserve.store import keys
from tests.support.one_worker import Bench


def rows_of(count: int, seed: int = 1, **options: object):  # type: ignore[no-untyped-def]
    """Rows with one sample each."""
    return [replace(row, n=1) for row in make_rows(random.Random(seed), count, **options)]  # type: ignore[arg-type]


def keys_under(bench: Bench, prefix: str) -> list[str]:
    return [info.key for info in bench.bucket.list(prefix)]


def test_a_job_is_done_when_every_chunk_is_committed() -> None:
    """One undisturbed worker commits all rows and ends as done."""
    bench = Bench(rows_of(12))
    worker = bench.worker()

    worker.run(600)

    assert worker.loop.outcome == "done"
    assert len(list(committed(bench.bucket, bench.job))) == 12


def test_a_drained_worker_leaves_every_token_durable_and_every_claim_released() -> None:
    """After a drain in the middle, what the engine had delivered is in checkpoints, and nothing is held."""
    bench = Bench(rows_of(8, max_tokens=200), interval_s=1000)
    worker = bench.worker()
    worker.run(600, until=lambda: worker.loop.counters.tokens_generated > 30)

    worker.loop.drain("test")
    worker.run(60)

    assert worker.loop.outcome == "drained"
    assert worker.loop.counters.tokens_durable == worker.loop.counters.tokens_generated > 0
    claimed = [key for key in keys_under(bench, "jobs/job/claims") if not key.endswith(".released")]
    assert all(bench.bucket.head(key + ".released") is not None for key in claimed)


def test_a_successor_continues_from_every_durable_token() -> None:
    """What a drained worker had generated is kept by the next one, which generates only the rest."""
    rows = rows_of(8, max_tokens=200)
    bench = Bench(rows)
    first = bench.worker()
    first.run(600, until=lambda: first.loop.counters.tokens_generated > 60)
    first.loop.drain("test")
    first.run(60)

    second = bench.worker()
    second.run(3000)

    lines = {line["request_id"]: line for line in committed(bench.bucket, bench.job)}
    assert [list(lines[row.request_id]["output_token_ids"]) for row in rows] == [row.expected(0)[0] for row in rows]
    total = sum(len(row.expected(0)[0]) for row in rows)
    assert first.loop.counters.tokens_generated + second.loop.counters.tokens_generated == total
    assert sum(line["resumed_count"] for line in lines.values()) == second.loop.counters.resumed > 0


def test_a_flush_checkpoints_at_once_and_goes_on() -> None:
    """An interruption notice makes everything durable long before the interval, without giving anything back."""
    bench = Bench(rows_of(4, max_tokens=400), interval_s=1000)
    worker = bench.worker()
    worker.run(600, until=lambda: worker.loop.counters.tokens_generated > 10)
    assert worker.loop.counters.tokens_durable == 0

    worker.loop.flush()
    worker.run(0.5)

    assert worker.loop.counters.tokens_durable > 0
    assert worker.loop.held.tenures


def test_a_worker_that_cannot_renew_drops_its_claims_and_becomes_somebody_else() -> None:
    """Cut off from the bucket for the fence time, it stops its sequences; back again, it works under a new name."""
    bench = Bench(rows_of(4, max_tokens=400), lease_s=10)
    worker = bench.worker()
    worker.run(600, until=lambda: bool(worker.loop.counters.tokens_generated))
    first_name = worker.loop.lease.incarnation

    def cut_off(op: ops.Op) -> None:
        raise Unavailable("store", "cut off")

    bench.trouble = cut_off
    worker.run(Rules(lease_s=10).fence_fraction * 10 + 1)
    assert not worker.loop.held.tenures
    assert worker.loop.lease.incarnation != first_name

    bench.trouble = lambda op: None
    worker.run(3000)
    assert worker.loop.outcome == "done"


def test_a_refusing_bucket_ends_the_worker_with_its_reason() -> None:
    """Permission denied or a full disk is not waited out: the worker ends as failed and says why."""
    bench = Bench(rows_of(4, max_tokens=400))
    worker = bench.worker()
    worker.run(600, until=lambda: bool(worker.loop.counters.tokens_generated))

    def refuse(op: ops.Op) -> None:
        if isinstance(op, ops.Create):
            raise InvalidInput(op.key, "no space left on device", "free some")

    bench.trouble = refuse
    worker.run(60)

    assert worker.loop.outcome == "failed"
    assert "no space left" in str(worker.loop.failure)


def test_a_stop_commits_the_rest_with_what_it_has() -> None:
    """After a stop entry every row has ended: finished ones with output, the others as rejects with partial output."""
    bench = Bench(rows_of(12, max_tokens=300))
    worker = bench.worker()
    worker.run(600, until=lambda: worker.loop.counters.tokens_generated > 40)

    entry = {"schema_version": 1, "writer": "x", "action": "cancel", "code": "cancelled"}
    bench.bucket.create(keys.control_entry("job", 0), json.dumps(entry).encode())
    worker.run(120)

    assert worker.loop.outcome == "done"
    lines = list(committed(bench.bucket, bench.job))
    assert len(lines) == 12
    cancelled = [line for line in lines if line["code"] == "cancelled"]
    assert any(line["completion_tokens"] > 0 and line["output_text"] for line in cancelled)


def test_a_pause_that_was_taken_back_before_anyone_looked_is_no_pause() -> None:
    """A worker that starts after pause and resume works."""
    bench = Bench(rows_of(4))
    for number, action in enumerate(("pause", "resume")):
        entry = {"schema_version": 1, "writer": str(number), "action": action, "reason": "test"}
        bench.bucket.create(keys.control_entry("job", number), json.dumps(entry).encode())
    worker = bench.worker()

    worker.run(600)

    assert worker.loop.outcome == "done"


def test_a_paused_job_that_is_cancelled_is_closed() -> None:
    """Nobody takes the pause back before a cancel: the worker that finds both rejects what is left and is done."""
    bench = Bench(rows_of(4))
    for number, more in enumerate(({"action": "pause", "reason": "test"}, {"action": "cancel", "code": "cancelled"})):
        entry = {"schema_version": 1, "writer": str(number), **more}
        bench.bucket.create(keys.control_entry("job", number), json.dumps(entry).encode())
    worker = bench.worker()

    worker.run(600)

    assert worker.loop.outcome == "done"
    assert {line["code"] for line in committed(bench.bucket, bench.job)} == {"cancelled"}


def test_a_poison_row_is_tried_alone_twice_before_it_is_rejected() -> None:
    """The crash reports end with the poison row alone in the engine, exactly twice, and no other row is rejected."""
    bench = Bench(rows_of(8, poison=(5,)), rows_per_chunk=8)
    worker = bench.worker(seats=8, poison=VOCABULARY)

    worker.run(3000)

    rejected = [line["request_id"] for line in committed(bench.bucket, bench.job) if line["code"] is not None]
    assert rejected == ["row-5"]
    reports = [
        claims.parse_release(key, bench.bucket.get(key))
        for key in keys_under(bench, "jobs/job/claims")
        if key.endswith(".released")
    ]
    alone = [report for report in reports if report is not None and report.in_flight == (5,) and report.alone]
    assert len(alone) == 2


def test_kills_never_condemn_a_row() -> None:
    """An engine killed twenty times under one lone row leaves no crash report; the row ends with its output."""
    bench = Bench(rows_of(1, seed=3, max_tokens=400), rows_per_chunk=1)
    worker = bench.worker(seats=1)
    for _ in range(20):
        seen = worker.loop.counters.tokens_generated
        worker.run(100, until=lambda seen=seen: worker.loop.counters.tokens_generated > seen)  # type: ignore[misc]
        worker.engines[-1].kill()

    worker.run(3000)

    (line,) = committed(bench.bucket, bench.job)
    assert line["code"] is None
    assert worker.loop.counters.killed > 0


def test_an_engine_that_never_starts_ends_the_worker() -> None:
    """Three failed starts in a row are enough; the failure says that the engine does not start."""
    bench = Bench(rows_of(2))
    worker = bench.worker()
    for _ in range(400):
        worker.run(0.2)
        if worker.loop.engine is not None:
            worker.engines[-1].crash()

    assert worker.loop.outcome == "failed"
    assert "does not start" in str(worker.loop.failure)


def test_checkpoints_restate_a_sequence_only_once_per_epoch() -> None:
    """Within one epoch the records of a sequence meet end to end: no token is written twice."""
    bench = Bench(rows_of(1, seed=3, max_tokens=400), rows_per_chunk=1, interval_s=1)
    worker = bench.worker(seats=1)

    worker.run(3000)

    objects = keys_under(bench, "jobs/job/checkpoints")
    entries = [entry for key in objects for entry in checkpoints.decode(key, bench.bucket.get(key))]
    assert len(entries) > 2
    assert [entry.start for entry in entries[1:]] == [entry.start + len(entry.token_ids) for entry in entries[:-1]]

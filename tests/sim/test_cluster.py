"""Whole jobs under injected faults in virtual time: the real worker loop, ledger rules, encodings and honest create.

A failing case is a seed: `pytest "tests/sim/test_cluster.py::…[seed]"` replays it, event by event.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from shuntserve.core.ledger import Rules
from shuntserve.sim.cluster import Cluster, Scenario
from shuntserve.sim.job import PutJob, SimRow, committed, make_rows, put_job
from shuntserve.sim.tokens import VOCABULARY, text_of
from shuntserve.store.open import open_bucket
from shuntserve.store.port import Bucket

EVERYTHING_AT_ONCE = Scenario(
    seed=0, calm_after_s=400.0, worker_kills=0.02, pauses=0.02, outages=0.01, engine_kills=0.02, drains=0.01
)


def run(scenario: Scenario, rows: Sequence[SimRow]) -> tuple[Cluster, Bucket, PutJob, bool]:
    """One job of these rows under this scenario, to its end or the limit."""
    bucket = open_bucket(f"memory://sim-{random.Random(repr(scenario)).getrandbits(64):x}-{id(rows)}")
    job = put_job(bucket, "job", rows, rows_per_chunk=5)
    cluster = Cluster(scenario, bucket, job.job_id, job.pages, job.page_sha256, len(job.chunks))
    return cluster, bucket, job, cluster.run()


def violations(bucket: Bucket, job: PutJob, rows: Sequence[SimRow], poison: Sequence[int] = ()) -> list[str]:
    """What is wrong with the committed rows; empty when every row is there once, with an undisturbed run's output."""
    wrong: list[str] = []
    lines: dict[tuple[str, int], list[dict[str, object]]] = {}
    for line in committed(bucket, job):
        lines.setdefault((str(line["request_id"]), int(str(line["sample_index"]))), []).append(line)
    for index, row in enumerate(rows):
        for sample in range(1 if index in poison else row.n):
            found = lines.pop((row.request_id, sample), [])
            if len(found) != 1:
                wrong.append(f"{row.request_id}/{sample}: {len(found)} lines")
                continue
            line = found[0]
            if index in poison:
                if line["code"] != "engine_crash":
                    wrong.append(f"{row.request_id}: poison ended as {line['code']}")
                continue
            tokens, reason = row.expected(sample)
            expected = (None, tokens, "".join(map(text_of, tokens)), reason)
            got = (line["code"], line["output_token_ids"], line["output_text"], line["finish_reason"])
            if got != expected:
                wrong.append(f"{row.request_id}/{sample}: {got} is not {expected}")
    return wrong + [f"{key}: unknown row" for key in lines]


@pytest.mark.parametrize("seed", range(50))
def test_every_row_ends_once_with_an_undisturbed_runs_output(seed: int) -> None:
    """Kills, pauses, drains, outages, lost requests and replies at once: nothing lost, doubled or altered; it ends."""
    rows = make_rows(random.Random(seed), 60)
    scenario = replace(EVERYTHING_AT_ONCE, seed=seed)

    cluster, bucket, job, ended = run(scenario, rows)

    assert ended, f"seed {seed} is not done after {cluster.clock.now_s:.0f} s: {cluster.tally}"
    assert violations(bucket, job, rows) == []


@pytest.mark.parametrize("seed", range(20))
def test_only_rows_that_crash_an_engine_are_rejected(seed: int) -> None:
    """Two poison rows among others, with kills and lost replies: both are rejected, and every neighbour succeeds."""
    poison = (7, 23)
    rows = make_rows(random.Random(seed), 40, poison=poison)
    scenario = Scenario(seed=seed, poison=VOCABULARY, calm_after_s=300.0, engine_hangs=0.0)

    cluster, bucket, job, ended = run(scenario, rows)

    assert ended, f"seed {seed} is not done after {cluster.clock.now_s:.0f} s: {cluster.tally}"
    assert violations(bucket, job, rows, poison) == []


def test_a_run_is_a_function_of_its_seed() -> None:
    """The same scenario twice gives the same faults at the same times, so that a printed seed replays."""
    rows = make_rows(random.Random(3), 40)

    first, _, _, _ = run(replace(EVERYTHING_AT_ONCE, seed=3), rows)
    second, _, _, _ = run(replace(EVERYTHING_AT_ONCE, seed=3), list(rows))

    assert (first.clock.now_s, first.tally) == (second.clock.now_s, second.tally)


class NeverBuries(Rules):
    """An observer that never concludes from a still counter that a worker is dead."""

    def is_dead(self, watch):  # type: ignore[no-untyped-def]
        return False


class ForgetsCrashes(Rules):
    """A judge who never condemns: a poison row goes on crashing engines."""

    def condemned(self, history):  # type: ignore[no-untyped-def]
        return frozenset()


class CondemnsInCompany(Rules):
    """A judge who condemns any row that was in the engine at a crash."""

    def condemned(self, history):  # type: ignore[no-untyped-def]
        return frozenset(row for claim in history if claim.crash for row in claim.crash.in_flight)


@pytest.mark.parametrize("rules", [NeverBuries, ForgetsCrashes, CondemnsInCompany])
def test_the_simulator_notices_a_missing_rule(rules: type[Rules]) -> None:
    """With a ledger rule taken away, some seed ends wrong or not at all: the simulator can fail."""
    poison = (7, 23)

    def goes_wrong(seed: int) -> bool:
        rows = make_rows(random.Random(seed), 40, poison=poison)
        scenario = replace(
            EVERYTHING_AT_ONCE,
            seed=seed,
            rules=rules,
            poison=VOCABULARY,
            engine_hangs=0.0,
            reaped=0.2,
            limit_s=1500.0,
        )
        _, bucket, job, ended = run(scenario, rows)
        return not ended or violations(bucket, job, rows, poison) != []

    assert any(goes_wrong(seed) for seed in range(12))

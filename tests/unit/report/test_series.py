"""What is drawn of a history: spans of phases, rates in bins."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from shuntserve.job.report_series import MOST_BINS, Span, bounds, length_s, phases, series, union
from shuntserve.job.timeline import History, Sample, TimelineEvent


def sample(tokens: int, rows: int = 0) -> Sample:
    return Sample(rows, 0, tokens, tokens, workers=2)


def phase(unix_s: float, kind: str, name: str, writer: str = "w") -> TimelineEvent:
    return TimelineEvent(unix_s, f"phase_{kind}", None, {"phase": name}, writer)


def steady(begin: int, end: int, rate: int, tokens: int = 0) -> list[tuple[float, Sample]]:
    """A sample a second at this rate."""
    return [(float(at), sample(tokens + rate * (at - begin))) for at in range(begin, end + 1)]


def test_phases_that_overlap_count_once() -> None:
    """Two processes that run at the same time: the time in which any of them did."""
    history = History(
        events=(
            phase(0, "started", "run", "a"),
            phase(10, "started", "run", "b"),
            phase(20, "ended", "run", "a"),
            phase(35, "ended", "run", "b"),
            phase(50, "started", "run", "c"),
            phase(60, "ended", "run", "c"),
        )
    )

    assert phases(history) == {"run": ((0, 35), (50, 60))}


def test_a_phase_that_was_cut_off_lasts_as_long_as_anything_was_told() -> None:
    """A writer was killed at about 30; another took up the run at 100. The 70 seconds between belong to nobody."""
    samples = (*steady(0, 30, 5), *steady(101, 120, 5, 150))
    events = (phase(0, "started", "run", "a"), phase(100, "started", "run", "b"), phase(120, "ended", "run", "b"))

    assert phases(History(samples, events)) == {"run": ((0, 30.0), (100, 120))}


def test_the_newest_phase_of_a_job_under_way_goes_on_until_now() -> None:
    """Without an end it ends where the history does, or now."""
    history = History(tuple(steady(0, 30, 5)), (phase(0, "started", "run"),))

    assert phases(history) == {"run": ((0, 30.0),)}
    assert phases(history, 45.0) == {"run": ((0, 45.0),)}


def test_an_empty_history_has_nothing_to_draw() -> None:
    """No bounds, no phases, and bins that know nothing."""
    found = series(History(), (0.0, 0.0), ())

    assert bounds(History()) is None
    assert phases(History()) == {}
    assert found.tokens_per_s == (None,)
    assert found.rows_ended == (None,)


def test_a_steady_rate_is_drawn_as_it_is() -> None:
    """40 tokens a second for a minute are 40 in every bin, whatever the bins."""
    history = History(tuple(steady(0, 60, 40)))

    for least_bin_s in (1.0, 7.0):
        rates = series(history, (0.0, 60.0), ((0.0, 60.0),), least_bin_s).tokens_per_s
        assert all(rate is not None and abs(rate - 40) < 1e-9 for rate in rates[:-1])


def test_time_in_which_nobody_worked_has_no_rate() -> None:
    """Between two sessions there is a gap, not a slow slope; rows that have ended stay ended."""
    samples = (*steady(0, 20, 10), *steady(60, 80, 10, 200))
    found = series(History(samples), (0.0, 80.0), ((0.0, 20.0), (60.0, 80.0)))

    assert all(rate is None for rate in found.tokens_per_s[20:60])
    assert all(workers is None for workers in found.workers[20:60])
    assert all(rate is not None for rate in (*found.tokens_per_s[:20], *found.tokens_per_s[60:]))
    assert all(rows is not None for rows in found.rows_ended)


def test_a_sum_that_falls_is_never_a_negative_rate() -> None:
    """A worker's last report is lost: the sum drops, then grows; no bin is below zero and none counts it twice."""
    samples = tuple((float(at), sample(tokens)) for at, tokens in enumerate((0, 100, 200, 150, 180, 260, 300)))
    found = series(History(samples), (0.0, 6.0), ((0.0, 6.0),))

    assert all(rate is not None and rate >= 0 for rate in found.tokens_per_s)
    assert sum(rate or 0 for rate in found.tokens_per_s) == 300


@given(
    steps=st.lists(st.tuples(st.floats(0.01, 5000), st.integers(0, 10_000)), min_size=1, max_size=60),
    least_bin_s=st.floats(0.5, 50),
)
def test_bins_together_hold_what_was_generated(steps: list[tuple[float, int]], least_bin_s: float) -> None:
    """While a job is worked on throughout, rates times time add up to its tokens, in a bounded number of bins."""
    now, tokens = 0.0, 0
    samples = [(now, sample(0))]
    for wait_s, more in steps:
        now, tokens = now + wait_s, tokens + more
        samples.append((now, sample(tokens)))
    found = series(History(tuple(samples)), (0.0, now), ((0.0, now + 1e6),), least_bin_s)

    assert len(found.tokens_per_s) <= MOST_BINS + 1
    assert abs(sum(rate or 0 for rate in found.tokens_per_s) * found.bin_s - tokens) <= 1e-6 * max(1, tokens)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)).map(lambda one: (one[0], one[0] + one[1]))))
def test_a_union_covers_the_same_time_once(spans: list[Span]) -> None:
    """Disjoint, in order, and exactly the seconds that any of the spans had."""
    merged = union(spans)

    seconds = {at for begin, end in spans for at in range(int(begin), int(end))}
    assert length_s(merged) == len(seconds)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(merged))

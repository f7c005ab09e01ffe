"""The rules by which urgent sequences take seats, over vLLM's real schedulers and a model that is a pure function:
each step after the last one's output, several steps under way as in a pipeline, and steps scheduled ahead."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.scheduling import Arrival, Course, Setting, expected, run

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

WAYS = {"in turn": (False, 1), "pipeline": (False, 3), "ahead": (True, 2)}
STEPS_PER_TOKEN = {"in turn": 1, "pipeline": 3, "ahead": 1}
BATCH, URGENT = 10, 0


@pytest.fixture(scope="module", autouse=True)
def vllm_is_imported() -> None:
    """Once, so that no example's time is spent on it."""
    importlib.import_module("shuntserve.engine.scheduler")


def setting(way: str, seats: int, blocks: int = 200, step_tokens: int = 32) -> Setting:
    ahead, under_way = WAYS[way]
    return Setting(ahead, under_way, seats, blocks, step_tokens)


def assert_seats_are_well_given(course: Course) -> None:
    """Where all seats are taken, nobody who could run is more urgent than a row that has not given way too often."""
    from vllm.v1.request import RequestStatus

    from shuntserve.engine.seats import MOST_YIELDS

    scheduler = course.scheduler
    assert all(count <= MOST_YIELDS for count in scheduler.gave_way.values()), scheduler.gave_way
    if len(scheduler.running) < course.setting.seats:
        return
    for waiting in scheduler.waiting:
        if waiting.status not in (RequestStatus.WAITING, RequestStatus.PREEMPTED) or waiting.num_stale_output_tokens:
            continue
        for row in scheduler.running:
            spent = scheduler.gave_way[row.request_id] >= MOST_YIELDS
            assert row.priority <= waiting.priority or spent, (row.request_id, waiting.request_id)


arrivals = st.builds(
    Arrival,
    step=st.integers(0, 120),
    priority=st.sampled_from([BATCH, BATCH, BATCH, 5, URGENT, -5]),
    prompt_tokens=st.integers(1, 70),
    tokens=st.integers(1, 50),
)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    way=st.sampled_from(list(WAYS)),
    seats=st.integers(1, 5),
    blocks=st.integers(9, 40),
    step_tokens=st.sampled_from([8, 32, 256]),
    coming=st.lists(arrivals, min_size=1, max_size=14),
)
def test_nothing_is_lost_and_seats_go_to_the_most_urgent(
    way: str, seats: int, blocks: int, step_tokens: int, coming: list[Arrival]
) -> None:
    """Whatever comes and however little there is: every sequence finishes with the tokens that it has undisturbed, no
    seat is held against a more urgent sequence, and no row gives way more than three times."""
    course = run(setting(way, seats, blocks, step_tokens), coming, assert_seats_are_well_given)

    for number, arrival in enumerate(coming):
        assert course.outputs[f"s{number}"] == expected(f"s{number}", arrival), number


@pytest.mark.parametrize("way", WAYS)
def test_a_row_gives_way_three_times_and_then_keeps_its_seat(way: str) -> None:
    """Urgent sequences come one after the other, each finished before the next: they displace the later row three
    times, then the other one three times, and then wait until a row has finished."""
    from shuntserve.engine.seats import MOST_YIELDS

    batch = [Arrival(0, BATCH, 5, 100) for _ in range(2)]
    stream = [Arrival((10 + 8 * n) * STEPS_PER_TOKEN[way], URGENT, 5, 2) for n in range(9)]

    course = run(setting(way, seats=2), [*batch, *stream], assert_seats_are_well_given)

    assert course.scheduler.gave_way == {"s0": MOST_YIELDS, "s1": MOST_YIELDS}
    assert course.finished[:6] == [f"s{n}" for n in range(2, 8)]
    assert course.finished[6] in ("s0", "s1")
    assert all(course.outputs[f"s{n}"] == expected(f"s{n}", a) for n, a in enumerate([*batch, *stream]))


@pytest.mark.parametrize("way", WAYS)
def test_the_row_that_gives_way_is_the_least_urgent_then_the_latest(way: str) -> None:
    """One urgent sequence displaces one row: of the two least urgent the one that came later, whatever sits beside."""
    coming = [Arrival(0, BATCH, 5, 50), Arrival(0, BATCH, 5, 50), Arrival(0, 5, 5, 50), Arrival(10, URGENT, 5, 5)]

    course = run(setting(way, seats=3), coming)

    assert course.scheduler.gave_way == {"s1": 1}
    assert course.finished[0] == "s3"


@pytest.mark.parametrize("way", WAYS)
def test_memory_is_taken_row_by_row_until_it_suffices(way: str) -> None:
    """A seat is free, memory is not: rows give way one after the other, and no more of them than it takes."""
    rows = [Arrival(0, BATCH, 20, 90) for _ in range(4)]
    # From its 17th output token on, each row holds three of the twelve blocks; five is what the visitor needs.
    visitor = Arrival(20 * STEPS_PER_TOKEN[way], URGENT, 70, 5)

    course = run(setting(way, seats=8, blocks=12), [*rows, visitor])

    assert course.finished[0] == "s4"
    assert set(course.scheduler.gave_way) == {"s2", "s3"}
    assert course.first_token_at["s4"] <= visitor.step + 12


@pytest.mark.parametrize("way", WAYS)
def test_urgent_rows_take_their_tokens_of_a_step_first(way: str) -> None:
    """Thirty rows, each with a token in every step, leave two of 32 to others: the urgent prompt of 60 tokens does not
    take thirty steps, because from its second step on it comes before them."""
    rows = [Arrival(0, BATCH, 1, 60) for _ in range(30)]
    visitor = Arrival(5 * STEPS_PER_TOKEN[way], URGENT, 60, 5)

    course = run(setting(way, seats=32), [*rows, visitor])

    assert course.first_token_at["s30"] <= visitor.step + 6 * STEPS_PER_TOKEN[way]
    assert course.scheduler.gave_way == {}
    assert all(course.outputs[f"s{n}"] == expected(f"s{n}", a) for n, a in enumerate([*rows, visitor]))


def test_equals_never_displace_each_other() -> None:
    """However many wait, nobody gives way to a sequence of the same priority."""
    coming: list[Any] = [Arrival(n, BATCH, 5, 20) for n in range(20)]

    course = run(setting("in turn", seats=3), coming)

    assert course.scheduler.gave_way == {}
    assert course.finished == [f"s{n}" for n in range(20)]

"""Urgent sequences come first, on real vLLM with few seats and little KV cache, scheduling each step after the last
one's output and ahead of it; rows that give way lose nothing.

Nothing here looks at a clock: every sequence reports each token in a delta of its own, and deltas come in the order of
the engine's steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from shuntserve.engine.port import Delta, SequenceRequest
from shuntserve.engine.process import EngineProcess
from tests.support import async_cpu
from tests.support import vllm_driver as driver

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

SEATS = 4
BATCH, URGENT, MOST_URGENT = 10, 0, -5
BLOCK_TOKENS, BLOCKS = 128, 7
"""vLLM keeps one block for itself: six rows of 128 tokens fit, or three of 256."""
FEATURES: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.9},
    {"temperature": 0.9, "top_p": 0.9, "presence_penalty": 0.8, "frequency_penalty": 0.3},
    {"temperature": 0.9, "logprobs": 2},
    {"temperature": 0.0, "repetition_penalty": 1.2},
    {"temperature": 0.9, "structured_outputs": {"regex": "[a-f]{240,300}"}},
]


def batch_rows(tokens: int, rows: int = len(FEATURES)) -> list[SequenceRequest]:
    return [
        SequenceRequest(
            f"row {row}",
            [300 + (11 * row + 17 * i) % 390 for i in range(10 + 5 * row)],
            {"max_tokens": tokens, "seed": row, "ignore_eos": True, **FEATURES[row % len(FEATURES)]},
            priority=BATCH,
        )
        for row in range(rows)
    ]


def urgent(
    name: str, tokens: int = 3, prompt_tokens: int = 40, priority: int = URGENT, **params: Any
) -> SequenceRequest:
    prompt = [300 + (len(name) + 19 * i) % 390 for i in range(prompt_tokens)]
    given = {"max_tokens": tokens, "temperature": 0.0, "seed": 0, "ignore_eos": True, **params}
    return SequenceRequest(name, prompt, given, priority=priority)


@dataclass
class Course:
    """What an engine gave, in order."""

    outputs: dict[str, driver.Output] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    """A sequence's name with every token."""
    finished: list[str] = field(default_factory=list)
    started_after: dict[str, frozenset[str]] = field(default_factory=dict)
    """Which sequences had finished when this one gave its first token."""

    def take(self, event: Any) -> None:
        assert isinstance(event, Delta), event
        self.started_after.setdefault(event.seq_id, frozenset(self.finished))
        self.outputs.setdefault(event.seq_id, driver.Output()).take(event)
        self.order += [event.seq_id] * len(event.token_ids)
        if event.finish_reason is not None:
            self.finished.append(event.seq_id)

    def tokens(self, name: str) -> int:
        return len(self.outputs[name].token_ids) if name in self.outputs else 0


def run_until(engine: EngineProcess, course: Course, done: Any, turns: int = 600) -> None:
    for _ in range(turns):
        if done(course):
            return
        for event in engine.poll(1.0):
            course.take(event)
    raise AssertionError(f"never came to it: {course.finished}, { ({n: course.tokens(n) for n in course.outputs}) }")


def all_finished(requests: Sequence[SequenceRequest]) -> Any:
    names = {request.seq_id for request in requests}
    return lambda course: names <= set(course.finished)


def assert_same(course: Course, undisturbed: dict[str, driver.Output]) -> None:
    """Tokens, text, reasons and log probabilities."""
    for name, whole in undisturbed.items():
        output = course.outputs[name]
        assert output.token_ids == whole.token_ids, name
        assert output.text == whole.text, name
        assert (output.finish_reason, output.stop_reason) == (whole.finish_reason, whole.stop_reason), name
        for ours, theirs in zip(output.logprobs or [], whole.logprobs or [], strict=True):
            assert [(i, text) for i, _, _, text in ours] == [(i, text) for i, _, _, text in theirs]
            assert [p for _, p, _, _ in ours] == pytest.approx([p for _, p, _, _ in theirs], abs=1e-4)


@pytest.fixture(scope="module", params=["sync", "async"])
def engine(request: pytest.FixtureRequest, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = driver.options(
        llama,
        block_size=BLOCK_TOKENS,
        num_gpu_blocks_override=BLOCKS,
        max_num_seqs=SEATS,
        max_num_batched_tokens=64,
        max_model_len=320,
        enable_prefix_caching=False,
    )
    engine = driver.started(
        {**options, "scheduling_policy": "priority", "stream_interval_tokens": 1},
        tmp_path_factory.mktemp("log") / "engine.log",
        backend=driver.BACKEND if request.param == "sync" else async_cpu.BACKEND,
    )
    yield engine
    engine.stop()


def undisturbed(engine: EngineProcess, requests: Sequence[SequenceRequest]) -> dict[str, driver.Output]:
    """Two at a time, with seats and memory to spare."""
    pairs = [requests[i : i + 2] for i in range(0, len(requests), 2)]
    return {name: output for pair in pairs for name, output in driver.generate(engine, pair).items()}


@pytest.fixture(scope="module")
def short_rows(engine: EngineProcess) -> tuple[list[SequenceRequest], dict[str, driver.Output]]:
    rows = batch_rows(90)
    return rows, undisturbed(engine, rows)


@pytest.fixture(scope="module")
def long_rows(engine: EngineProcess) -> tuple[list[SequenceRequest], dict[str, driver.Output]]:
    rows = batch_rows(240)
    return rows, undisturbed(engine, rows)


def seated(names: Sequence[str], tokens: int) -> Any:
    """Until each of these rows has so many tokens."""
    return lambda course: all(course.tokens(name) >= tokens for name in names)


ALL_SEATS = [f"row {row}" for row in range(SEATS)]


def test_an_urgent_sequence_takes_a_seat_at_once(engine: EngineProcess, short_rows: Any) -> None:
    """All seats are taken and more rows wait: urgent ones still finish before any row does, even those that bring a
    grammar to compile; every row's output is what it is undisturbed."""
    rows, whole = short_rows
    visitors = [urgent("u1"), urgent("u2", tokens=8), urgent("u3", structured_outputs={"regex": "[a-c]{5}"}, tokens=9)]
    alone = undisturbed(engine, visitors)
    course = Course()
    engine.submit(rows)
    run_until(engine, course, seated(ALL_SEATS, 20))
    assert course.finished == []
    assert course.tokens("row 4") == 0

    engine.submit(visitors)
    run_until(engine, course, all_finished([*rows, *visitors]))

    assert set(course.finished[:3]) == {"u1", "u2", "u3"}
    assert_same(course, {**whole, **alone})


def test_no_row_is_displaced_by_its_equals(engine: EngineProcess, short_rows: Any) -> None:
    """Sequences of the same priority wait for a free seat, in the order in which they came."""
    rows, whole = short_rows
    late = urgent("late", priority=BATCH)
    course = Course()
    engine.submit(rows)
    run_until(engine, course, seated(ALL_SEATS, 20))

    engine.submit([late])
    run_until(engine, course, all_finished([*rows, late]))

    assert course.started_after["row 4"] & set(ALL_SEATS)
    assert course.started_after["late"] & set(ALL_SEATS)
    assert course.order.index("row 4") < course.order.index("row 5") < course.order.index("late")
    assert_same(course, whole)


def test_the_latest_of_the_least_urgent_rows_gives_way(engine: EngineProcess, short_rows: Any) -> None:
    """The others go on with a token in every step while the urgent sequence runs; the more urgent of two that wait
    comes first."""
    rows, whole = short_rows
    first, second = urgent("first", tokens=30, priority=MOST_URGENT), urgent("second", tokens=30)
    course = Course()
    engine.submit(rows[:SEATS])
    run_until(engine, course, seated(ALL_SEATS, 10))
    before = {name: course.tokens(name) for name in ALL_SEATS}

    engine.submit([second, first])
    run_until(engine, course, all_finished([first, second]))
    after = {name: course.tokens(name) for name in ALL_SEATS}
    run_until(engine, course, all_finished(rows[:SEATS]))

    gained = [after[name] - before[name] for name in ALL_SEATS]
    assert min(gained[:2]) >= 20
    assert max(gained[2:]) < min(gained[:2])
    assert_same(course, {name: whole[name] for name in ALL_SEATS})


def test_an_urgent_sequence_gets_memory_too(engine: EngineProcess, long_rows: Any) -> None:
    """Seats are free but the KV cache is full of batch rows: they give way to a long urgent prompt, which still starts
    before any row has finished, and nobody loses anything."""
    rows, whole = long_rows
    visitor = urgent("visitor", prompt_tokens=200, tokens=20)
    alone = undisturbed(engine, [visitor])
    three = rows[:3]
    course = Course()
    engine.submit(three)
    # Each row holds two of the six blocks, to its end; the visitor's prompt needs two.
    run_until(engine, course, seated(ALL_SEATS[:3], 140))
    assert course.finished == []

    engine.submit([visitor])
    run_until(engine, course, all_finished([*three, visitor]))

    assert course.finished[0] == "visitor"
    assert_same(course, {**{row.seq_id: whole[row.seq_id] for row in three}, **alone})


def test_rows_that_exhaust_the_memory_all_finish(engine: EngineProcess, long_rows: Any) -> None:
    """More rows than memory holds, disturbed by urgent ones again and again: everything finishes, and as it would
    alone."""
    rows, whole = long_rows
    visitors = [urgent(f"u{n}", tokens=5, prompt_tokens=20 + 40 * n) for n in range(5)]
    alone = undisturbed(engine, visitors)
    course = Course()
    engine.submit(rows)
    for n, visitor in enumerate(visitors):
        run_until(engine, course, lambda course, least=35 * (n + 1): course.tokens("row 0") >= least)
        engine.submit([visitor])

    run_until(engine, course, all_finished([*rows, *visitors]))

    for visitor in visitors:
        assert not course.started_after[visitor.seq_id] & set(ALL_SEATS)
    assert_same(course, {**whole, **alone})

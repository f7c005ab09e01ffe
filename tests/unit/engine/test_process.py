"""An engine process seen from the worker: real processes, a scripted backend instead of vLLM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from shuntserve.engine.port import Delta, EngineEvent, EngineLost, EngineReady, LossKind, Refused, SequenceRequest
from shuntserve.engine.process import EngineProcess
from shuntserve.engine.session import Session
from shuntserve.errors import InvalidInput

HERE = Path(__file__).parent
BACKEND = "scripted_backend:ScriptedBackend"
EngineMaker = Callable[..., EngineProcess]


@pytest.fixture
def make_engine(tmp_path: Path) -> Iterator[EngineMaker]:
    """Makes started engines; whatever a test leaves behind is ended."""
    made: list[EngineProcess] = []

    def make(options: dict[str, Any] | None = None, **keywords: Any) -> EngineProcess:
        keywords.setdefault("environment", {"PYTHONPATH": str(HERE)})
        backend = keywords.pop("backend", BACKEND)
        engine = EngineProcess(backend, options or {}, tmp_path / "engine.log", **keywords)
        made.append(engine)
        engine.start()
        return engine

    yield make
    for engine in made:
        engine.stop()


def until(
    engine: EngineProcess, done: Callable[[list[EngineEvent]], bool], within_s: float = 20.0
) -> list[EngineEvent]:
    events: list[EngineEvent] = []
    deadline_s = time.monotonic() + within_s
    while not done(events):
        assert time.monotonic() < deadline_s, f"not within {within_s} s: {events}"
        events += engine.poll(0.1)
    return events


def ready(engine: EngineProcess) -> EngineReady:
    first = until(engine, bool)[0]
    assert isinstance(first, EngineReady), first
    return first


def loss(engine: EngineProcess, within_s: float = 20.0) -> EngineLost:
    last = until(engine, lambda events: bool(events) and isinstance(events[-1], EngineLost), within_s)[-1]
    assert isinstance(last, EngineLost)
    return last


def scripted(seq_id: str, *script: Any) -> SequenceRequest:
    return SequenceRequest(seq_id, [1, 2], {"script": [list(command) for command in script], "seed": 1})


def test_a_ready_engine_says_what_it_is(make_engine: EngineMaker) -> None:
    """Options reach the backend and its description comes back."""
    engine = make_engine({"name": "first"})

    assert ready(engine) == EngineReady(100, 8, (0,), {"engine": "scripted", "options": "first"})


def test_deltas_arrive_whole_and_in_order(make_engine: EngineMaker) -> None:
    """Each sequence's deltas keep their order and content; a refused one is told apart."""
    engine = make_engine()
    ready(engine)
    bulk = [("emit", list(range(i, i + 50)), f"[{i}]") for i in range(300)]

    engine.submit([scripted("a", *bulk, ("finish",)), scripted("b", ("emit", [5], "x"), ("sleep", 0.1), ("finish",))])
    engine.submit([scripted("c", ("refuse",))])
    events = until(engine, lambda events: sum(isinstance(e, Delta) and e.finish_reason == "stop" for e in events) == 2)

    of_a = [event for event in events if isinstance(event, Delta) and event.seq_id == "a"]
    assert [delta.text for delta in of_a] == [f"[{i}]" for i in range(300)] + ["!"]
    assert list(of_a[17].token_ids) == list(range(17, 67))
    assert of_a[-1].stop_reason == 7
    assert Refused("c", "too_long", "longer than the model") in events


def test_sequences_may_be_submitted_before_the_engine_is_ready(make_engine: EngineMaker) -> None:
    """They wait for it, and can be aborted meanwhile."""
    engine = make_engine()

    engine.submit([scripted("early", ("finish",)), scripted("unwanted", ("finish",))])
    engine.abort(["unwanted"])
    events = until(engine, lambda events: len(events) == 2)

    assert isinstance(events[0], EngineReady)
    assert isinstance(events[1], Delta)
    assert events[1].seq_id == "early"
    assert engine.poll(0.3) == []


def test_an_aborted_sequence_ends(make_engine: EngineMaker) -> None:
    """After an abort nothing more comes of a sequence, and waiting for it is no hang."""
    engine = make_engine(hang_s=1.0)
    ready(engine)
    engine.submit([scripted("a", ("emit", [1], "a"), ("sleep", 60), ("finish",))])
    until(engine, bool)

    engine.abort(["a", "unknown"])

    assert engine.poll(2.0) == []


@pytest.mark.parametrize(
    ("script", "kind", "detail"),
    [
        ((("exit", 3),), LossKind.CRASHED, "status 3"),
        ((("exit", 0),), LossKind.CRASHED, "status 0"),
        ((("signal", "SIGSEGV"),), LossKind.CRASHED, "SIGSEGV"),
        ((("signal", "SIGABRT"),), LossKind.CRASHED, "SIGABRT"),
        ((("signal", "SIGBUS"),), LossKind.CRASHED, "SIGBUS"),
        ((("signal", "SIGKILL"),), LossKind.KILLED, "SIGKILL"),
        ((("signal", "SIGTERM"),), LossKind.KILLED, "SIGTERM"),
        ((("lost", "crashed", "core exited with status 1"),), LossKind.CRASHED, "core exited with status 1"),
        ((("lost", "killed", "core ended by SIGKILL"),), LossKind.KILLED, "core ended by SIGKILL"),
        ((("print", "ValueError: token 7 is cursed"), ("exit", 1)), LossKind.CRASHED, "ValueError: token 7 is cursed"),
    ],
)
def test_how_an_engine_ends_says_whose_fault_it_was(
    make_engine: EngineMaker, script: tuple[Any, ...], kind: LossKind, detail: str
) -> None:
    """Exits by itself are crashes, outside signals are kills; deltas sent before are not lost, and it is noticed at
    once."""
    engine = make_engine()
    ready(engine)
    before_s = time.monotonic()

    engine.submit([scripted("a", ("emit", [1], "last words"), ("sleep", 0.05), *script)])
    events = until(engine, lambda events: bool(events) and isinstance(events[-1], EngineLost))

    assert events[0] == Delta("a", [1], "last words")
    lost = events[-1]
    assert isinstance(lost, EngineLost)
    assert lost.kind is kind
    assert detail in lost.detail
    assert time.monotonic() - before_s < 10
    assert engine.process_ids == ()


@pytest.mark.parametrize(
    ("options", "kind", "detail"),
    [
        ({"start": "invalid"}, LossKind.INVALID, "model 'nowhere': does not exist — name another"),
        ({"start": "unavailable"}, LossKind.CRASHED, "model hub: does not answer"),
        ({"start": "crash"}, LossKind.CRASHED, "no memory for the weights"),
    ],
)
def test_an_engine_that_does_not_start_says_why(
    make_engine: EngineMaker, options: dict[str, Any], kind: LossKind, detail: str
) -> None:
    """Options that can never work are INVALID; anything else may be tried again."""
    lost = loss(make_engine(options))

    assert lost.kind is kind
    assert detail in lost.detail


@pytest.mark.parametrize("backend", ["nowhere:Backend", "scripted_backend:Nothing", "scripted_backend", ""])
def test_an_unknown_backend_is_invalid(make_engine: EngineMaker, backend: str) -> None:
    """A misnamed backend is not retried."""
    assert loss(make_engine(backend=backend)).kind is LossKind.INVALID


def test_a_start_that_never_ends_is_given_up(make_engine: EngineMaker) -> None:
    """`start_timeout_s` bounds the wait for readiness."""
    lost = loss(make_engine({"start": "never"}, start_timeout_s=2.0))

    assert lost.kind is LossKind.HUNG
    assert "not ready within 2 s" in lost.detail


def test_an_engine_without_progress_is_hung(make_engine: EngineMaker) -> None:
    """Its loop turns but no step ends: reported within `hang_s`, every process gone."""
    engine = make_engine(hang_s=2.0)
    ready(engine)
    engine.submit([scripted("a", ("step",), ("emit", [1], "x"), ("sleep", 600))])
    until(engine, bool)

    lost = loss(engine, within_s=2.5)

    assert lost.kind is LossKind.HUNG
    assert engine.process_ids == ()


def test_a_blocked_host_is_hung(make_engine: EngineMaker) -> None:
    """A host whose loop no longer turns is noticed by its silence."""
    engine = make_engine(hang_s=2.0)
    ready(engine)

    engine.submit([scripted("a", ("block", 600))])

    assert loss(engine, within_s=3.0).kind is LossKind.HUNG


def test_a_stopped_engine_is_killed_and_counts_against_no_row(make_engine: EngineMaker) -> None:
    """SIGSTOP comes from outside, so it is a kill although it looks like a hang."""
    engine = make_engine(hang_s=2.0)
    ready(engine)
    engine.submit([scripted("a", ("sleep", 600))])
    engine.poll(0.3)

    os.kill(engine.process_ids[0], signal.SIGSTOP)

    lost = loss(engine, within_s=3.0)
    assert lost.kind is LossKind.KILLED
    assert "SIGSTOP" in lost.detail


def test_a_long_step_is_no_hang(make_engine: EngineMaker) -> None:
    """A backend that knows its step takes long is waited for."""
    engine = make_engine(hang_s=1.0)
    ready(engine)

    engine.submit([scripted("a", ("patience", 30.0), ("sleep", 2.5), ("finish",))])

    events = until(engine, bool)
    assert [type(event) for event in events] == [Delta]


def test_steady_steps_without_output_are_no_hang(make_engine: EngineMaker) -> None:
    """Progress counts even while nothing is emitted (a long prefill in many chunks)."""
    engine = make_engine(hang_s=1.5)
    ready(engine)
    steps = [command for _ in range(12) for command in (("step",), ("sleep", 0.25))]

    engine.submit([scripted("a", *steps, ("finish",))])

    assert [type(event) for event in until(engine, bool)] == [Delta]


def test_an_idle_engine_is_no_hang(make_engine: EngineMaker) -> None:
    """Without sequences there is nothing to wait for; work submitted later starts a fresh count."""
    engine = make_engine(hang_s=1.0)
    ready(engine)
    assert engine.poll(2.0) == []

    engine.submit([scripted("a", ("sleep", 0.3), ("finish",))])

    assert [type(event) for event in until(engine, bool)] == [Delta]


def test_a_worker_that_was_away_does_not_call_its_engine_hung(make_engine: EngineMaker) -> None:
    """A pause of the whole machine, worker included, is no silence of the engine."""
    engine = make_engine(hang_s=2.0)
    ready(engine)
    engine.submit([scripted("a", ("sleep", 4.5), ("finish",))])
    engine.poll(0.2)
    host = engine.process_ids[0]

    os.kill(host, signal.SIGSTOP)
    time.sleep(4.0)
    os.kill(host, signal.SIGCONT)

    assert [type(event) for event in until(engine, bool)] == [Delta]


@pytest.mark.parametrize("options", [{"children": True}, {"fork": True}], ids=["spawned", "forked"])
def test_stop_leaves_no_process(make_engine: EngineMaker, options: dict[str, Any]) -> None:
    """Children and grandchildren, orphans included, are gone when stop returns; stopping twice is harmless."""
    engine = make_engine(options)
    ready(engine)
    session = Session(engine.process_ids[0])
    assert len(until_members(session, 2)) >= 2

    engine.stop()
    engine.stop()

    assert session.members() == ()
    assert engine.poll(0.0) == []


def until_members(session: Session, count: int) -> tuple[int, ...]:
    deadline_s = time.monotonic() + 10
    while len(session.members()) < count and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return session.members()


def test_stop_does_not_wait_for_a_backend_that_never_stops(make_engine: EngineMaker) -> None:
    """Good order has a deadline."""
    engine = make_engine({"stop": "never"})
    ready(engine)
    before_s = time.monotonic()

    engine.stop()

    assert time.monotonic() - before_s < 8
    assert engine.process_ids == ()


def test_stop_while_starting_is_immediate(make_engine: EngineMaker) -> None:
    """An engine that loads weights for minutes ends at once."""
    engine = make_engine({"start": "never"})
    engine.poll(0.5)
    before_s = time.monotonic()

    engine.stop()

    assert time.monotonic() - before_s < 2


def test_when_the_host_dies_its_orphans_are_killed_before_the_loss_is_reported(make_engine: EngineMaker) -> None:
    """Processes that lost their parent are found by session and killed."""
    engine = make_engine({"children": True})
    ready(engine)
    session = Session(engine.process_ids[0])
    assert len(until_members(session, 3)) == 3

    os.kill(engine.process_ids[0], signal.SIGKILL)

    assert loss(engine).kind is LossKind.KILLED
    assert session.members() == ()


@pytest.mark.parametrize("host_is_stopped", [False, True])
def test_no_engine_process_outlives_a_killed_worker(tmp_path: Path, host_is_stopped: bool) -> None:
    """SIGKILL of the worker ends the host, and what the host forked, even when the host is stopped."""
    program = (
        "import sys; from pathlib import Path; from shuntserve.engine.process import EngineProcess\n"
        f"engine = EngineProcess({BACKEND!r}, {{'fork': True}}, Path({str(tmp_path / 'log')!r}))\n"
        "engine.start()\n"
        "while not engine.poll(1.0): pass\n"
        "print(engine.process_ids[0], flush=True)\n"
        "while True: engine.poll(1.0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[2])])}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as worker:
        assert worker.stdout is not None
        session = Session(int(worker.stdout.readline()))
        members = until_members(session, 2)
        assert len(members) == 2
        if host_is_stopped:
            os.kill(members[0], signal.SIGSTOP)

        worker.kill()

    deadline_s = time.monotonic() + 3
    while session.members() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    left = session.members()
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert left == ()


def test_a_replacement_starts_after_a_loss(make_engine: EngineMaker) -> None:
    """A lost engine is never started again; a new object takes its place and works."""
    first = make_engine()
    ready(first)
    first.submit([scripted("a", ("exit", 1))])
    loss(first)
    first.submit([scripted("ignored", ("finish",))])

    second = make_engine()
    ready(second)
    second.submit([scripted("a", ("finish",))])

    assert [type(event) for event in until(second, bool)] == [Delta]
    assert first.poll(0.0) == []


def test_an_unwritable_log_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """The error names the file."""
    (tmp_path / "file").write_text("")
    engine = EngineProcess(BACKEND, {}, tmp_path / "file" / "engine.log")

    with pytest.raises(InvalidInput, match=r"engine\.log"):
        engine.start()
    engine.stop()


def test_garbage_from_the_host_is_a_crash(make_engine: EngineMaker, tmp_path: Path) -> None:
    """A stream out of step ends the engine instead of being guessed at."""
    engine = make_engine(environment={"PYTHONPATH": str(HERE)}, backend="garbage_backend:GarbageBackend")

    lost = loss(engine)

    assert lost.kind is LossKind.CRASHED
    assert "engine frame" in lost.detail

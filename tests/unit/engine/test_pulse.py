"""How long a step may take before it looks like a hang."""

from __future__ import annotations

import subprocess
import sys

from shuntserve.engine.pulse import PULSE_VARIABLE, Beat, PulsePage, StepClock


def clock() -> tuple[StepClock, PulsePage]:
    page = PulsePage()
    return StepClock(page.page), page


def test_steps_are_counted_when_they_end() -> None:
    """Beginning a step is no progress."""
    steps, page = clock()
    assert page.read() == Beat(0, 0.0)

    steps.begin(10, 0.0)
    assert page.read().steps == 0
    steps.end(0.1)

    assert page.read().steps == 1


def test_patience_grows_with_the_size_of_the_step() -> None:
    """A long prefill gets the time that its tokens take, several times over; a decode step does not."""
    steps, page = clock()
    steps.begin(100, 0.0)
    steps.end(1.0)  # 10 ms a token
    steps.begin(1, 1.0)
    steps.end(1.1)

    steps.begin(5_000, 2.0)
    long_step_s = page.read().patience_s
    steps.end(52.0)
    steps.begin(1, 52.0)
    short_step_s = page.read().patience_s

    assert long_step_s > 3 * 5_000 * 0.01
    assert short_step_s < 2.0


def test_overlapping_steps_are_timed_one_after_the_other() -> None:
    """With scheduling ahead, a step's time starts when the one before it ends."""
    steps, page = clock()
    steps.begin(1, 0.0)
    steps.begin(1, 0.1)
    steps.end(1.0)
    steps.end(2.0)

    assert page.read() == Beat(2, 5.0)  # five times the longest, which took 1.0 s, not 1.9 s


def test_one_stall_is_forgotten() -> None:
    """After a few hundred ordinary steps a pause of the machine no longer blunts the watch."""
    steps, page = clock()
    steps.begin(1, 0.0)
    steps.end(60.0)
    assert page.read().patience_s > 200

    for step in range(500):
        steps.begin(1, 60.0 + step)
        steps.end(60.0 + step + 0.02)

    assert page.read().patience_s < 3


def test_first_uses_and_grammars_get_time_to_compile() -> None:
    """Both may take long without anything being wrong; the next ordinary step is back to normal."""
    steps, page = clock()
    steps.begin(1, 0.0, first_time=True)
    assert page.read().patience_s >= 60
    steps.end(0.1)
    steps.wait_for_grammar()
    assert page.read().patience_s >= 60

    steps.begin(1, 1.0)

    assert page.read().patience_s < 1


def test_a_descendant_writes_and_the_engine_process_reads() -> None:
    """The page is found through the environment by processes that were started afresh."""
    page = PulsePage()
    program = (
        "from shuntserve.engine.pulse import StepClock\n"
        "clock = StepClock.from_environment()\n"
        "for step in range(3): clock.begin(1, step); clock.end(step + 0.5)\n"
    )

    subprocess.run([sys.executable, "-c", program], check=True, env={PULSE_VARIABLE: page.path, "PYTHONPATH": "."})

    assert page.read() == Beat(3, 2.5)


def test_without_an_engine_process_the_pulse_is_kept_to_itself() -> None:
    """The scheduler works in anybody's vLLM."""
    steps = StepClock.from_environment()

    steps.begin(1, 0.0)
    steps.end(1.0)

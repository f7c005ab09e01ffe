"""How the state machines are run: fixed examples in every run, and hunts that end at the first broken promise.

A machine tells its steps, so that those which broke a promise under a mutant's rules can be taken again under the real
ones: what breaks there as well is a fault of the machine, and proves nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.model.network import Broken

SETTINGS = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
HUNT = settings(
    SETTINGS,
    max_examples=1000,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    print_blob=False,
)


class TellingMachine(RuleBasedStateMachine):
    """A machine whose class knows the steps that its newest instance has taken."""

    steps: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def __init__(self) -> None:
        super().__init__()
        type(self).steps = []

    def judge(self) -> None:
        """Whatever is to hold after every step."""


def told(step: Callable[..., None]) -> Callable[..., None]:
    """A rule of a `TellingMachine`."""

    @wraps(step)
    def telling(machine: TellingMachine, **given: Any) -> None:
        machine.steps.append((step.__name__, given))
        step(machine, **given)

    return telling


def stir(machine: type[RuleBasedStateMachine]) -> None:
    """The same examples each time; a promise that breaks is shown by a shortest sequence of steps."""
    run_state_machine_as_test(machine, settings=SETTINGS)


def hunt(mutated: type[TellingMachine], real: type[TellingMachine]) -> str:
    """The promise that the mutated machine breaks first (the same each time), by steps that break none of the real one.

    Fails when nothing breaks, or when the real rules do not stand the same steps.
    """
    with pytest.raises(Broken) as broken:
        run_state_machine_as_test(mutated, settings=HUNT)
    steps = mutated.steps
    with pytest.raises(Broken):
        take_again(mutated, steps)
    take_again(real, steps)
    return broken.value.promise


def take_again(real: type[TellingMachine], steps: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Take the same steps, and what comes after the last one."""
    machine = real()
    for name, given in steps:
        getattr(machine, name)(**given)
        machine.judge()
    machine.teardown()


def chance(config: pytest.Config) -> int:
    """A seed to print and to use: that of `--hypothesis-seed` if given, else a new one."""
    given = config.getoption("--hypothesis-seed", None)
    chosen = random.SystemRandom().getrandbits(32) if given is None else int(given)
    print(f"pytest --hypothesis-seed={chosen} does this again")
    return chosen


def stir_long(machine: type[RuleBasedStateMachine], seed_: int, examples: int) -> None:
    """Other examples for every seed, and longer ones."""
    longer = settings(SETTINGS, derandomize=False, max_examples=examples, stateful_step_count=80)
    run_state_machine_as_test(seed(seed_)(machine), settings=longer)

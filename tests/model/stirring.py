"""How the state machines are run: fixed examples in every run, and a hunt that ends at the first broken promise."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

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


def stir(machine: type[RuleBasedStateMachine]) -> None:
    """The same examples each time; a promise that breaks is shown by a shortest sequence of steps."""
    run_state_machine_as_test(machine, settings=SETTINGS)


def hunt(machine: type[RuleBasedStateMachine]) -> None:
    """The same examples each time, until something breaks; no time goes into a shorter sequence."""
    run_state_machine_as_test(machine, settings=HUNT)


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

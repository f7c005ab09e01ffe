"""The rules of design section 5 keep their promises in every small world, whatever goes wrong, visited exhaustively.

`pytest tests/model -rP` shows how many states each world has and how fast they were visited.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.model.explorer import Exploration, explore
from tests.model.ledger_model import LedgerModel
from tests.model.ledger_state import Scope
from tests.model.poison_model import PoisonModel, PoisonScope
from tests.model.promises import LIVING
from tests.model.scopes import EVERY_RUN, FULL_RUN


def explored(scope: Scope | PoisonScope) -> Exploration:
    """All of a world."""
    found = explore(PoisonModel(scope)) if isinstance(scope, PoisonScope) else explore(LedgerModel(scope))
    print(found)
    return found


@pytest.mark.parametrize("name", EVERY_RUN)
def test_no_promise_is_broken_in(name: str) -> None:
    """Every reachable state keeps every promise, and from each the work can still be finished."""
    found = explored(EVERY_RUN[name])

    assert found.counterexample is None, f"\n{found.counterexample}"
    assert found.complete
    assert found.goals > 0


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FULL_RUN)
def test_no_promise_is_broken_in_the_larger(name: str) -> None:
    """The same in worlds too large for every run."""
    found = explored(FULL_RUN[name])

    assert found.counterexample is None, f"\n{found.counterexample}"
    assert found.complete
    assert found.goals > 0


def test_clocks_further_apart_than_the_fence_allows_for_are_found_out() -> None:
    """The fence at 0.8 of the lease allows for clocks whose speeds differ by a quarter, and not by two thirds."""
    drifting = EVERY_RUN["leases: clocks a quarter apart"]
    assert isinstance(drifting, Scope)

    found = explored(replace(drifting, clock_units=(3, 5)))

    assert found.counterexample is not None
    assert found.counterexample.broken == LIVING

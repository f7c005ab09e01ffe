"""Each rule of design section 5, once removed, is missed: the model checker finds the damage.

That the state machines of `tests/property` find the same mutants is shown there.
"""

from __future__ import annotations

import pytest

from tests.model.explorer import explore, replay
from tests.model.mutants import MUTANTS, REDUNDANT, Mutant
from tests.model.promises import FINISHES


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_checker_finds_what_breaks_when(mutant: Mutant) -> None:
    """Without this rule a promise is broken, and the trace that shows it can be replayed."""
    found = explore(mutant.model()).counterexample

    assert found is not None, f"nothing breaks without: {mutant.removes}"
    assert found.broken in mutant.promises, f"\n{found}"
    last = replay(mutant.model(), found.trace)
    assert found.broken in (last.broken, FINISHES)


def test_reading_past_missing_objects_alone_breaks_nothing() -> None:
    """One half of the gap rule is a second line of defence: without it records still fail to join by their start."""
    found = explore(REDUNDANT.model())

    assert found.complete
    assert found.counterexample is None

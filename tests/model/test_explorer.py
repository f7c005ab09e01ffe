"""The explorer itself: it visits everything, finds shortest ways to damage, and sees dead ends and symmetry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.model.explorer import Step, explore, replay
from tests.model.promises import FINISHES


@dataclass
class Jugs:
    """Two jugs of 3 and 5 litres to fill, empty and pour; `forbidden` litres in the larger break a promise."""

    forbidden: int = -1
    pit: bool = False

    def initial(self) -> Iterator[tuple[int, int]]:
        yield 0, 0

    def steps(self, state: tuple[int, int]) -> Iterator[Step[tuple[int, int]]]:
        small, large = state
        if self.pit and large == 5 and small == 0:
            return
        down, up = min(small, 5 - large), min(large, 3 - small)
        for label, after in (
            ("fill small", (3, large)),
            ("fill large", (small, 5)),
            ("empty small", (0, large)),
            ("empty large", (small, 0)),
            ("pour down", (small - down, large + down)),
            ("pour up", (small + up, large - up)),
        ):
            yield Step(label, after, broken="wet" if after[1] == self.forbidden else None)

    def canonical(self, state: tuple[int, int]) -> tuple[int, int]:
        return state

    def is_goal(self, state: tuple[int, int]) -> bool:
        return state == (0, 0)

    def show(self, state: tuple[int, int]) -> str:
        return f"{state[0]}+{state[1]}"


@dataclass
class Twins:
    """Two counters up to three that differ only by name; a promise breaks when their sum reaches `limit`."""

    limit: int = 5
    symmetric: bool = True

    def initial(self) -> Iterator[tuple[int, int]]:
        yield 0, 0

    def steps(self, state: tuple[int, int]) -> Iterator[Step[tuple[int, int]]]:
        left, right = state
        if left < 3:
            yield Step("left", (left + 1, right), broken="too much" if left + right + 1 == self.limit else None)
        if right < 3:
            yield Step("right", (left, right + 1), broken="too much" if left + right + 1 == self.limit else None)

    def canonical(self, state: tuple[int, int]) -> tuple[int, int]:
        return (min(state), max(state)) if self.symmetric else state

    def is_goal(self, state: tuple[int, int]) -> bool:
        return state == (3, 3)

    def show(self, state: tuple[int, int]) -> str:
        return f"{state[0]} {state[1]}"


def test_every_state_is_visited_once() -> None:
    """Of the 24 ways to fill two jugs of 3 and 5 litres, 16 can be reached."""
    found = explore(Jugs())

    assert (found.states, found.complete, found.counterexample) == (16, True, None)


def test_the_way_to_damage_is_a_shortest_one() -> None:
    """Four litres take six moves, and not one fewer."""
    found = explore(Jugs(forbidden=4)).counterexample

    assert found is not None
    assert (found.broken, len(found.trace), found.states[-1]) == ("wet", 6, "3+4")
    assert replay(Jugs(forbidden=4), found.trace).state[1] == 4


def test_a_state_that_leads_nowhere_is_a_dead_end() -> None:
    """A full large jug that cannot be emptied any more is found, by a shortest way into it."""
    found = explore(Jugs(pit=True)).counterexample

    assert found is not None
    assert (found.broken, found.trace) == (FINISHES, ("fill large",))


def test_symmetric_states_are_visited_once_and_traces_keep_their_names() -> None:
    """Twins told apart by content only have fewer states; a trace found among them still fits each by name."""
    found = explore(Twins(symmetric=True))

    assert (explore(Twins(limit=9, symmetric=False)).states, explore(Twins(limit=9)).states) == (16, 10)
    assert found.counterexample is not None
    assert len(found.counterexample.trace) == 5
    assert replay(Twins(symmetric=False), found.counterexample.trace).broken == "too much"


def test_an_exploration_that_is_cut_short_says_so() -> None:
    """A bound on states gives an incomplete answer, never a clean bill."""
    found = explore(Jugs(), max_states=5)

    assert not found.complete


def test_a_trace_that_does_not_fit_is_refused() -> None:
    """A label that is not possible where it stands is named with its position."""
    with pytest.raises(LookupError, match="step 2"):
        replay(Jugs(), ["fill small", "fly"])

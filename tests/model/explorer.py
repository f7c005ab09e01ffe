"""Exhaustive exploration of a small model: breadth first, states hashed, shortest counterexamples.

A model says which states there are and what may happen next; the explorer visits every reachable state once (one per
class of symmetric states), and asks of every step whether it broke a promise. Afterwards it looks for dead ends: states
from which no continuation without faults reaches the goal.

A counterexample is a list of action labels that leads from the initial state to the damage; `replay` runs it again.
"""

from __future__ import annotations

import gc
import time
from array import array
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from tests.model.promises import FINISHES

S = TypeVar("S", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Step(Generic[S]):
    """One thing that may happen. `broken` names the promise it breaks; `fault` marks bad luck that need not happen."""

    label: str
    state: S
    fault: bool = False
    broken: str | None = None


class Model(Protocol[S]):
    """What can be explored. States are immutable and hashable; steps come in a fixed order."""

    def initial(self) -> Iterable[S]:
        """The states it can begin in."""
        ...

    def steps(self, state: S) -> Iterator[Step[S]]:
        """Everything that may happen next."""
        ...

    def canonical(self, state: S) -> S:
        """The representative of all states that differ from this one only by names."""
        ...

    def is_goal(self, state: S) -> bool:
        """Whether the work is done here; from every state some faultless continuation must come to a goal."""
        ...

    def show(self, state: S) -> str:
        """One line for a human."""
        ...


@dataclass(frozen=True, slots=True)
class Counterexample:
    """A shortest way to a broken promise. `trace` ends with the step that breaks it, or leads into the dead end."""

    broken: str
    trace: tuple[str, ...]
    states: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"broken: {self.broken}", f"  start             {self.states[0]}"]
        lines += [
            f"  {number:2d}. {label}\n{'':20s}{state}"
            for number, (label, state) in enumerate(zip(self.trace, self.states[1:], strict=True), 1)
        ]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Exploration:
    """What was found. `complete` says that every reachable state was visited; `seconds` are of processor time."""

    states: int
    steps: int
    depth: int
    goals: int
    seconds: float
    complete: bool
    counterexample: Counterexample | None = None

    def __str__(self) -> str:
        rate = self.steps / self.seconds if self.seconds > 0 else 0.0
        extent = "all" if self.complete else "some"
        return (
            f"{extent} {self.states:,} states, {self.steps:,} steps, depth {self.depth}, {self.goals:,} goals, "
            f"{self.seconds:.1f} s, {rate:,.0f} steps/s"
        )


@dataclass(slots=True)
class _Visited(Generic[S]):
    """Every state met so far, by number; number → state it was first reached from."""

    numbers: dict[S, int] = field(default_factory=dict)
    states: list[S] = field(default_factory=list)
    parents: array[int] = field(default_factory=lambda: array("q"))

    def add(self, state: S, parent: int) -> tuple[int, bool]:
        number = self.numbers.get(state)
        if number is not None:
            return number, False
        number = len(self.states)
        self.numbers[state] = number
        self.states.append(state)
        self.parents.append(parent)
        return number, True

    def way_to(self, number: int) -> list[S]:
        """Canonical states from an initial one to this one."""
        way = []
        while number >= 0:
            way.append(self.states[number])
            number = self.parents[number]
        return way[::-1]


def explore(model: Model[S], *, max_states: int = 10_000_000) -> Exploration:
    """Visit every reachable state; stops at the first broken promise, which breadth first is a nearest one."""
    gc.disable()  # states hold no cycles, and looking for some among millions takes a third of the time
    try:
        return _explore(model, max_states)
    finally:
        gc.enable()


def _explore(model: Model[S], max_states: int) -> Exploration:
    began = time.process_time()
    visited: _Visited[S] = _Visited()
    calm_from, calm_to = array("q"), array("q")
    goals: list[int] = []
    steps = depth = 0
    complete = True
    for state in model.initial():
        visited.add(model.canonical(state), -1)
    level_end = len(visited.states)
    number = 0
    while number < len(visited.states):
        if number == level_end:
            depth += 1
            level_end = len(visited.states)
        state = visited.states[number]
        if model.is_goal(state):
            goals.append(number)
        for step in model.steps(state):
            steps += 1
            if step.broken is not None:
                found = _tell(model, visited.way_to(number), step.broken, step)
                seconds = time.process_time() - began
                return Exploration(len(visited.states), steps, depth, len(goals), seconds, False, found)
            if len(visited.states) >= max_states:
                complete = False
                continue
            target, _ = visited.add(model.canonical(step.state), number)
            if not step.fault and target != number:
                calm_from.append(number)
                calm_to.append(target)
        number += 1
    stuck = _dead_end(model, visited, calm_from, calm_to, goals) if complete else None
    seconds = time.process_time() - began
    return Exploration(len(visited.states), steps, depth, len(goals), seconds, complete, stuck)


def _dead_end(
    model: Model[S], visited: _Visited[S], calm_from: array[int], calm_to: array[int], goals: Iterable[int]
) -> Counterexample | None:
    """The state nearest to the beginning from which calm steps reach no goal; None when there is none."""
    count = len(visited.states)
    first = array("q", [-1]) * count  # edges into a state, as a linked list through `before`
    before = array("q", [-1]) * len(calm_to)
    for edge, target in enumerate(calm_to):
        before[edge] = first[target]
        first[target] = edge
    good = bytearray(count)
    todo = list(goals)
    for number in todo:
        good[number] = 1
    while todo:
        edge = first[todo.pop()]
        while edge >= 0:
            source = calm_from[edge]
            if not good[source]:
                good[source] = 1
                todo.append(source)
            edge = before[edge]
    stuck = good.find(0)
    return None if stuck < 0 else _tell(model, visited.way_to(stuck), FINISHES, None)


def _tell(model: Model[S], way: Sequence[S], broken: str, last: Step[S] | None) -> Counterexample:
    """Walk a way of canonical states again with real names, so that its labels fit each other."""
    state = next(state for state in model.initial() if model.canonical(state) == way[0])
    labels, shown = [], [model.show(state)]
    for target in way[1:]:
        step = next(step for step in model.steps(state) if model.canonical(step.state) == target and not step.broken)
        state = step.state
        labels.append(step.label)
        shown.append(model.show(state))
    if last is not None:
        step = next(step for step in model.steps(state) if step.broken == broken)
        labels.append(step.label)
        shown.append(model.show(step.state))
    return Counterexample(broken, tuple(labels), tuple(shown))


def replay(model: Model[S], trace: Sequence[str]) -> Step[S]:
    """Follow the labels of a counterexample; the last step they lead to, one that breaks a promise if there is one.

    Where a label fits several states (it need not tell everything), all are followed. LookupError when it fits none.
    """
    states = list(dict.fromkeys(model.initial()))
    steps: list[Step[S]] = []
    for position, label in enumerate(trace, 1):
        steps = [step for state in states for step in model.steps(state) if step.label == label]
        if not steps:
            raise LookupError(f"step {position} of the trace is not possible here: {label}")
        states = list(dict.fromkeys(step.state for step in steps))
    if not steps:
        raise LookupError("an empty trace leads nowhere")
    return next((step for step in steps if step.broken), steps[0])

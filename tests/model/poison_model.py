"""Rows that crash engines, in a small world: chunks with hidden poison rows, workers with an engine each.

The rules never see which rows are poison. Whatever a worker's loop decides (what to run, what to report, whom to
condemn) comes from `core.ledger.Rules`, as in `job.tenure` and `job.worker`; what happens to the engine is chance: a
poison row in it crashes it sooner or later, any row may be unlucky and be in it when it crashes for no reason of its
own, and worker or engine may be killed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import ceil, log2
from typing import NamedTuple

from shuntserve.core.ledger import Claim, CrashReport, Rules
from tests.model.explorer import Step
from tests.model.promises import APART, BOUND, GUILTY, LONELY

KILLED = CrashReport((), False)
"""In this model's histories: an epoch that ended without a report."""


class Chunk(NamedTuple):
    """One chunk: how its epochs ended, and its rows as its holder (or else the bucket) knows them."""

    history: tuple[CrashReport, ...] = ()
    holder: int = -1
    ended: frozenset[int] = frozenset()
    durable: frozenset[int] = frozenset()
    running: tuple[int, ...] = ()
    """In admission order."""
    condemned: frozenset[int] = frozenset()


class World(NamedTuple):
    """Everything. `lone` counts true lonely crashes by (chunk, row); rules cannot see it, nor `poison`."""

    poison: frozenset[tuple[int, int]]
    chunks: tuple[Chunk, ...]
    order: tuple[tuple[int, ...], ...]
    """Per worker, the chunks it holds in the order of their claims."""
    crashes: int = 0
    unlucky: int = 0
    kills: int = 0
    lone: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class PoisonScope:
    """How small the world is."""

    rows: tuple[int, ...] = (2, 2)
    workers: int = 2
    poison: tuple[int, ...] = (0, 1)
    """How many poison rows there may be."""
    unlucky: int = 1
    kills: int = 1
    window: int = 8
    """Rows that one engine is given at once."""
    kills_are_reported: bool = False
    """A broken loop: the loss of a killed engine is reported as a crash."""


@dataclass
class PoisonModel:
    """All behaviours within a scope."""

    scope: PoisonScope = field(default_factory=PoisonScope)
    rules: Rules = field(default_factory=Rules)

    def initial(self) -> Iterator[World]:
        rows = [(chunk, row) for chunk, count in enumerate(self.scope.rows) for row in range(count)]
        for count in self.scope.poison:
            for poison in combinations(rows, count):
                chunks = tuple(Chunk() for _ in self.scope.rows)
                yield World(frozenset(poison), chunks, ((),) * self.scope.workers)

    def canonical(self, world: World) -> World:
        """Workers differ by name only; chance used up by a world without that kind of chance left is not counted."""
        order = tuple(sorted(world.order, reverse=True))
        if order == world.order:
            return world
        holder = {chunk: worker for worker, held in enumerate(order) for chunk in held}
        chunks = tuple(one._replace(holder=holder.get(number, -1)) for number, one in enumerate(world.chunks))
        return world._replace(order=order, chunks=chunks)

    def is_goal(self, world: World) -> bool:
        """Every row has ended, and nobody but condemned rows as rejects."""
        return all(len(chunk.ended) == count for chunk, count in zip(world.chunks, self.scope.rows, strict=True))

    def show(self, world: World) -> str:
        parts = [f"poison {sorted(world.poison)}"]
        for number, chunk in enumerate(world.chunks):
            history = " ".join(
                "killed" if one is KILLED else f"{list(one.in_flight)}{'!' if one.alone else ''}"
                for one in chunk.history
            )
            holder = f"w{chunk.holder}" if chunk.holder >= 0 else "nobody"
            parts.append(
                f"chunk {number} by {holder}: crashes [{history}] running {list(chunk.running)}"
                f" ended {sorted(chunk.ended)}" + (f" condemned {sorted(chunk.condemned)}" if chunk.condemned else "")
            )
        return " | ".join(parts)

    # -- what may happen -------------------------------------------------------------------------------------------

    def steps(self, world: World) -> Iterator[Step[World]]:
        for worker, held in enumerate(world.order):
            yield from self._claims(world, worker, held)
            if not held:
                continue
            running = [(number, row) for number in held for row in world.chunks[number].running]
            for number in held:
                chunk = world.chunks[number]
                for row in chunk.running:
                    if (number, row) not in world.poison:
                        left = tuple(one for one in chunk.running if one != row)
                        after = _chunk(world, number, chunk._replace(running=left, ended=chunk.ended | {row}))
                        yield self._admitted(
                            f"row {number}.{row} finishes", self._committed(after, worker, number), worker
                        )
                if self.scope.kills and chunk.ended != chunk.durable:
                    yield Step(
                        f"w{worker} checkpoints {number}", _chunk(world, number, chunk._replace(durable=chunk.ended))
                    )
            if running:
                yield from self._crash(world, worker, held, running)
            if world.kills < self.scope.kills:
                yield from self._kill(world, worker, held)

    def _claims(self, world: World, worker: int, held: tuple[int, ...]) -> Iterator[Step[World]]:
        if any(self._suspects(world.chunks[number]) for number in held):
            return  # a worker with suspects looks for no other work
        for number, chunk in enumerate(world.chunks):
            if chunk.holder >= 0 or len(chunk.ended) == self.scope.rows[number]:
                continue
            condemned = self.rules.condemned(self._history(chunk)) - chunk.ended
            taken = chunk._replace(holder=worker, ended=chunk.ended | condemned, condemned=chunk.condemned | condemned)
            after = _chunk(world, number, taken)
            order = (*world.order[:worker], (*held, number), *world.order[worker + 1 :])
            after = self._committed(after._replace(order=order), worker, number)
            broken = None
            for row in condemned:
                if dict(world.lone).get(number * 100 + row, 0) < 2:
                    broken = LONELY
                elif self.scope.unlucky == 0 and (number, row) not in world.poison:
                    broken = GUILTY
            yield self._admitted(f"w{worker} claims chunk {number}", after, worker, broken)

    def _committed(self, world: World, worker: int, number: int) -> World:
        """A chunk whose rows have all ended leaves its holder."""
        chunk = world.chunks[number]
        if len(chunk.ended) < self.scope.rows[number]:
            return world
        held = tuple(other for other in world.order[worker] if other != number)
        order = (*world.order[:worker], held, *world.order[worker + 1 :])
        done = Chunk(ended=chunk.ended, durable=chunk.ended, condemned=chunk.condemned)
        return _chunk(world._replace(order=order), number, done)

    def _admitted(self, label: str, world: World, worker: int, broken: str | None = None) -> Step[World]:
        """Give the engine what the loop would give it now: a trial of suspects by itself, or else everything."""
        held = world.order[worker]
        busy = sum(len(world.chunks[number].running) for number in held)
        for number in held:
            suspects = self._suspects(world.chunks[number])
            if suspects:
                if not busy:
                    world = self._run(world, number, self.rules.trial(suspects))
                return Step(label, world, False, broken or self._mixed(world, worker))
        for number in held:
            chunk = world.chunks[number]
            waiting = [
                row for row in range(self.scope.rows[number]) if row not in chunk.ended and row not in chunk.running
            ][: self.scope.window - busy]
            busy += len(waiting)
            world = self._run(world, number, waiting)
        return Step(label, world, False, broken or self._mixed(world, worker))

    def _run(self, world: World, number: int, rows: Sequence[int]) -> World:
        chunk = world.chunks[number]
        return _chunk(world, number, chunk._replace(running=(*chunk.running, *rows)))

    def _mixed(self, world: World, worker: int) -> str | None:
        """Judged without the rules: a suspect is who was there at its chunk's newest crash and has not ended."""
        running = {(number, row) for number in world.order[worker] for row in world.chunks[number].running}
        for number in world.order[worker]:
            chunk = world.chunks[number]
            newest = next((one for one in reversed(chunk.history) if one is not KILLED), None)
            if newest is None:
                continue
            suspects = {(number, row) for row in newest.in_flight if row not in chunk.ended}
            if running & suspects and running - suspects:
                return APART
        return None

    def _crash(
        self, world: World, worker: int, held: tuple[int, ...], running: list[tuple[int, int]]
    ) -> Iterator[Step[World]]:
        guilty = any(row in world.poison for row in running)
        if not guilty and world.unlucky >= self.scope.unlucky:
            return
        chunks = [number for number in held if world.chunks[number].running]
        lone = dict(world.lone)
        if len(running) == 1:
            number, row = running[0]
            lone[number * 100 + row] = lone.get(number * 100 + row, 0) + 1
        after = world._replace(
            crashes=world.crashes + 1, unlucky=world.unlucky + (not guilty), lone=tuple(sorted(lone.items()))
        )
        for number in held:
            report = CrashReport(after.chunks[number].running, alone=len(chunks) == 1) if number in chunks else KILLED
            after = self._released(after, worker, number, report, kept=True)
        culprits = len(world.poison) + after.unlucky
        most = culprits * (ceil(log2(max(self.scope.rows))) + 2)
        yield Step(f"w{worker}'s engine crashes", after, not guilty, BOUND if after.crashes > most else None)

    def _kill(self, world: World, worker: int, held: tuple[int, ...]) -> Iterator[Step[World]]:
        for kept, who in ((False, "is killed"), (True, "'s engine is killed")):
            after = world._replace(kills=world.kills + 1)
            chunks = [number for number in held if world.chunks[number].running]
            for number in held:
                report = KILLED
                if kept and self.scope.kills_are_reported and number in chunks:
                    report = CrashReport(world.chunks[number].running, alone=len(chunks) == 1)
                after = self._released(after, worker, number, report, kept=kept)
            yield Step(f"w{worker} {who}".replace(" '", "'"), after, True)

    def _released(self, world: World, worker: int, number: int, report: CrashReport, *, kept: bool) -> World:
        """An epoch's end; a living worker makes durable what it has first."""
        chunk = world.chunks[number]
        ended = chunk.ended if kept else chunk.durable
        free = Chunk((*chunk.history, report), -1, ended, ended, (), chunk.condemned & ended)
        held = tuple(other for other in world.order[worker] if other != number)
        order = (*world.order[:worker], held, *world.order[worker + 1 :])
        return _chunk(world._replace(order=order), number, free)

    # -- what the rules are told -----------------------------------------------------------------------------------

    @staticmethod
    def _history(chunk: Chunk) -> tuple[Claim, ...]:
        return tuple(
            Claim(epoch, "", True, None if report is KILLED else report) for epoch, report in enumerate(chunk.history)
        )

    def _suspects(self, chunk: Chunk) -> tuple[int, ...]:
        if not any(report is not KILLED for report in chunk.history):
            return ()
        return self.rules.suspects(self._history(chunk), chunk.ended)


def _chunk(world: World, number: int, chunk: Chunk) -> World:
    return world._replace(chunks=(*world.chunks[:number], chunk, *world.chunks[number + 1 :]))

"""Rows that crash engines, stirred at random: real rules, reports, encodings and tenures; crashes, bad luck, kills."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from shuntserve.core.ledger import Rules
from tests.model.engines import EngineProfile, EngineWorker, EngineWorld
from tests.model.mutants import MUTANTS, Mutant
from tests.model.poison_model import PoisonScope
from tests.model.stirring import TellingMachine, chance, hunt, stir, stir_long, told

PROFILES = {
    "bad luck and kills": EngineProfile(chunks=4, rows=2, unlucky=1, kills=4),
    "kills": EngineProfile(rows=2, kills=4),
    "poison alone": EngineProfile(),
    "one worker, a narrow window": EngineProfile(workers=1, window=3, unlucky=2),
}
CHUNK_AND_ROW = st.tuples(st.integers(0, 3), st.integers(0, 3))
WHO = st.integers(0, 1)
PICK = st.integers(0, 7)


class PoisonMachine(TellingMachine):
    """Up to two poison rows; engines crash, by them or for no reason, or are killed at any moment."""

    profile = EngineProfile()
    rules_in_force = Rules()

    @initialize(poison=st.frozensets(CHUNK_AND_ROW, max_size=2))
    @told
    def some_rows_are_poison(self, poison: frozenset[tuple[int, int]]) -> None:
        self.world = EngineWorld(self.profile, self.rules_in_force, poison)

    def worker(self, who: int) -> EngineWorker:
        return self.world.workers[who % len(self.world.workers)]

    @rule(who=WHO, pick=PICK)
    @told
    def take(self, who: int, pick: int) -> None:
        worker = self.worker(who)
        candidates = list(self.world.candidates(worker))
        if candidates:
            self.world.take(worker, *candidates[pick % len(candidates)])

    @rule(who=WHO, pick=PICK, leaving=st.sampled_from([0, 1, 2, 7, 7, 7]))
    @told
    def finish(self, who: int, pick: int, leaving: int) -> None:
        """One row ends, or all that can until so many are left running."""
        worker = self.worker(who)
        for number in range(8):
            ending = [row for row in worker.running if row not in self.world.poison]
            if ending and (number == 0 or len(worker.running) > leaving):
                self.world.finish(worker, ending[pick % len(ending)])

    @rule(who=WHO, pick=PICK)
    @told
    def checkpoint(self, who: int, pick: int) -> None:
        worker = self.worker(who)
        if worker.held:
            self.world.checkpoint(worker, list(worker.held.values())[pick % len(worker.held)])

    @rule(who=WHO)
    @told
    def crash(self, who: int) -> None:
        worker = self.worker(who)
        if self.world.may_crash(worker):
            self.world.crash(worker)

    @precondition(lambda self: self.world.kills < self.profile.kills)
    @rule(who=WHO, with_its_worker=st.booleans())
    @told
    def kill_the_engine(self, who: int, with_its_worker: bool) -> None:
        if with_its_worker:
            self.world.kill(self.worker(who))
        else:
            self.world.kill_engine(self.worker(who))

    def teardown(self) -> None:
        if sys.exc_info()[0] is None:
            self.world.run_calmly(60)


def machine(profile: EngineProfile, rules: Rules) -> type[PoisonMachine]:
    """The machine in one profile, with the real rules or a mutant's."""
    return type("Poison", (PoisonMachine,), {"profile": profile, "rules_in_force": rules})


@pytest.mark.parametrize("name", PROFILES)
def test_poison_rows_alone_are_rejected_and_soon_with(name: str) -> None:
    """Nobody is rejected without two lonely crashes, suspects run apart, and crashes stay within the bound."""
    stir(machine(PROFILES[name], Rules()))


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.machine == "poison"], ids=lambda mutant: mutant.name)
def test_the_machine_finds_what_breaks_when(mutant: Mutant) -> None:
    """Without this rule of design section 5 the state machine, too, sees a promise broken; with it none is."""
    assert isinstance(mutant.scope, PoisonScope)
    profile = PROFILES["kills" if mutant.scope.kills else "bad luck and kills"]
    loop = replace(profile, kills_are_reported=mutant.scope.kills_are_reported)

    broken = hunt(machine(loop, mutant.rules()), machine(profile, Rules()))

    assert broken in mutant.promises


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", PROFILES)
def test_poison_rows_alone_are_rejected_for_long_with(name: str, pytestconfig: pytest.Config) -> None:
    """The same with more and longer examples, others each time; the seed is printed."""
    stir_long(machine(PROFILES[name], Rules()), chance(pytestconfig), examples=500)

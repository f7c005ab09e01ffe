"""The ledger stirred at random: real rules, store, keys, encodings, tenures; lost replies, outages, zombies, pauses.

One machine for the ledger's objects and leases, one for rows that crash engines. Both also get every mutant of
`tests.model.mutants`, and must find each.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from shuntserve.core.create import Settle, settle
from shuntserve.core.ledger import Rules
from tests.model.hands import Hand, Hold, Profile, World
from tests.model.ledger_state import Habits
from tests.model.mutants import MUTANTS, Mutant
from tests.model.network import Answer, Broken
from tests.model.promises import FINISHES

pytestmark = pytest.mark.soak  # too slow yet for the default suite's share; run by `make test-full`

LOSSES = (Answer.GOOD, Answer.REQUEST_LOST, Answer.REPLY_LOST)
PROFILES = {
    "network": Profile(chunks=2, answers=tuple(Answer), cancels=True, must_finish=True),
    "leases": Profile(chunks=2, answers=LOSSES, cuts=True, kills=True, must_finish=True),
    "slow": Profile(slow=True, workers=3),
    "stale": Profile(chunks=2),
    "streams": Profile(clocked=False, workers=3, answers=tuple(Answer), careless=True),
    "cancel": Profile(clocked=False, workers=3, chunks=2, answers=LOSSES, cancels=True),
}
WHO = st.integers(0, 2)
PICK = st.integers(0, 5)
GROWTH = st.tuples(st.integers(0, 2), st.integers(0, 2))
SECONDS = st.sampled_from([1.0, 4.0, 8.0, 11.0])
SOME = st.frozensets(WHO, max_size=3)
DOINGS = st.sampled_from(["checkpoint"] * 4 + ["take one more", "give back", "commit"])
GIVING_UP = st.sampled_from(["never", "and going on", "and using its number again"])


class LedgerMachine(RuleBasedStateMachine):
    """A world of workers in which anything may happen at any moment; every promise is checked at every step."""

    profile = Profile()
    rules_in_force = Rules()
    settle: Settle = staticmethod(settle)
    habits = Habits()

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.profile, self.rules_in_force, self.settle, self.habits)

    def hand(self, who: int) -> Hand:
        return self.world.hands[who % len(self.world.hands)]

    @initialize(offsets=st.tuples(*[st.sampled_from([0.0, 40.0, 1000.0])] * 3))
    def clocks_differ(self, offsets: Sequence[float]) -> None:
        for hand, offset_s in zip(self.world.hands, offsets, strict=False):
            hand.offset_s = offset_s

    # -- what workers do -------------------------------------------------------------------------------------------

    @rule(who=WHO, pick=PICK, doing=DOINGS, growth=GROWTH, data=st.data())
    def work(self, who: int, pick: int, doing: str, growth: Sequence[int], data: Any) -> None:
        """Take a chunk, or do something with one that is held."""
        hand = self.hand(who)
        if not self.world.may_act(hand):
            self.world.renew(hand)
        if not self.world.may_act(hand):
            return
        if hand.held and doing != "take one more":
            chunk = sorted(hand.held)[pick % len(hand.held)]
            self.use(hand, hand.held[chunk], doing, growth, data)
        else:
            self.world.survey(hand)
            self.take(hand, pick, data)

    @rule(who=WHO, pick=PICK, data=st.data())
    def take_by_an_old_look(self, who: int, pick: int, data: Any) -> None:
        """What was seen some time ago may have changed since."""
        self.take(self.hand(who), pick, data)

    def take(self, hand: Hand, pick: int, data: Any) -> None:
        candidates = self.world.candidates(hand)
        if candidates:
            self.script(hand, data)
            self.world.acquire(hand, *candidates[pick % len(candidates)])
            hand.line.script.clear()

    def use(self, hand: Hand, hold: Hold, doing: str, growth: Sequence[int], data: Any) -> None:
        if doing == "give back":
            self.world.release(hand, hold)
            return
        if doing == "commit" and not self.world.cancelled:
            growth = (self.profile.length,) * self.profile.rows
        self.world.generate(hold, growth)
        giving_up = data.draw(GIVING_UP) if self.profile.careless and doing != "commit" else "never"
        self.script(hand, data)
        if doing != "commit":
            self.world.checkpoint(hand.line, hold, giving_up)
        elif self.world.commit(hand.line, hold):
            del hand.held[hold.tenure.chunk]
        hand.line.script.clear()

    def script(self, hand: Hand, data: Any) -> None:
        if len(self.profile.answers) > 1:
            hand.line.script = data.draw(st.lists(st.sampled_from(self.profile.answers), max_size=4))

    @precondition(lambda self: self.world.zombies)
    @rule(pick=PICK, growth=GROWTH, commits=st.booleans())
    def a_zombie_goes_on(self, pick: int, growth: Sequence[int], commits: bool) -> None:
        """What was under way when its worker fenced itself."""
        line, hold = self.world.zombies[pick % len(self.world.zombies)]
        self.world.generate(hold, growth)
        if commits:
            self.world.commit(line, hold)
        else:
            self.world.checkpoint(line, hold, "never")

    # -- time, leases and watches ----------------------------------------------------------------------------------

    @precondition(lambda self: self.profile.clocked)
    @rule(seconds=SECONDS, renewing=SOME)
    def time_passes(self, seconds: float, renewing: frozenset[int]) -> None:
        self.pass_time(seconds, renewing)

    def pass_time(self, seconds: float, renewing: frozenset[int]) -> None:
        self.world.now_s += seconds
        for number in renewing:
            self.world.renew(self.hand(number))

    @precondition(lambda self: self.profile.clocked)
    @rule(who=WHO, waits=st.lists(SECONDS, max_size=3), renewing=SOME)
    def watch(self, who: int, waits: Sequence[float], renewing: frozenset[int]) -> None:
        """Look at others' counters, again and again; whoever is lucky renews in between."""
        hand = self.hand(who)
        self.world.survey(hand)
        self.world.watch(hand)
        for seconds in waits:
            self.pass_time(seconds, renewing - {who % self.profile.workers})
            self.world.watch(hand)

    @precondition(lambda self: self.profile.slow)
    @rule(who=WHO, far=st.integers(1, 3))
    def a_renewal_gets_on(self, who: int, far: int) -> None:
        """It is begun, lands in the bucket, is acknowledged: one after the other, and time may pass between."""
        hand = self.hand(who)
        for _ in range(far):
            if hand.flying is None:
                self.world.begin_renewal(hand)
            elif not hand.flying[1]:
                self.world.land_renewal(hand)
            else:
                self.world.acknowledge(hand)

    @precondition(lambda self: self.profile.slow)
    @rule(who=WHO, far=st.integers(1, 3))
    def a_read_gets_on(self, who: int, far: int) -> None:
        """It is asked, read in the bucket, heard: one after the other, and time may pass between."""
        hand = self.hand(who)
        for _ in range(far):
            if hand.reading is None:
                self.world.survey(hand)
                self.world.ask(hand)
            elif hand.reading[2] is None:
                self.world.read(hand)
            else:
                self.world.hear(hand)

    # -- misfortune ------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.profile.cuts)
    @rule(who=WHO, cut=st.booleans(), everybody=st.booleans())
    def the_store_falls_silent_or_answers_again(self, who: int, cut: bool, everybody: bool) -> None:
        for hand in self.world.hands if everybody else [self.hand(who)]:
            hand.line.cut = cut

    @precondition(lambda self: self.profile.kills)
    @rule(who=WHO, reaped=st.booleans())
    def kill(self, who: int, reaped: bool) -> None:
        self.world.kill(self.hand(who), reaped=reaped)

    @precondition(lambda self: self.world.network.air)
    @rule(pick=PICK)
    def a_late_request_lands(self, pick: int) -> None:
        self.world.network.land(pick % len(self.world.network.air))

    @precondition(lambda self: self.profile.cancels)
    @rule()
    def cancel(self) -> None:
        self.world.cancelled = True

    # -- promises --------------------------------------------------------------------------------------------------

    @invariant()
    def results_never_change(self) -> None:
        self.world.judge_results()

    def teardown(self) -> None:
        if self.profile.must_finish and sys.exc_info()[0] is None:
            self.world.run_calmly(40)
            if not self.world.finished:
                raise Broken(FINISHES, "not every chunk is committed long after the last fault")


def machine(profile: Profile, mutant: Mutant | None = None) -> type[LedgerMachine]:
    """The machine in one profile, with the real rules or a mutant's."""
    if mutant is None:
        return type("Ledger", (LedgerMachine,), {"profile": profile})
    what = {"rules_in_force": mutant.rules(), "settle": staticmethod(mutant.settle), "habits": mutant.habits}
    return type("Ledger", (LedgerMachine,), {"profile": profile, **what})


QUICK = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
HUNT = settings(QUICK, max_examples=2000, phases=[Phase.generate], print_blob=False)


@pytest.mark.parametrize("name", PROFILES)
def test_the_ledger_keeps_its_promises_in_the_profile(name: str) -> None:
    """Whatever order things happen in, no promise is broken and the work can be finished."""
    run_state_machine_as_test(machine(PROFILES[name]), settings=QUICK)


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.machine in PROFILES], ids=lambda mutant: mutant.name)
def test_the_machine_finds_what_breaks_when(mutant: Mutant) -> None:
    """Without this rule of design section 5 the state machine, too, sees a promise broken."""
    with pytest.raises(Broken) as broken:
        run_state_machine_as_test(machine(PROFILES[mutant.machine], mutant), settings=HUNT)

    assert broken.value.promise in mutant.promises

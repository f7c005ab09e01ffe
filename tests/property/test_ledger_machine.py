"""The ledger stirred at random: real rules, store, keys, encodings, tenures; lost replies, outages, zombies, pauses.

The machine also gets the mutants of `tests.model.mutants`, and must find each; those of rows that crash engines are
found by the machine of `test_poison_machine`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from shuntserve.core.create import Settle, settle
from shuntserve.core.ledger import Rules
from tests.model.hands import Hand, Hold, Profile, World
from tests.model.ledger_state import Habits
from tests.model.mutants import MUTANTS, Mutant
from tests.model.network import Answer, Broken
from tests.model.promises import FINISHES
from tests.model.stirring import TellingMachine, chance, hunt, stir, stir_long, told

LOSSES = (Answer.GOOD, Answer.REQUEST_LOST, Answer.REPLY_LOST)
PROFILES = {
    "network": Profile(chunks=2, answers=tuple(Answer), cancels=True, must_finish=True),
    "leases": Profile(chunks=2, answers=LOSSES, cuts=True, kills=True, must_finish=True),
    "slow": Profile(slow=True, idle=True, chunks=12, rows=1),
    "stale": Profile(chunks=2),
    "streams": Profile(clocked=False, workers=3, length=5, answers=tuple(Answer), careless=True, endless=True),
    "cancel": Profile(clocked=False, workers=3, chunks=2, answers=LOSSES, cancels=True),
}
WHO = st.integers(0, 5)
PICK = st.integers(0, 5)
GROWTHS = tuple(product(range(3), repeat=2))
GROWTH = st.sampled_from(GROWTHS)
SECONDS = st.sampled_from([0.0, 1.0, 4.0, 8.0, 11.0])
LONG = st.sampled_from([4.0, 8.0, 11.0])
SHORT = st.sampled_from([0.0, 4.0, 8.0])
WAITS = st.lists(SECONDS, min_size=1, max_size=6)
SOME = st.integers(0, 7)
"""Workers, as bits."""
LUCKY = st.one_of(st.just(7), SOME)
DOINGS = st.sampled_from(["checkpoint", "give back", "take one more", "finish"] * 2 + ["checkpoint", "stop", "commit"])
GIVINGS_UP = ("never", "and going on", "and using its number again")
GIVING_UP = st.sampled_from(GIVINGS_UP)
CHECKPOINTS = st.lists(
    st.sampled_from(list(product(GROWTHS[1:], (False, True), GIVINGS_UP[1:]))), min_size=3, max_size=5
)
MIXED = [fates for length in (2, 3) for fates in product(range(len(Answer)), repeat=length)]
SAME = [(fate,) * length for fate in range(len(Answer)) for length in (1, 4)]
FATES = st.sampled_from([()] * 80 + SAME * 10 + MIXED)
"""What becomes of the next requests (numbers of the profile's answers); all that follow are good. Few draws are fast
draws, so mixtures are drawn as a whole here."""


class LedgerMachine(TellingMachine):
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
    @told
    def clocks_differ_and_the_first_has_begun(self, offsets: Sequence[float]) -> None:
        for hand, offset_s in zip(self.world.hands, offsets, strict=False):
            hand.offset_s = offset_s
        first = self.world.hands[0]
        self.world.renew(first)
        self.world.survey(first)
        self.world.acquire(first, *self.world.candidates(first)[0])

    # -- what workers do -------------------------------------------------------------------------------------------

    @rule(who=WHO, pick=PICK, doing=DOINGS, growth=GROWTH, fates=FATES, giving_up=GIVING_UP)
    @told
    def work(
        self, who: int, pick: int, doing: str, growth: Sequence[int], fates: Sequence[int], giving_up: str
    ) -> None:
        """Take a chunk, or do something with one that is held."""
        hand = self.hand(who)
        if not self.world.may_act(hand):
            self.world.renew(hand)
        if not self.world.may_act(hand):
            return
        if hand.held and (doing != "take one more" and not self.profile.idle):
            chunk = sorted(hand.held)[pick % len(hand.held)]
            self.use(hand, hand.held[chunk], doing, growth, fates, giving_up)
        else:
            self.world.survey(hand)
            self.take(hand, pick, fates)

    @precondition(lambda self: not self.profile.idle)
    @rule(who=WHO, pick=PICK, doing=DOINGS, growth=GROWTH, fates=FATES)
    @told
    def take_by_an_old_look(self, who: int, pick: int, doing: str, growth: Sequence[int], fates: Sequence[int]) -> None:
        """What was seen may have changed since: long ago, or while another chunk was finished or given back."""
        hand = self.hand(who)
        if doing != "take one more" and self.world.may_act(hand):
            self.world.survey(hand)
            for hold in list(hand.held.values())[:1]:
                self.use(hand, hold, doing, growth, (), "never")
        self.take(hand, pick, fates)

    def take(self, hand: Hand, pick: int, fates: Sequence[int]) -> None:
        candidates = self.world.candidates(hand)
        if candidates:
            hand.line.script = self.answers(fates)
            self.world.acquire(hand, *candidates[pick % len(candidates)])
            hand.line.script = []

    def use(
        self, hand: Hand, hold: Hold, doing: str, growth: Sequence[int], fates: Sequence[int], giving_up: str
    ) -> None:
        if doing == "give back":
            self.world.release(hand, hold)
            return
        if doing == "stop":
            self.world.fence(hand)
            return
        self.world.generate(hold, self.whole if doing == "finish" else growth)
        hand.line.script = self.answers(fates)
        if doing == "checkpoint" or self.profile.endless:
            self.world.checkpoint(hand.line, hold, giving_up if self.profile.careless else "never")
        elif self.world.commit(hand.line, hold):
            del hand.held[hold.tenure.chunk]
        hand.line.script = []

    @precondition(lambda self: self.profile.careless)
    @rule(who=WHO, steps=CHECKPOINTS)
    @told
    def write_on(self, who: int, steps: Sequence[tuple[Sequence[int], bool, str]]) -> None:
        """One checkpoint after another, some of which never reach the bucket and are given up."""
        hand = self.hand(who)
        for growth, lost, giving_up in steps:
            for hold in hand.held.values():
                hand.line.cut = lost
                self.use(hand, hold, "checkpoint", growth, (), giving_up)
        hand.line.cut = False

    @property
    def whole(self) -> Sequence[int]:
        """Growth that finishes every row."""
        return (self.profile.length,) * self.profile.rows

    def answers(self, fates: Sequence[int]) -> list[Answer]:
        return [self.profile.answers[fate % len(self.profile.answers)] for fate in fates]

    @precondition(lambda self: self.world.zombies and not self.profile.idle)
    @rule(pick=PICK, growth=GROWTH, commits=st.booleans())
    @told
    def a_zombie_goes_on(self, pick: int, growth: Sequence[int], commits: bool) -> None:
        """What was under way when its worker fenced itself."""
        if not self.world.zombies:
            return
        line, hold = self.world.zombies[pick % len(self.world.zombies)]
        self.world.generate(hold, self.whole if commits else growth)
        if commits and not self.profile.endless:
            self.world.commit(line, hold)
        else:
            self.world.checkpoint(line, hold, "never")

    # -- time, leases and watches ----------------------------------------------------------------------------------

    def some(self, bits: int, but: int | None = None) -> list[Hand]:
        """The workers that these bits stand for."""
        hands = [hand for number, hand in enumerate(self.world.hands) if bits >> number & 1]
        return [hand for hand in hands if but is None or hand is not self.hand(but)]

    def pass_time(self, seconds: float, renewing: Sequence[Hand] = (), watching: Sequence[Hand] = ()) -> None:
        self.world.now_s += seconds
        for hand in renewing:
            self.world.renew(hand)
        for hand in watching:
            self.world.survey(hand)
            self.world.watch(hand)

    @precondition(lambda self: self.profile.clocked)
    @rule(seconds=SECONDS, renewing=LUCKY, watching=SOME)
    @told
    def time_passes(self, seconds: float, renewing: int, watching: int) -> None:
        """Some renew their leases meanwhile, some look at others' counters; the rest is paused."""
        self.pass_time(seconds, self.some(renewing), self.some(watching))

    @precondition(lambda self: self.profile.clocked)
    @rule(who=WHO, waits=WAITS, renewing=LUCKY, unanswered=st.booleans())
    @told
    def watch(self, who: int, waits: Sequence[float], renewing: int, unanswered: bool) -> None:
        """Look at others' counters, again and again; the lucky renew in between, and answers may stay away."""
        hand = self.hand(who)
        was_cut = hand.line.cut
        self.pass_time(0.0, (), [hand])
        hand.line.cut = was_cut or (unanswered and self.profile.cuts)
        for seconds in waits:
            self.pass_time(seconds, self.some(renewing, but=who), [hand])
        hand.line.cut = was_cut

    @precondition(lambda self: self.profile.clocked and not self.profile.idle)
    @rule(who=WHO, seconds=SECONDS, renewing=LUCKY, pick=PICK, fates=FATES)
    @told
    def a_pause_is_long_enough_to_take_over(
        self, who: int, seconds: float, renewing: int, pick: int, fates: Sequence[int]
    ) -> None:
        """Whoever is not lucky is paused for a while; one worker watches and takes what it may."""
        hand = self.hand(who)
        for wait_s in (0.0, 0.0, seconds, 8.0):
            self.pass_time(wait_s, [hand, *self.some(renewing, but=who)], [hand])
        self.take(hand, pick, fates)

    @precondition(lambda self: self.profile.slow)
    @rule(who=WHO, waits=st.tuples(LONG, LONG, SHORT), watching=st.tuples(SOME, SOME, SOME))
    @told
    def renew_slowly(self, who: int, waits: Sequence[float], watching: Sequence[int]) -> None:
        """Right after a renewal others look; then another one begins, lands, is acknowledged, with time between."""
        hand = self.hand(who)
        self.begin_afresh([hand])
        for looks in range(2):
            self.pass_time(0.0, (), self.some(watching[looks], but=who))
        stages = (self.world.begin_renewal, self.world.land_renewal, self.world.acknowledge)
        for seconds, looking, go_on in zip(waits, watching, stages, strict=True):
            self.pass_time(seconds, (), self.some(looking, but=who))
            go_on(hand)

    @precondition(lambda self: self.profile.slow)
    @rule(
        who=WHO,
        wait_s=SHORT,
        legs=st.tuples(SHORT, SHORT, LONG),
        slow=st.sampled_from([0, 2]),
        moment=st.integers(0, 1),
        renewing=LUCKY,
    )
    @told
    def watch_slowly(
        self, who: int, wait_s: float, legs: Sequence[float], slow: int, moment: int, renewing: int
    ) -> None:
        """Three reads, the first or the last of them slow, on its way to the bucket and back; the lucky renew then."""
        hand = self.hand(who)
        lucky = self.some(renewing, but=who)
        self.begin_afresh(lucky)
        for number in range(3):
            self.pass_time(wait_s if number == 2 else 0.0)
            self.world.survey(hand)
            self.world.ask(hand)
            for leg, leg_s in enumerate(legs if number == slow else (0.0,)):
                if number == slow:
                    self.pass_time(leg_s, lucky if leg == moment else ())
                if leg == 0 and hand.reading is not None:
                    self.world.read(hand)
            if hand.reading is not None:
                self.world.hear(hand)

    def begin_afresh(self, hands: Sequence[Hand]) -> None:
        """They renew, and take a chunk if they have none."""
        for hand in hands:
            self.world.renew(hand)
            if not hand.held:
                self.world.survey(hand)
                self.take(hand, 0, ())

    # -- misfortune ------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.profile.cuts)
    @rule(who=WHO, cut=st.booleans(), everybody=st.booleans())
    @told
    def the_store_falls_silent_or_answers_again(self, who: int, cut: bool, everybody: bool) -> None:
        for hand in self.world.hands if everybody else [self.hand(who)]:
            hand.line.cut = cut

    @precondition(lambda self: self.profile.kills)
    @rule(who=WHO, reaped=st.booleans())
    @told
    def kill(self, who: int, reaped: bool) -> None:
        self.world.kill(self.hand(who), reaped=reaped)

    @precondition(lambda self: self.world.network.air)
    @rule(pick=PICK)
    @told
    def a_late_request_lands(self, pick: int) -> None:
        if self.world.network.air:
            self.world.network.land(pick % len(self.world.network.air))

    @precondition(lambda self: self.profile.cancels)
    @rule()
    @told
    def cancel(self) -> None:
        self.world.cancelled = True

    # -- promises --------------------------------------------------------------------------------------------------

    @invariant()
    def judge(self) -> None:
        """No result has changed."""
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


@pytest.mark.parametrize("name", PROFILES)
def test_the_ledger_keeps_its_promises_in_the_profile(name: str) -> None:
    """Whatever order things happen in, no promise is broken and the work can be finished."""
    stir(machine(PROFILES[name]))


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.machine in PROFILES], ids=lambda mutant: mutant.name)
def test_the_machine_finds_what_breaks_when(mutant: Mutant) -> None:
    """Without this rule of design section 5 the state machine, too, sees a promise broken; with it none is."""
    profile = PROFILES[mutant.machine]

    broken = hunt(machine(profile, mutant), machine(profile))

    assert broken in mutant.promises


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", PROFILES)
def test_the_ledger_keeps_its_promises_for_long_in_the_profile(name: str, pytestconfig: pytest.Config) -> None:
    """The same with more and longer examples, others each time; the seed is printed."""
    stir_long(machine(PROFILES[name]), chance(pytestconfig), examples=500)


def test_every_mutant_is_given_to_a_machine() -> None:
    """No rule is left out: each mutant names a profile of this machine or the machine of poison rows."""
    assert {mutant.machine for mutant in MUTANTS} <= {*PROFILES, "poison"}

"""The rules of design section 5, each taken away once.

A mutant replaces one decision (a method of `Rules`, or `settle`) or drops one habit of the worker loop. The checkers
must find one of its `promises` broken: the model checker within `scope`, the state machines of `tests/property` too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shuntserve.core.create import Found, Put, Settle, Verdict, settle
from shuntserve.core.ledger import Claim, Reading, Rules, SequenceKey, Stream, Watch
from tests.model.explorer import Model
from tests.model.ledger_model import LedgerModel
from tests.model.ledger_state import CHECKPOINT, CLAIM, COMMIT, Habits, Scope
from tests.model.poison_model import PoisonModel, PoisonScope
from tests.model.promises import (
    APART,
    BELIEF,
    BOUND,
    DURABLE,
    FINISHES,
    LIVING,
    LONELY,
    ONCE,
    ONE_PLACE,
    ONE_RESULT,
    TAKEOVER,
    TENANT,
    WHOLE,
)

# -- create, honestly --------------------------------------------------------------------------------------------------


def lost_on_conflict(put: Put, found: Found | None, *, tries_left: int) -> Verdict:
    return Verdict.LOST if put is Put.EXISTS else settle(put, found, tries_left=tries_left)


def won_on_conflict(put: Put, found: Found | None, *, tries_left: int) -> Verdict:
    return Verdict.WON if put is Put.EXISTS else settle(put, found, tries_left=tries_left)


def lost_on_error(put: Put, found: Found | None, *, tries_left: int) -> Verdict:
    return Verdict.LOST if put is Put.FAILED else settle(put, found, tries_left=tries_left)


def won_on_error(put: Put, found: Found | None, *, tries_left: int) -> Verdict:
    return Verdict.WON if put is Put.FAILED else settle(put, found, tries_left=tries_left)


def won_when_there(put: Put, found: Found | None, *, tries_left: int) -> Verdict:
    return Verdict.WON if found is Found.ANOTHERS else settle(put, found, tries_left=tries_left)


def lost_when_absent(put: Put, found: Found | None, *, tries_left: int) -> Verdict:
    return Verdict.LOST if found is Found.ABSENT else settle(put, found, tries_left=tries_left)


def lost_when_unreadable(put: Put, found: Found | None, *, tries_left: int) -> Verdict:
    return Verdict.LOST if found is Found.UNREADABLE else settle(put, found, tries_left=tries_left)


def lost_when_bound_is_met(put: Put, found: Found | None, *, tries_left: int) -> Verdict:
    verdict = settle(put, found, tries_left=tries_left)
    return Verdict.LOST if verdict is Verdict.UNKNOWN else verdict


# -- claim -------------------------------------------------------------------------------------------------------------


class ClaimsAnyway(Rules):
    def next_epoch(self, history: Sequence[Claim], dead: Collection[str]) -> int | None:
        return len(history)


class ReleasesCountForNothing(Rules):
    def next_epoch(self, history: Sequence[Claim], dead: Collection[str]) -> int | None:
        return Rules.next_epoch(self, [replace(claim, released=False) for claim in history], dead)


class DeathCountsForNothing(Rules):
    def next_epoch(self, history: Sequence[Claim], dead: Collection[str]) -> int | None:
        return Rules.next_epoch(self, history, ())


class BuriesAtFirstSight(Rules):
    def is_dead(self, watch: Watch | None) -> bool:
        return watch is not None


class BuriesAfterThreeQuickReads(Rules):
    def is_dead(self, watch: Watch | None) -> bool:
        return watch is not None and (watch.gone or watch.reads >= 3)


class CountsFromFirstRead(Rules):
    def observe(self, watch: Watch | None, reading: Reading | None, asked_s: float) -> Watch | None:
        seen = Rules.observe(self, watch, reading, asked_s)
        return (
            seen
            if seen is None or watch is None or seen.reads < 2
            else replace(seen, still_since_s=watch.still_since_s)
        )


class FailedReadsShowNoChange(Rules):
    def observe(self, watch: Watch | None, reading: Reading | None, asked_s: float) -> Watch | None:
        if reading is None and watch is not None:
            reading = Reading(watch.progress, watch.gone)
        return Rules.observe(self, watch, reading, asked_s)


class ProgressIsIgnored(Rules):
    def observe(self, watch: Watch | None, reading: Reading | None, asked_s: float) -> Watch | None:
        if reading is not None and watch is not None:
            reading = Reading(watch.progress, reading.gone)
        return Rules.observe(self, watch, reading, asked_s)


class BelievesAnotherClock(Rules):
    """Takes the counter for the time of the holder's renewal, as `LastModified` or a wall clock would be taken."""

    def is_dead(self, watch: Watch | None) -> bool:
        if watch is None or watch.gone:
            return Rules.is_dead(self, watch)
        return watch.still_until_s - watch.progress >= self.lease_s


class NeverFences(Rules):
    def must_fence(self, last_renewal_began_s: float, now_s: float) -> bool:
        return False


class FencesAfterTheLease(Rules):
    def must_fence(self, last_renewal_began_s: float, now_s: float) -> bool:
        return now_s - last_renewal_began_s >= 1.5 * self.lease_s


# -- checkpoints -------------------------------------------------------------------------------------------------------


class ReadsPastMissingObjects(Rules):
    def contiguous(self, numbers: Iterable[int]) -> list[int]:
        return sorted(numbers)


class ReadsPastGapsOfASequence(Rules):
    """A stream's first record must still restate everything; later ones are taken wherever they start."""

    def joins(self, length: int | None, start: int) -> bool:
        return length is not None or start == 0


class ReadsPastAllGaps(ReadsPastMissingObjects, ReadsPastGapsOfASequence):
    pass


class SplicesEpochs(Rules):
    """Takes the oldest epoch's tokens and goes on with whatever later epochs have beyond them."""

    def choose(self, epochs: Iterable[Mapping[SequenceKey, Stream]]) -> dict[SequenceKey, Stream]:
        spliced: dict[SequenceKey, Stream] = {}
        for streams in epochs:
            for key, stream in streams.items():
                base = spliced.get(key)
                if base is None:
                    spliced[key] = stream
                elif len(stream.tokens) > len(base.tokens):
                    tokens = base.tokens + stream.tokens[len(base.tokens) :]
                    spliced[key] = Stream(stream.epoch, tokens, stream.finished)
        return spliced


class TakesNewest(Rules):
    def preference(self, stream: Stream) -> tuple[bool, int, int]:
        return (False, stream.epoch, 0)


class TakesShortest(Rules):
    def preference(self, stream: Stream) -> tuple[bool, int, int]:
        return (stream.finished, -len(stream.tokens), stream.epoch)


# -- poison rows -------------------------------------------------------------------------------------------------------


class CondemnsAtFirstCrash(Rules):
    def condemned(self, history: Sequence[Claim]) -> frozenset[int]:
        return Rules.condemned(replace(self, lone_crashes_to_condemn=1), history)


class CondemnsThoughOthersRan(Rules):
    def condemned(self, history: Sequence[Claim]) -> frozenset[int]:
        alone = [
            claim if claim.crash is None else replace(claim, crash=replace(claim.crash, alone=True))
            for claim in history
        ]
        return Rules.condemned(self, alone)


class CondemnsAllInFlight(Rules):
    def condemned(self, history: Sequence[Claim]) -> frozenset[int]:
        crashes: dict[int, int] = {}
        for claim in history:
            for row in () if claim.crash is None else claim.crash.in_flight:
                crashes[row] = crashes.get(row, 0) + 1
        return frozenset(row for row, count in crashes.items() if count >= 2)


class NeverCondemns(Rules):
    def condemned(self, history: Sequence[Claim]) -> frozenset[int]:
        return frozenset()


class SuspectsRunTogether(Rules):
    def trial(self, suspects: Sequence[int]) -> tuple[int, ...]:
        return tuple(suspects)


class NobodyIsSuspect(Rules):
    def suspects(self, history: Sequence[Claim], finished: Collection[int]) -> tuple[int, ...]:
        return ()


# -- the table ---------------------------------------------------------------------------------------------------------

CREATES = Scope(workers=2, epochs=2, rows=1, length=1, mishaps=2, trouble=frozenset({CLAIM, COMMIT}))
STREAMS = Scope(workers=3, epochs=3, rows=1, length=3, mishaps=1, trouble=frozenset({CHECKPOINT}))
LEASES = Scope(workers=2, epochs=2, rows=0, mishaps=1, clocked=True)
SLOW_READS = replace(LEASES, slow_reads=True, mishaps=0, epochs=1)
SLOW_RENEWALS = replace(SLOW_READS, slow_reads=False, slow_renewals=True, rules=Rules(lease_s=4.0, fence_fraction=0.75))
STALE = replace(LEASES, stale_looks=True, mishaps=0, epochs=3)
BISECTION = PoisonScope(rows=(2, 1), unlucky=1, kills=0)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One rule less. `machine` names the state machine's profile in which it must be found, see `tests/property`."""

    name: str
    removes: str
    promises: frozenset[str]
    scope: Scope | PoisonScope
    machine: str
    rules: Callable[..., Rules] = Rules
    settle: Settle = settle
    habits: Habits = field(default_factory=Habits)

    def model(self) -> Model[Any]:
        """The checker's model with this mutant in it."""
        if isinstance(self.scope, PoisonScope):
            return PoisonModel(self.scope, self.rules())
        given = self.scope.rules
        rules = self.rules(lease_s=given.lease_s, fence_fraction=given.fence_fraction)
        return LedgerModel(replace(self.scope, habits=self.habits), rules, self.settle)


def _mutant(
    name: str, removes: str, promises: set[str], scope: Scope | PoisonScope, machine: str, **what: object
) -> Mutant:
    return Mutant(name, removes, frozenset(promises), scope, machine, **what)  # type: ignore[arg-type]


MUTANTS = (
    _mutant(
        "a conflict means lost",
        "after any error read the key: mine → won",
        {BELIEF},
        CREATES,
        "network",
        settle=lost_on_conflict,
    ),
    _mutant("a conflict means won", "another's → lost", {BELIEF}, CREATES, "network", settle=won_on_conflict),
    _mutant(
        "an error means lost",
        "after any error read the key: mine → won",
        {BELIEF},
        CREATES,
        "network",
        settle=lost_on_error,
    ),
    _mutant("an error means won", "after any error read the key", {BELIEF}, CREATES, "network", settle=won_on_error),
    _mutant("what is there is ours", "another's → lost", {BELIEF}, CREATES, "network", settle=won_when_there),
    _mutant("absent means lost", "absent → try again", {BELIEF}, CREATES, "network", settle=lost_when_absent),
    _mutant(
        "unreadable means lost",
        "the key decides, not the failure to read it",
        {BELIEF},
        CREATES,
        "network",
        settle=lost_when_unreadable,
    ),
    _mutant(
        "tired means lost",
        "a bound that is met leaves the outcome unknown",
        {BELIEF},
        CREATES,
        "network",
        settle=lost_when_bound_is_met,
    ),
    _mutant(
        "an unknown claim is forgotten",
        "an unknown outcome is asked for again",
        {FINISHES},
        LEASES,
        "network",
        habits=Habits(settles_unknown_claims=False),
    ),
    _mutant(
        "claims without release or death",
        "epoch e+1 may be created when e is released or its worker dead",
        {TENANT},
        LEASES,
        "leases",
        rules=ClaimsAnyway,
    ),
    _mutant(
        "a release frees nothing",
        "epoch e+1 may be created when e is released",
        {FINISHES},
        LEASES,
        "leases",
        rules=ReleasesCountForNothing,
    ),
    _mutant(
        "a death frees nothing",
        "epoch e+1 may be created when e's worker is dead",
        {FINISHES},
        replace(LEASES, deaths=1),
        "leases",
        rules=DeathCountsForNothing,
    ),
    _mutant(
        "buries at first sight",
        "unchanged over at least three reads that span the lease",
        {LIVING, TENANT},
        LEASES,
        "leases",
        rules=BuriesAtFirstSight,
    ),
    _mutant(
        "buries after three quick reads",
        "the reads span the lease",
        {LIVING, TENANT},
        LEASES,
        "leases",
        rules=BuriesAfterThreeQuickReads,
    ),
    _mutant(
        "counts from the first read",
        "three reads: the count begins when the value has surely been seen",
        {LIVING, TENANT},
        SLOW_READS,
        "slow",
        rules=CountsFromFirstRead,
    ),
    _mutant(
        "counts to the answer",
        "reads that span the lease, not their answers",
        {LIVING, TENANT},
        SLOW_READS,
        "slow",
        habits=Habits(stamps_reads_when_asked=False),
    ),
    _mutant(
        "failed reads show no change",
        "failed reads restart the count",
        {LIVING, TENANT},
        LEASES,
        "leases",
        rules=FailedReadsShowNoChange,
    ),
    _mutant(
        "progress is ignored",
        "dead = its progress counter unchanged",
        {LIVING, TENANT},
        LEASES,
        "leases",
        rules=ProgressIsIgnored,
    ),
    _mutant(
        "believes another's clock",
        "wall clocks decide nothing: the lease runs on the observer's own clock",
        {LIVING, TENANT},
        replace(LEASES, mishaps=0, clock_offsets=(0, 5)),
        "leases",
        rules=BelievesAnotherClock,
    ),
    _mutant(
        "never fences",
        "a worker that cannot renew stops by itself",
        {LIVING, TENANT},
        LEASES,
        "leases",
        rules=NeverFences,
    ),
    _mutant(
        "fences after the lease",
        "it stops before others may hold it dead",
        {LIVING, TENANT},
        LEASES,
        "leases",
        rules=FencesAfterTheLease,
    ),
    _mutant(
        "a late acknowledgement revives",
        "what has lapsed stays lapsed",
        {LIVING, TENANT},
        SLOW_RENEWALS,
        "slow",
        habits=Habits(checks_lease_before_ack=False),
    ),
    _mutant(
        "never looks again",
        "an epoch is worked on once",
        {ONCE},
        STALE,
        "stale",
        habits=Habits(looks_again_after_claim=False),
    ),
    _mutant(
        "reads past all gaps",
        "a reader reads to the first gap",
        {TAKEOVER, WHOLE},
        STREAMS,
        "streams",
        rules=ReadsPastAllGaps,
    ),
    _mutant(
        "reads past gaps of a sequence",
        "records join by their absolute start",
        {TAKEOVER, WHOLE},
        STREAMS,
        "streams",
        rules=ReadsPastGapsOfASequence,
    ),
    _mutant("splices epochs", "streams are never spliced", {TAKEOVER, WHOLE}, STREAMS, "streams", rules=SplicesEpochs),
    _mutant(
        "takes the newest", "a new holder takes the longest stream", {DURABLE}, STREAMS, "streams", rules=TakesNewest
    ),
    _mutant(
        "takes the shortest",
        "a new holder takes the longest stream",
        {DURABLE},
        STREAMS,
        "streams",
        rules=TakesShortest,
    ),
    _mutant(
        "does not restate",
        "a row's first record in an epoch restates its whole output",
        {DURABLE, TAKEOVER},
        STREAMS,
        "streams",
        habits=Habits(restates_taken_over=False),
    ),
    _mutant(
        "a commit overwrites",
        "the first create wins",
        {ONE_RESULT, BELIEF},
        CREATES,
        "network",
        habits=Habits(commits_by_create=False),
    ),
    _mutant(
        "cancel commits elsewhere",
        "cancel commits through the same key",
        {ONE_PLACE, ONCE},  # who looks for the end of such a chunk does not see it, and may begin again
        replace(CREATES, cancel=True, mishaps=0),
        "cancel",
        habits=Habits(one_result_key=False),
    ),
    _mutant(
        "kills count",
        "only crashes of the engine itself count",
        {LONELY, APART},
        replace(BISECTION, unlucky=0, kills=2, kills_are_reported=True),
        "poison",
    ),
    _mutant(
        "condemns at the first crash",
        "a row alone has crashed an engine twice",
        {LONELY},
        BISECTION,
        "poison",
        rules=CondemnsAtFirstCrash,
    ),
    _mutant(
        "condemns though others ran", "one row alone", {LONELY}, BISECTION, "poison", rules=CondemnsThoughOthersRan
    ),
    _mutant(
        "condemns all in flight",
        "its neighbours are not rejected",
        {LONELY},
        BISECTION,
        "poison",
        rules=CondemnsAllInFlight,
    ),
    _mutant("never condemns", "that row is rejected", {BOUND}, BISECTION, "poison", rules=NeverCondemns),
    _mutant("suspects run together", "suspects are bisected", {BOUND}, BISECTION, "poison", rules=SuspectsRunTogether),
    _mutant("nobody is suspect", "suspects are bisected", {APART, BOUND}, BISECTION, "poison", rules=NobodyIsSuspect),
)

REDUNDANT = _mutant(
    "reads past missing objects",
    "a reader reads to the first gap",
    set(),
    STREAMS,
    "streams",
    rules=ReadsPastMissingObjects,
)
"""Not observable by itself: whatever a missing object held, records after it fail to join by their absolute start, so
the second half of the rule stops every reader there. Both halves removed together are found, and the second alone."""

__all__ = ["MUTANTS", "REDUNDANT", "Mutant"]

"""Time in the ledger's model: leases renewed late or not at all, watches told late, clocks that differ, outages."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

from shuntserve.core.ledger import Reading, Watch
from tests.model.explorer import Step
from tests.model.ledger_base import NOW_S, Base
from tests.model.ledger_state import DEAD, GHOST, REAPED, Lease, Look, State, Worker
from tests.model.promises import LIVING


class Leases(Base):
    """What renewing, watching and the passing of time may do."""

    def _renew(self, state: State, index: int, worker: Worker, lease: Lease) -> Iterator[Step[State]]:
        """Write the progress counter. The lease counts from the beginning of a renewal that was acknowledged."""
        if not self.scope.slow_renewals:
            if lease.began and not worker.cut:
                renewed = self._with(self._progressed(state, index), index, worker._replace(lease=Lease(0)))
                yield Step(f"w{index} renews", renewed)
        elif lease.flying < 0:
            begun = worker._replace(lease=lease._replace(flying=0))
            yield Step(f"w{index} begins to renew", self._with(state, index, begun))
        else:
            yield from self._acknowledge(state, index, worker)

    def _renewal_under_way(self, state: State, index: int, worker: Worker, lease: Lease) -> Iterator[Step[State]]:
        """The network carries a renewal, whatever its worker does meanwhile."""
        if not worker.cut:
            landed = worker._replace(lease=lease._replace(landed=True))
            yield Step(f"w{index}'s renewal lands", self._with(self._progressed(state, index), index, landed))
        if worker.cut or self._spare(state):
            failed = self._with(state, index, worker._replace(lease=Lease(lease.began)))
            costs = 0 if worker.cut else 1
            yield Step(f"w{index}'s renewal fails", failed._replace(mishaps=state.mishaps + costs), bool(costs))

    def _acknowledge(self, state: State, index: int, worker: Worker) -> Iterator[Step[State]]:
        lease = worker.lease
        if lease is None or not lease.landed:
            return
        after = self._with(state, index, worker._replace(lease=Lease(lease.flying)))
        yield Step(f"w{index}'s renewal is acknowledged", after, False, self._buried_alive(after))
        if self._spare(state):
            lost = self._with(state, index, worker._replace(lease=Lease(lease.began)))
            yield Step(f"w{index}'s renewal's reply is lost", lost._replace(mishaps=state.mishaps + 1), True)

    def _progressed(self, state: State, index: int) -> State:
        """The bucket shows a new value of this worker's counter: what observers know of it is old."""
        if not state.claims or state.claims[-1][0] != index:
            return state
        workers = tuple(
            worker if worker.look is None else worker._replace(look=self._outdated(worker.look))
            for worker in state.workers
        )
        return state._replace(workers=workers)

    def _outdated(self, look: Look) -> Look | None:
        if look.buried or look.asked >= 0 or not self._starts_afresh:
            return look._replace(current=False, answer_current=False)
        return None

    def _watch(self, state: State, index: int, worker: Worker) -> Iterator[Step[State]]:
        """Read the counter of the newest claim's holder, again and again."""
        if not self.scope.clocked or not state.claims or state.result is not None:
            return
        holder, released = state.claims[-1]
        if released or holder == index:
            return
        look = worker.look or Look()
        if holder >= GHOST or state.workers[holder].phase >= DEAD:
            if not worker.cut and not look.buried and self._buries_the_dead(holder, state):
                sure = self._look(state, index, Look(reads=3, buried=True))
                yield Step(f"w{index} watches {self._name(holder)} until it is sure of its death", sure)
            return
        if look.asked < 0:
            asked = look._replace(asked=0, span=look.since)
            if worker.cut:
                yield from self._told(state, index, worker, asked, None, "fails", False)
            elif self.scope.slow_reads:
                yield Step(f"w{index} asks for {self._name(holder)}'s progress", self._look(state, index, asked))
            else:
                answered = asked._replace(answer=2 if look.reads and look.current else 1, answer_current=True)
                yield from self._told(state, index, worker, answered, holder, "reads", False)
                if self._spare(state):
                    yield from self._told(state, index, worker, asked, None, "fails", True)
            return
        if look.answer:
            yield from self._told(state, index, worker, look, holder, "is told", False)
            return
        if not worker.cut:
            answered = look._replace(answer=2 if look.reads and look.current else 1, answer_current=True)
            yield Step(
                f"the store reads {self._name(holder)}'s progress for w{index}", self._look(state, index, answered)
            )
        if worker.cut or self._spare(state):
            yield from self._told(state, index, worker, look, None, "fails", not worker.cut)

    def _buries_the_dead(self, holder: int, state: State) -> bool:
        """Whether the rules bury somebody whose counter stands still for good; no harm can come on the way there."""
        gone = holder < GHOST and state.workers[holder].phase == REAPED
        watch = None
        for asked_s in range(2 * ceil(self.rules.lease_s) + 1):
            watch = self.rules.observe(watch, Reading(7, gone), float(asked_s))
        return self.rules.is_dead(watch)

    def _told(
        self, state: State, index: int, worker: Worker, look: Look, holder: int | None, verb: str, costs: bool
    ) -> Iterator[Step[State]]:
        """The rules take in one answer (holder None: a failed read)."""
        asked_s = NOW_S - look.asked if self.scope.habits.stamps_reads_when_asked else NOW_S
        since_s = asked_s - look.span if self.scope.habits.stamps_reads_when_asked else NOW_S - look.since
        progress = self._progress(state, index, holder)
        watch = Watch(progress - (look.answer != 2), since_s, asked_s, look.reads) if look.reads else None
        gone = holder is not None and holder < GHOST and state.workers[holder].phase == REAPED
        seen = self.rules.observe(watch, None if holder is None else Reading(progress, gone), asked_s)
        after = None
        if seen is not None:
            since = min(self._watch_cap, round(NOW_S - seen.still_since_s))
            current = look.current if holder is None else look.answer_current
            if current or self.rules.is_dead(seen) or not self._starts_afresh:
                after = Look(min(3, seen.reads), since, current, self.rules.is_dead(seen))
        told = self._look(state, index, after)
        if costs:
            told = told._replace(mishaps=state.mishaps + 1)
        label = f"w{index} {verb}" + (" and buries" if after is not None and after.buried else "")
        yield Step(label, told, costs, self._buried_alive(told))

    def _progress(self, state: State, index: int, holder: int | None) -> int:
        """The counter's value, as a number that tells the holder's time of renewal too: wrong rules may look at it."""
        if holder is None or holder >= GHOST or state.workers[holder].lease is None:
            return 500
        lease = state.workers[holder].lease
        assert lease is not None
        return round(NOW_S) - lease.began + self._offsets[holder] - self._offsets[index]

    def _look(self, state: State, index: int, look: Look | None) -> State:
        return self._with(state, index, state.workers[index]._replace(look=look))

    def _buried_alive(self, state: State) -> str | None:
        """Whether somebody holds the newest claim's holder dead although it would still act."""
        if not state.claims:
            return None
        holder = state.claims[-1][0]
        if holder >= GHOST or state.workers[holder].phase >= DEAD or self._lapsed(holder, state.workers[holder]):
            return None
        buried = any(
            worker.look is not None and worker.look.buried
            for index, worker in enumerate(state.workers)
            if index != holder
        )
        return LIVING if buried else None

    def _tick(self, state: State) -> Step[State]:
        """Time passes. That somebody with a lease lets it lapse is bad luck: it was stopped, or cut off."""
        workers, lapses = [], False
        for index, worker in enumerate(state.workers):
            unit = self._units[index]
            lease, look = worker.lease, worker.look
            if lease is not None and worker.phase < DEAD:
                began = lease.began + unit
                older = Lease(
                    self._cap if self.rules.must_fence(NOW_S - began, NOW_S) else min(self._cap, began),
                    lease.flying if lease.flying < 0 else min(self._cap, lease.flying + unit),
                    lease.landed,
                )
                was, worker = worker, worker._replace(lease=older)
                lapses = lapses or (self._lapsed(index, worker) and not self._lapsed(index, was))
            if look is not None:
                asked = look.asked if look.asked < 0 else min(self._watch_cap, look.asked + unit)
                worker = worker._replace(look=look._replace(since=min(self._watch_cap, look.since + unit), asked=asked))
            workers.append(worker)
        return Step("time passes", state._replace(workers=tuple(workers)), lapses)

    @staticmethod
    def _name(holder: int) -> str:
        return f"w{holder}" if holder < GHOST else "a ghost"

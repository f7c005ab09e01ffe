"""The ledger, whole, in a small world: one chunk, its claims, checkpoints and result, and workers who contend for it.

Decisions are the product's own: `core.ledger.Rules` and `core.create.settle`. Around them stands what the worker loop
does (claim, look again, take over, generate, checkpoint, commit, release, renew, watch, fence) and everything that may
go wrong: requests that fail before or after their effect, that are repeated by the client, that land late; a store that
does not answer one worker, or any; workers that stop for a while, for ever, or until long after they were buried.

A pause needs no action: a worker that is not scheduled while time passes is a paused one. In a scope without clocks
anybody may be held dead at any moment and acts on regardless, which allows strictly more than any lease would.

Sound reductions: generation is merged into the write that makes it visible (it touches nothing but its worker's
memory); an operation that meets no mishap is one step at the moment of its effect; once the chunk is committed only
other commits matter; of the claims only the newest is looked at again; workers that differ only by name are one.
"""

from __future__ import annotations

from collections.abc import Iterator

from shuntserve.core.create import Settle, settle
from shuntserve.core.ledger import Claim, Rules
from tests.model.explorer import Step
from tests.model.ledger_base import NOW_S
from tests.model.ledger_leases import Leases
from tests.model.ledger_memory import Move
from tests.model.ledger_state import (
    CHECKPOINT,
    CLAIM,
    CLAIMED,
    COMMIT,
    DEAD,
    GHOST,
    IDLE,
    REAPED,
    WORKING,
    Late,
    Lease,
    Op,
    Row,
    Scope,
    State,
    Worker,
    show,
)
from tests.model.ledger_writes import Writes
from tests.model.promises import ONCE

FORGOTTEN = (GHOST, True)


class LedgerModel(Writes, Leases):
    """All behaviours within a scope; promises are checked on every step. `rules` and `settle` may be wrong ones."""

    def __init__(self, scope: Scope | None = None, rules: Rules | None = None, settle: Settle = settle) -> None:
        scope = scope or Scope()
        super().__init__(scope, rules or scope.rules, settle)
        self._symmetric = len(set(self._units)) == 1 and len(set(self._offsets)) == 1

    def initial(self) -> Iterator[State]:
        yield State((Worker(),) * self.scope.workers)

    def is_goal(self, state: State) -> bool:
        """The chunk is committed; or the scope's last epoch has ended, and the scope alone keeps it from going on."""
        if state.result is not None or state.aside is not None:
            return True
        if len(state.claims) < self.scope.epochs:
            return False
        writer, released = state.claims[-1]
        return released or writer >= GHOST or state.workers[writer].phase >= DEAD

    def show(self, state: State) -> str:
        return show(state, self.base)

    def canonical(self, state: State) -> State:
        """What nobody can ask for any more is forgotten; workers stand in an order that does not depend on names."""
        state = self._forgotten(state)
        if not self._symmetric:
            return state
        workers, claims, air = state.workers, state.claims, state.air
        keys = [
            hash(
                (
                    worker,
                    tuple(writer == index for writer, _ in claims),
                    state.result == index,
                    state.aside == index,
                    tuple(late[2:] for late in air if late.writer == index),
                )
            )
            for index, worker in enumerate(workers)
        ]
        order = sorted(range(len(workers)), key=keys.__getitem__)
        if order == list(range(len(workers))):
            return state
        name = {old: new for new, old in enumerate(order)}
        return state._replace(
            workers=tuple(workers[index] for index in order),
            claims=tuple((name.get(writer, writer), released) for writer, released in claims),
            result=None if state.result is None else name.get(state.result, state.result),
            aside=None if state.aside is None else name.get(state.aside, state.aside),
            air=tuple(sorted(late._replace(writer=name.get(late.writer, late.writer)) for late in air)),
        )

    def _forgotten(self, state: State) -> State:
        """Old claims are never read again, except by those who still wait to hear whether they made them."""
        newest = len(state.claims) - 1
        if newest > 0:
            asked = {worker.op.epoch for worker in state.workers if worker.op is not None and worker.op.kind == CLAIM}
            claims = tuple(
                claim if epoch == newest or epoch in asked else FORGOTTEN for epoch, claim in enumerate(state.claims)
            )
            if claims != state.claims:
                state = state._replace(claims=claims)
        if state.air:
            air = tuple(late for late in state.air if self._landing(state, late) is not None)
            if len(air) != len(state.air):
                state = state._replace(air=air)
        return state

    def steps(self, state: State) -> Iterator[Step[State]]:
        for index, worker in enumerate(state.workers):
            if worker.phase >= DEAD:
                if worker.phase == DEAD and self.scope.clocked:
                    yield Step(f"w{index} is reaped", self._with(state, index, worker._replace(phase=REAPED)))
                continue
            yield from self._mishaps_of(state, index, worker)
            if worker.lease is not None and worker.lease.flying >= 0 and not worker.lease.landed:
                yield from self._renewal_under_way(state, index, worker, worker.lease)
            if worker.op is not None:  # on a thread of its own: it goes on whatever its worker does
                step = self._read_back if worker.op.put else self._attempt
                yield from step(state, index, worker, worker.op)
            if self._lapsed(index, worker):
                yield Step(f"w{index} fences itself", self._fenced(state, index))
                if not self.scope.habits.checks_lease_before_ack:
                    yield from self._acknowledge(state, index, worker)
                continue
            if worker.lease is not None and state.result is None:
                yield from self._renew(state, index, worker, worker.lease)
            if worker.op is not None:
                continue
            if worker.phase == IDLE:
                yield from self._watch(state, index, worker)
                yield from self._claim(state, index, worker)
            elif worker.phase == CLAIMED:
                yield from self._take_over(state, index, worker)
            elif worker.phase == WORKING:
                yield from self._work(state, index, worker)
        for late in state.air:
            yield from self._land(state, late)
        if self.scope.cancel and not state.cancelled and state.result is None:
            yield Step("the job is cancelled", state._replace(cancelled=True), fault=True)
        if self.scope.clocked and state.result is None:
            yield self._tick(state)
            if self._spare(state) and not any(worker.cut for worker in state.workers):
                workers = tuple(worker._replace(cut=True) for worker in state.workers)
                yield Step(
                    "the store goes down", state._replace(workers=workers, mishaps=state.mishaps + 1), fault=True
                )

    def _mishaps_of(self, state: State, index: int, worker: Worker) -> Iterator[Step[State]]:
        if worker.cut:
            yield Step(f"w{index} reaches the store again", self._with(state, index, worker._replace(cut=False)))
        if state.result is not None:
            return
        if self.scope.clocked and not worker.cut and self._spare(state):
            cut = self._with(state, index, worker._replace(cut=True))
            yield Step(f"w{index} loses the store", cut._replace(mishaps=state.mishaps + 1), True)
        if state.deaths < self.scope.deaths:
            dead = self._with(self._abandoned(state, index, worker), index, Worker(phase=DEAD))
            yield Step(f"w{index} is killed", dead._replace(deaths=state.deaths + 1), True)

    def _abandoned(self, state: State, index: int, worker: Worker) -> State:
        """Nobody waits for this worker's request any more."""
        op = worker.op
        return state if op is None else self._late(state, Late(op.kind, index, op.epoch, op.rows, op.cancelled))

    def _fenced(self, state: State, index: int) -> State:
        """The incarnation is over: its request is late, its claims are dropped; the worker goes on as somebody new."""
        worker = state.workers[index]
        state = self._abandoned(state, index, worker)
        claims = tuple(
            (GHOST + epoch if writer == index else writer, r) for epoch, (writer, r) in enumerate(state.claims)
        )
        air = {late._replace(writer=GHOST + late.epoch) if late.writer == index else late for late in state.air}
        state = state._replace(claims=claims, air=tuple(sorted(air)))
        return self._with(state, index, Worker(cut=worker.cut, seen=worker.seen))

    # -- claims and takeover ---------------------------------------------------------------------------------------

    def _history(self, state: State) -> tuple[Claim, ...]:
        return tuple(Claim(epoch, str(writer), released) for epoch, (writer, released) in enumerate(state.claims))

    def _claim(self, state: State, index: int, worker: Worker) -> Iterator[Step[State]]:
        if state.result is not None or worker.cut:
            return
        looks = [state]
        if self.scope.stale_looks:
            fresh = (len(state.claims), bool(state.claims) and state.claims[-1][1])
            if worker.seen != fresh:
                yield Step(f"w{index} looks at the page", self._with(state, index, worker._replace(seen=fresh)))
            if worker.seen is None:
                return
            count, released = worker.seen
            old = state.claims[:count]
            looks = [state._replace(claims=(*old[:-1], (old[-1][0], released)) if old else ())]
        for look in looks:
            history = self._history(look)
            dead = (
                {claim.worker for claim in history if claim.worker != str(index)} if not self.scope.clocked else set()
            )
            if worker.look is not None and worker.look.buried:
                dead = {str(state.claims[-1][0])}
            epoch = self.rules.next_epoch(history, dead)
            if epoch is None or epoch >= self.scope.epochs:
                continue
            begun = worker._replace(op=Op(CLAIM, epoch), look=None)
            if not self.scope.clocked:
                yield from self._begin(state, index, begun, f"w{index} goes for epoch {epoch}")
            elif worker.lease is not None:
                yield Step(f"w{index} goes for epoch {epoch}", self._with(state, index, begun))
            else:
                ages = [age for age in range(self._cap) if not self.rules.must_fence(NOW_S - age, NOW_S)]
                for age in sorted({ages[0], ages[-1]}):
                    ready = self._with(state, index, begun._replace(lease=Lease(age)))
                    yield Step(f"w{index}, renewed {age} ago, goes for epoch {epoch}", ready)

    def _take_over(self, state: State, index: int, worker: Worker) -> Iterator[Step[State]]:
        """Look again at the claims, then read what earlier epochs left."""
        if worker.cut:
            return
        ours = len(state.claims) == worker.epoch + 1 and not state.claims[worker.epoch][1]
        if self.scope.habits.looks_again_after_claim and (not ours or state.result is not None):
            yield Step(f"w{index} finds epoch {worker.epoch} over", self._idle(state, index))
            return
        rows, broken = self.memory.priors(state.checkpoints[: worker.epoch])
        if worker.entered >= worker.epoch:
            broken = ONCE
        entered = worker.epoch if self.scope.stale_looks else -1
        begun = Worker(WORKING, worker.epoch, rows, lease=worker.lease, entered=entered, seen=worker.seen)
        yield Step(f"w{index} takes over in epoch {worker.epoch}", self._with(state, index, begun), False, broken)

    # -- work -------------------------------------------------------------------------------------------------------

    def _work(self, state: State, index: int, worker: Worker) -> Iterator[Step[State]]:
        if worker.cut:
            return
        last = worker.epoch + 1 == self.scope.epochs  # what is written in it is read by nobody
        writes = state.result is None and not last and worker.next_checkpoint < self.scope.checkpoints
        for move in self.memory.moves(worker):
            after = f"w{index} generates for {move.changed} rows and" if move.changed else f"w{index}"
            if move.complete:
                commit = worker._replace(op=Op(COMMIT, worker.epoch, _plain(move.rows)))
                yield from self._begin(state, index, commit, f"{after} commits")
            elif state.cancelled and state.result is None:
                commit = worker._replace(op=Op(COMMIT, worker.epoch, _plain(move.rows), True))
                yield from self._begin(state, index, commit, f"{after} commits the cancelled rows")
            if move.changed and writes:
                yield from self._checkpoint(state, index, worker, move, after)
        if state.result is None and self.scope.clocked:
            free = self._idle(self._released(state, worker.epoch), index)
            yield Step(f"w{index} gives back", free)

    def _checkpoint(self, state: State, index: int, worker: Worker, move: Move, after: str) -> Iterator[Step[State]]:
        """Write what is new. This loop is more careless than the real one: it may give a checkpoint up and go on."""
        number = worker.next_checkpoint
        done = worker._replace(rows=move.written, next_checkpoint=number + 1)
        yield Step(f"{after} checkpoints", self._with(self._store(state, worker.epoch, move.stored), index, done))
        if not self._spare(state) or CHECKPOINT not in self.scope.trouble:
            return
        lost = self._with(state, index, done._replace(gap=True))._replace(mishaps=state.mishaps + 1)
        yield Step(f"{after} loses a checkpoint", lost, True)
        late = self._late(lost, Late(CHECKPOINT, index, worker.epoch, move.stored))
        yield Step(f"{after} gives up a checkpoint that may land later", late, True)
        reused = self._with(lost, index, done._replace(gap=True, next_checkpoint=number))
        yield Step(f"{after} loses a checkpoint and uses its number again", reused, True)

    def _released(self, state: State, epoch: int) -> State:
        """The bucket with a release beside the claim."""
        holder, _ = state.claims[epoch]
        after = self._unwatched(state) if epoch + 1 == len(state.claims) else state
        return after._replace(claims=(*state.claims[:epoch], (holder, True), *state.claims[epoch + 1 :]))


def _plain(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    return tuple(row._replace(written=False) for row in rows)

"""Creates in the ledger's model: puts that fail before or after their effect, repeat themselves or land late."""

from __future__ import annotations

from collections.abc import Iterator

from shuntserve.core.create import Found, Put, Verdict
from tests.model.explorer import Step
from tests.model.ledger_base import PUTS, Base
from tests.model.ledger_state import (
    CHECKPOINT,
    CLAIM,
    CLAIMED,
    COMMIT,
    DEAD,
    GHOST,
    KINDS,
    OUT,
    WORKING,
    Late,
    Lease,
    Op,
    Row,
    State,
    Stored,
    Worker,
    coherent,
)
from tests.model.promises import BELIEF, ONE_PLACE, ONE_RESULT, TENANT, WHOLE

ANSWERS = (
    ("succeeds", Put.STORED, True, False),
    ("succeeds, and its repetition conflicts", Put.EXISTS, True, False),
    ("succeeds, but the reply is lost", Put.FAILED, True, False),
    ("fails", Put.FAILED, False, False),
    ("times out and may land later", Put.FAILED, False, True),
)
"""Of a put where nothing is yet: (in words, what the writer hears, did it take effect, may it land later)."""


class Writes(Base):
    """What creating a claim or a result may do, and what is late."""

    # -- the bucket ------------------------------------------------------------------------------------------------

    def _stands(self, state: State, op: Op, writer: int) -> bool | None:
        """What is at the key of a claim or a commit: True ours, False another's, None nothing."""
        if op.kind == CLAIM:
            return state.claims[op.epoch][0] == writer if op.epoch < len(state.claims) else None
        aside = op.cancelled and not self.scope.habits.one_result_key
        result = state.aside if aside else state.result
        return None if result is None else result == writer

    def _apply(self, state: State, op: Op, writer: int) -> tuple[State, str | None]:
        """The bucket after a claim or a commit took effect, and the promise this breaks."""
        if op.kind == CLAIM:
            lawful = op.epoch <= len(state.claims) and (op.epoch == 0 or self._may_succeed(state, op.epoch - 1))
            after = self._leased(self._unwatched(state), writer)
            claims, checkpoints = (*state.claims, (writer, False)), (*state.checkpoints, ())
            return after._replace(claims=claims, checkpoints=checkpoints), None if lawful else TENANT
        broken = None
        if any(not coherent(row.tokens, self.base) or not (row.finished or op.cancelled) for row in op.rows):
            broken = WHOLE
        if op.cancelled and not self.scope.habits.one_result_key:
            broken = broken or (ONE_PLACE if state.result is not None else None)
            return self._closed(state._replace(aside=writer)), broken
        if state.result is not None:
            broken = ONE_RESULT
        elif state.aside is not None:
            broken = ONE_PLACE
        return self._closed(state._replace(result=writer)), broken

    @staticmethod
    def _store(state: State, epoch: int, stored: Stored) -> State:
        """The bucket with one more checkpoint."""
        mine = tuple(sorted((*state.checkpoints[epoch], stored), key=lambda one: one.n))
        checkpoints = (*state.checkpoints[:epoch], mine, *state.checkpoints[epoch + 1 :])
        return state._replace(checkpoints=checkpoints)

    def _may_succeed(self, state: State, epoch: int) -> bool:
        """Whether the next epoch may begin: this one is released, or its holder will not act for it again."""
        writer, released = state.claims[epoch]
        if released or not self.scope.clocked or writer >= GHOST or state.result is not None:
            return True
        worker = state.workers[writer]
        return worker.phase >= DEAD or self._lapsed(writer, worker)

    def _leased(self, state: State, writer: int) -> State:
        """Whoever holds a claim, knowing of it or not, has been renewing its lease."""
        if not self.scope.clocked or writer >= GHOST:
            return state
        worker = state.workers[writer]
        if worker.lease is not None or worker.phase >= DEAD:
            return state
        return self._with(state, writer, worker._replace(lease=Lease(0)))

    def _closed(self, state: State) -> State:
        """A committed chunk: all that can still matter is who else tries to commit it."""
        workers = []
        for worker in state.workers:
            if worker.op is not None and worker.op.kind == COMMIT:
                workers.append(worker._replace(look=None, lease=None))
            elif worker.phase == WORKING:
                rows = (Row(finished=True),) * self.scope.rows
                workers.append(Worker(WORKING, worker.epoch, rows, cut=worker.cut))
            else:
                workers.append(Worker(OUT, cut=worker.cut))
        air = tuple(late for late in state.air if late.kind == COMMIT)
        return state._replace(workers=tuple(workers), checkpoints=(), air=air, claims=())

    # -- what is late ----------------------------------------------------------------------------------------------

    @staticmethod
    def _late(state: State, late: Late) -> State:
        """A request that nobody waits for any more, and that may still land."""
        return state if late in state.air else state._replace(air=tuple(sorted((*state.air, late))))

    def _landing(self, state: State, late: Late) -> State | None:
        """Where a late request can still land: the state without it in the air."""
        rest = state._replace(air=tuple(other for other in state.air if other != late))
        if late.kind == CHECKPOINT:
            there = any(one.n == late.body.n for one in state.checkpoints[late.epoch])
        else:
            there = self._stands(state, Op(late.kind, late.epoch, (), late.cancelled), late.writer) is not None
        return None if there else rest

    def _land(self, state: State, late: Late) -> Iterator[Step[State]]:
        """A late request reaches the bucket, which takes it only if the key is absent."""
        rest = self._landing(state, late)
        if rest is None:
            return
        if late.kind == CHECKPOINT:
            landed, broken = self._store(rest, late.epoch, late.body), None
        else:
            landed, broken = self._apply(rest, Op(late.kind, late.epoch, late.body, late.cancelled), late.writer)
        yield Step(f"a late {KINDS[late.kind]} lands", landed, True, broken)

    # -- creates, honestly -----------------------------------------------------------------------------------------

    def _begin(self, state: State, index: int, worker: Worker, label: str) -> Iterator[Step[State]]:
        """Start an operation; where its kind meets no trouble it is one step, at the moment of its effect."""
        assert worker.op is not None
        begun = self._with(state, index, worker)
        if worker.op.kind in self.scope.trouble or self.scope.clocked:
            yield Step(label, begun)
        else:
            yield from self._attempt(begun, index, worker, worker.op)

    def _attempt(self, state: State, index: int, worker: Worker, op: Op) -> Iterator[Step[State]]:
        """One conditional put: it may take effect or not, and the writer may hear of it or not."""
        spare = self._spare(state) and op.kind in self.scope.trouble
        overwrites = op.kind == COMMIT and not self.scope.habits.commits_by_create
        if worker.cut:
            answers = [("fails", Put.FAILED, False, False)]
            spare = False
        elif self._stands(state, op, index) is None or overwrites:
            answers = list(ANSWERS)
        else:
            answers = [("conflicts", Put.EXISTS, False, False), ("fails", Put.FAILED, False, False)]
        for number, (words, put, effect, late) in enumerate(answers):
            costs = number > 0
            if costs and not spare:
                break
            after, broken = self._apply(state, op, index) if effect else (state, None)
            if late:
                after = self._late(after, Late(op.kind, index, op.epoch, op.rows, op.cancelled))
            if costs:
                after = after._replace(mishaps=after.mishaps + 1)
            verdict = self.settle(put, None, tries_left=1)
            if verdict is Verdict.READ_BACK:
                asking = after.workers[index]._replace(op=op._replace(put=PUTS.index(put) + 1))
                after = self._with(after, index, asking)
            else:
                after, belief = self._conclude(after, index, op, verdict)
                broken = broken or belief
            yield Step(f"w{index}'s {KINDS[op.kind]} {op.epoch} {words}", after, costs, broken)

    def _read_back(self, state: State, index: int, worker: Worker, op: Op) -> Iterator[Step[State]]:
        """After any error the key is read; what it shows decides."""
        stands = self._stands(state, op, index)
        truth = Found.ABSENT if stands is None else Found.MINE if stands else Found.ANOTHERS
        answers = [] if worker.cut else [(truth, 0)]
        if worker.cut or self._spare(state):
            answers.append((Found.UNREADABLE, 0 if worker.cut else 1))
        for found, costs in answers:
            after = state._replace(mishaps=state.mishaps + costs)
            told: list[State] = []
            for tries_left in (1, 0):
                verdict = self.settle(PUTS[op.put - 1], found, tries_left=tries_left)
                done, broken = self._conclude(after, index, op, verdict)
                if done not in told:
                    told.append(done)
                    words = f"{'' if tries_left else ' for the last time'}: {found.value}"
                    yield Step(f"w{index} reads its {KINDS[op.kind]} {op.epoch} back{words}", done, bool(costs), broken)

    def _conclude(self, state: State, index: int, op: Op, verdict: Verdict) -> tuple[State, str | None]:
        """What the loop makes of a verdict, and whether it believes what is true."""
        worker = state.workers[index]
        if verdict in (Verdict.TRY_AGAIN, Verdict.UNKNOWN):
            if verdict is Verdict.UNKNOWN and op.kind == CLAIM and not self.scope.habits.settles_unknown_claims:
                return self._idle(state, index), None
            return self._with(state, index, worker._replace(op=op._replace(put=0))), None
        won = verdict is Verdict.WON
        broken = None if self._stands(state, op, index) is won else BELIEF
        if op.kind == COMMIT:
            return self._with(state, index, Worker(phase=OUT, cut=worker.cut)), broken
        if not won:
            return self._idle(state, index), broken
        return self._with(state, index, worker._replace(phase=CLAIMED, epoch=op.epoch, op=None, look=None)), broken

    def _idle(self, state: State, index: int) -> State:
        """Free for other work; without clocks another worker stands for the next life of one that held an epoch."""
        worker = state.workers[index]
        if not self.scope.clocked and worker.phase == WORKING:
            return self._with(state, index, Worker(phase=OUT))
        holds = state.claims and state.claims[-1] == (index, False)
        lease = worker.lease if holds else None
        return self._with(state, index, Worker(lease=lease, cut=worker.cut, entered=worker.entered, seen=worker.seen))

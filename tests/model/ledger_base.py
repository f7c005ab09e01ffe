"""What the parts of the ledger's model share: scope, rules, and small questions about a state."""

from __future__ import annotations

from math import ceil

from shuntserve.core.create import Put, Settle
from shuntserve.core.ledger import Reading, Rules, Watch
from tests.model.ledger_memory import Memory
from tests.model.ledger_state import Scope, State, Worker

NOW_S = 1000.0
PUTS = (Put.STORED, Put.EXISTS, Put.FAILED)


class Base:
    """One model: a scope, the rules in force in it, and the rule of creates."""

    def __init__(self, scope: Scope, rules: Rules, settle: Settle) -> None:
        self.scope = scope
        self.rules = rules
        self.settle = settle
        self.memory = Memory(scope, rules)
        self.base = scope.epochs + 1
        self._units = scope.clock_units or (1,) * scope.workers
        self._offsets = scope.clock_offsets or (0,) * scope.workers
        self._cap = ceil(rules.lease_s * max(1.0, min(rules.fence_fraction, 2.0)))
        self._watch_cap = ceil(rules.lease_s)
        watch = Watch(1, 0.0, 5.0, 2)
        changed = rules.observe(watch, Reading(2), 6.0) == rules.observe(None, Reading(2), 6.0)
        self._starts_afresh = changed and rules.observe(watch, None, 6.0) is None
        """A watch on an outdated value is as good as none, if the rules are right in this."""

    def _lapsed(self, index: int, worker: Worker) -> bool:
        lease = worker.lease
        return lease is not None and self.rules.must_fence(NOW_S - lease.began, NOW_S)

    @staticmethod
    def _with(state: State, index: int, worker: Worker) -> State:
        workers = state.workers
        return state._replace(workers=(*workers[:index], worker, *workers[index + 1 :]))

    @staticmethod
    def _unwatched(state: State) -> State:
        """Nobody watches the newest claim's holder any more: it is another one, or none."""
        if all(worker.look is None for worker in state.workers):
            return state
        return state._replace(workers=tuple(worker._replace(look=None) for worker in state.workers))

    def _spare(self, state: State) -> bool:
        """Whether one more thing may go wrong."""
        return state.mishaps < self.scope.mishaps

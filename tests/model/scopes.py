"""The small worlds that are explored whole: those of every run, and the larger ones of `make test-full`."""

from __future__ import annotations

from dataclasses import replace

from shuntserve.core.ledger import Rules
from tests.model.ledger_state import CHECKPOINT, CLAIM, COMMIT, Scope
from tests.model.poison_model import PoisonScope

LONG_LEASE = Rules(lease_s=4.0, fence_fraction=0.75)
"""Long enough for a renewal begun in time to be acknowledged when the lease has lapsed."""
DEFAULTS = Rules(lease_s=15.0, fence_fraction=0.8)

_leases = Scope(workers=2, epochs=2, rows=0, mishaps=1, clocked=True)

EVERY_RUN: dict[str, Scope | PoisonScope] = {
    "creates: three workers, three mishaps": Scope(
        workers=3, epochs=3, rows=1, length=1, mishaps=3, trouble=frozenset({CLAIM, COMMIT})
    ),
    "streams: three epochs, two rows, lost and late checkpoints": Scope(
        workers=3, epochs=3, rows=2, length=2, mishaps=1, trouble=frozenset({CHECKPOINT})
    ),
    "streams: rows that end early": Scope(
        workers=3, epochs=3, rows=1, length=3, early_ends=True, mishaps=1, trouble=frozenset({CHECKPOINT})
    ),
    "cancel: races with real commits": Scope(
        workers=3, epochs=3, rows=1, length=1, cancel=True, mishaps=1, trouble=frozenset({COMMIT})
    ),
    "leases: pauses, partitions, an outage": _leases,
    "leases: a death": replace(_leases, mishaps=0, deaths=1, epochs=3),
    "leases: three workers": replace(_leases, workers=3, mishaps=0),
    "leases: slow renewals and slow reads": replace(
        _leases, epochs=1, mishaps=0, slow_renewals=True, slow_reads=True, rules=LONG_LEASE
    ),
    "leases: clocks a quarter apart": replace(_leases, mishaps=0, clock_units=(4, 5), rules=DEFAULTS),
    "leases: old looks at the page": replace(_leases, mishaps=0, stale_looks=True),
    "whole: leases, streams and commit together": Scope(
        workers=2, epochs=2, rows=1, length=2, mishaps=0, deaths=1, clocked=True
    ),
    "poison: up to two in three and three rows": PoisonScope(rows=(3, 3), poison=(0, 1, 2), unlucky=0, kills=0),
    "poison: up to two in six rows": PoisonScope(rows=(6,), poison=(0, 1, 2), unlucky=0, kills=0),
    "poison: an unlucky crash and a kill": PoisonScope(rows=(2, 2), poison=(0, 1), unlucky=1, kills=1),
}

FULL_RUN: dict[str, Scope | PoisonScope] = {
    "all writes in trouble": Scope(workers=3, epochs=3, rows=1, length=2, mishaps=2),
    "streams: two mishaps": Scope(
        workers=3, epochs=3, rows=2, length=2, mishaps=2, checkpoints=1, trouble=frozenset({CHECKPOINT})
    ),
    "cancel: everything": Scope(workers=3, epochs=3, rows=1, length=2, cancel=True, mishaps=1),
    "leases: two mishaps": replace(_leases, mishaps=2),
    "leases: a mishap, a death, three epochs": replace(_leases, deaths=1, epochs=3),
    "leases: three workers, a death": replace(_leases, workers=3, mishaps=0, deaths=1, epochs=3),
    "leases: slow renewals, a mishap": replace(_leases, epochs=1, slow_renewals=True, rules=LONG_LEASE),
    "leases: slow reads, a mishap": replace(_leases, slow_reads=True),
    "leases: old looks, three epochs": replace(_leases, mishaps=0, stale_looks=True, epochs=3),
    "whole: a mishap": Scope(workers=2, epochs=2, rows=1, length=1, mishaps=1, clocked=True),
    "whole: two rows": Scope(workers=2, epochs=2, rows=2, length=2, mishaps=0, clocked=True),
    "poison: an unlucky crash and a kill in three and three rows": PoisonScope(
        rows=(3, 3), poison=(0, 1), unlucky=1, kills=1, workers=1
    ),
    "poison: a narrow window": PoisonScope(rows=(3, 2), poison=(0, 1), unlucky=1, kills=0, window=2),
}

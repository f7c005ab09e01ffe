"""What the ledger promises, one sentence each: the checker and the state machines look for a broken one."""

from __future__ import annotations

ONE_RESULT = "one result: a chunk's result never changes once it is there"
ONE_PLACE = "one place: no row ends in two places"
BELIEF = "belief: a writer thinks it won exactly if the stored object is its own, lost exactly if it is another's"
WHOLE = "whole: a committed row holds one coherent stream, complete unless cancelled"
TAKEOVER = "takeover: what is taken over is one coherent stream of one earlier epoch"
DURABLE = "durable: no token made durable in an earlier epoch is missing at takeover"
LIVING = "living: nobody is held dead while it still acts on an unexpired lease"
TENANT = "tenant: an epoch begins only when the one before is released or its holder has stopped acting"
ONCE = "once: no worker works on one epoch twice"
FINISHES = "no dead end: from every state the work can be finished once faults stop"

LONELY = "lonely: a row is condemned only if it was alone in the engine at two crashes of the engine"
GUILTY = "guilty: where engines crash for no other reason, only poison rows are condemned"
APART = "apart: a suspect runs only with suspects of its own chunk"
BOUND = "bound: a poison row or an unlucky crash costs no more crashes than bisecting its chunk takes"

"""The decision behind an honest create: what a writer may conclude from a conditional put and a read-back.

A put-if-absent that ends in *any* error proves nothing, a conflict included: client libraries retry by themselves, so
a writer's own success can come back to it as "already exists" (design section 5). Only the stored bytes decide, and
they contain their writer's UUID. The function here holds that rule and nothing else, so that the ledger's model
checker can replace it and show what breaks.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol


class Put(Enum):
    """How one conditional put ended, as far as the writer can see."""

    STORED = "stored"
    EXISTS = "exists"
    REFUSED = "refused"
    FAILED = "failed"


class Found(Enum):
    """What reading the key back showed."""

    MINE = "mine"
    ANOTHERS = "another's"
    ABSENT = "absent"
    UNREADABLE = "unreadable"


class Verdict(Enum):
    """What the writer does next; the first two are final, since a created object never changes."""

    WON = "won"
    LOST = "lost"
    READ_BACK = "read back"
    TRY_AGAIN = "try again"
    REFUSED = "refused"
    UNKNOWN = "unknown"


class Settle(Protocol):
    """The shape of `settle`, for those who replace it."""

    def __call__(self, put: Put, found: Found | None, *, tries_left: int) -> Verdict: ...


def settle(put: Put, found: Found | None, *, tries_left: int) -> Verdict:
    """Verdict on one conditional put of bytes that name their writer.

    `found` is None before the key was read back; a plain success needs no read. `REFUSED` means that the store said
    no to the request itself and holds nothing of ours. `UNKNOWN` means that the put may still take effect: whoever
    repeats it with the same bytes is safe, whoever concludes that it failed is not.
    """
    if put is Put.STORED:
        return Verdict.WON
    match found:
        case None:
            return Verdict.READ_BACK
        case Found.MINE:
            return Verdict.WON
        case Found.ANOTHERS:
            return Verdict.LOST
        case Found.ABSENT if put is Put.REFUSED:
            return Verdict.REFUSED
        case Found.UNREADABLE if put is Put.REFUSED:
            return Verdict.REFUSED
        case Found.ABSENT | Found.UNREADABLE:
            return Verdict.TRY_AGAIN if tries_left > 0 else Verdict.UNKNOWN

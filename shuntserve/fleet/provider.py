"""The port to whoever has machines: launch, look, terminate.

Promises every provider keeps:

* `launch` can be repeated: one launch id gives one machine, however often and by whomever it is asked for;
* `machines` tells of every machine that may still cost money, and of none that has ended;
* a machine whose agent ends by itself (exit code 0) ends too, and costs no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shuntserve.core.offers import Offer
from shuntserve.errors import Unavailable


@dataclass(frozen=True, slots=True)
class Launch:
    """One machine that is wanted. `id` names it for ever: the node's name, and what makes the launch repeatable."""

    id: str
    job_id: str
    pool: str
    offer: Offer
    slot: int = 0
    """Which of the local fleet's shares of this machine it gets."""
    slots: int = 1


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that has not ended. `id` is the launch's, `machine_id` the provider's own."""

    id: str
    machine_id: str
    running: bool = True


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a launch may take before it counts as failed, on the observer's clock."""

    machine_s: float = 60.0
    """Until the provider knows the machine: a launch whose reply was lost, or a list that lags behind."""
    agent_s: float = 900.0
    """Until its agent reports: boot, packages."""


class NoCapacity(Unavailable):
    """There is no such machine to be had now, and surely none was made. (Any other Unavailable leaves that open.)"""


class Provider(Protocol):
    """Where machines come from."""

    @property
    def patience(self) -> Patience:
        """How long its launches may take."""
        ...

    def price(self, offer: Offer) -> Offer:
        """The offer with its price, as it is now. Raises InvalidInput when nothing is known of such a machine."""
        ...

    def on_demand_usd_per_h(self, offer: Offer) -> float | None:
        """What the same machine costs on demand; None when nobody says."""
        ...

    def launch(self, launch: Launch) -> None:
        """Ask for the machine. Raises NoCapacity when there is none to be had now, InvalidInput when never, and
        Unavailable when nobody can say whether one was made.
        """
        ...

    def machines(self, job_id: str) -> Sequence[Machine]:
        """The job's machines, by launch id. Raises Unavailable."""
        ...

    def terminate(self, job_id: str, launch_id: str, *, at_once: bool = False) -> None:
        """End a machine; one that has ended is fine. Its agent may drain first where the provider lets it, unless
        `at_once`. Raises Unavailable.
        """
        ...

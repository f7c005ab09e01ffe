"""The spending lease as a machine sees it: it ends its own life when nobody has renewed the lease for too long."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SpendingWatch:
    """The newest renewal seen. Times are of the machine's own monotonic clock.

    A renewal that one look shows and the look before did not was made after the earlier one was begun: from there the
    lease is counted, so that it never ends late. A look that fails changes nothing: a bucket that cannot be read ends
    a machine as a controller that is gone does.
    """

    lease_s: float
    renewal: str
    """What the newest renewal wrote; each writes something else."""
    since_s: float
    looked_s: float

    @staticmethod
    def begin(lease_s: float, now_s: float) -> SpendingWatch:
        """A machine that has just started and has not looked yet."""
        return SpendingWatch(lease_s, "", now_s, now_s)

    def seen(self, renewal: str, asked_s: float) -> SpendingWatch:
        """After a look that was begun at `asked_s`."""
        since_s = self.since_s if renewal == self.renewal else self.looked_s
        return SpendingWatch(self.lease_s, renewal, since_s, asked_s)

    def ended(self, now_s: float) -> bool:
        """Whether the machine must leave."""
        return now_s - self.since_s >= self.lease_s

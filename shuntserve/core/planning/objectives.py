"""What makes one plan better than another, as a merit of what it spends an hour (P) and what it serves a second (R).

Every merit is positive, grows with R and falls with P, so for given machines more throughput is always better and a
bound on R is a bound on the merit. `gap` = bound / merit − 1 means the same for all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from shuntserve.core.planning.master import FleetLine
from shuntserve.errors import InvalidInput

ObjectiveName = Literal["throughput", "cost", "deadline"]
OBJECTIVES: tuple[ObjectiveName, ...] = ("throughput", "cost", "deadline")


@dataclass(frozen=True)
class Objective:
    """Most requests/s, most requests per dollar, or least dollars to finish `requests` within `deadline_s`.

    A fleet is paid for `startup_s` before it serves. `hourly_usd` caps $/h, `total_usd` the dollars of the whole job
    (which needs `requests`); both hold under every objective.
    """

    name: ObjectiveName = "throughput"
    requests: float | None = None
    deadline_s: float | None = None
    hourly_usd: float | None = None
    total_usd: float | None = None
    startup_s: float = 180.0

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise InvalidInput(f"objective {self.name!r}", "not known", "use " + ", ".join(OBJECTIVES))
        for label in ("requests", "deadline_s", "hourly_usd", "total_usd"):
            value = getattr(self, label)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InvalidInput(label.replace("_", " "), f"{value} is not a positive number", "give more than zero")
        if not (math.isfinite(self.startup_s) and self.startup_s >= 0):
            raise InvalidInput("startup_s", f"{self.startup_s} is not a number ≥ 0", "give seconds")
        if self.name == "deadline" and (self.requests is None or self.deadline_s is None):
            raise InvalidInput("objective deadline", "needs both a deadline and a number of requests", "give both")
        if self.requests is None and (self.deadline_s is not None or self.total_usd is not None):
            raise InvalidInput(
                "a deadline or a total budget",
                "means nothing without a number of requests",
                "give the number of requests",
            )
        if self.deadline_s is not None and self.deadline_s <= self.startup_s:
            raise InvalidInput(
                f"deadline {self.deadline_s:.0f} s",
                f"machines alone need {self.startup_s:.0f} s to start",
                f"allow more than {self.startup_s:.0f} s",
            )

    # --- one plan ---

    def finish_s(self, rps: float) -> float:
        """Start-up and the time to serve all requests; infinite without a number of requests or throughput."""
        if self.requests is None or rps <= 0:
            return math.inf
        return self.startup_s + self.requests / rps

    def total(self, usd_per_h: float, rps: float) -> float:
        """Dollars for the whole job."""
        return usd_per_h / 3600.0 * self.finish_s(rps)

    def merit(self, usd_per_h: float, rps: float) -> float:
        """How good a plan is; 0 when it breaks a budget or the deadline."""
        if rps <= 0 or not self.allows(usd_per_h, rps):
            return 0.0
        if self.name == "throughput":
            return rps
        return rps / usd_per_h if self.name == "cost" else 1.0 / self.total(usd_per_h, rps)

    def allows(self, usd_per_h: float, rps: float) -> bool:
        """Whether budgets and deadline hold."""
        if self.hourly_usd is not None and usd_per_h > self.hourly_usd * (1 + 1e-9):
            return False
        return rps >= self.least_rps(usd_per_h, 0.0) * (1 - 1e-9)

    def least_rps(self, usd_per_h: float, merit: float) -> float:
        """Least R with which a fleet of this price has at least this merit; infinite when no R does."""
        if self.hourly_usd is not None and usd_per_h > self.hourly_usd * (1 + 1e-9):
            return math.inf
        least = 0.0
        if self.requests is not None:
            if self.deadline_s is not None:
                least = self.requests / (self.deadline_s - self.startup_s)
            if self.total_usd is not None:
                least = max(least, self._rps_within(usd_per_h, self.total_usd))
        if merit <= 0:
            return least
        if self.name == "throughput":
            return max(least, merit)
        if self.name == "cost":
            return max(least, merit * usd_per_h)
        return max(least, self._rps_within(usd_per_h, 1.0 / merit))

    def _rps_within(self, usd_per_h: float, total_usd: float) -> float:
        """Least R with which the whole job costs at most `total_usd`."""
        if usd_per_h <= 0:
            return 0.0
        serving_s = total_usd / usd_per_h * 3600.0 - self.startup_s
        return (self.requests or 0.0) / serving_s if serving_s > 0 else math.inf

    # --- the same as lines, for a linear master ---

    def lines(self) -> tuple[FleetLine, ...]:
        """Hourly budget and deadline; the total budget is not linear and comes as tangents."""
        lines = []
        if self.hourly_usd is not None:
            lines.append(FleetLine("hourly budget", 0.0, 1.0, self.hourly_usd))
        if self.deadline_s is not None:
            lines.append(FleetLine("deadline", -1.0, 0.0, -self.least_rps(0.0, 0.0)))
        return tuple(lines)

    def tangent(self, total_usd: float, rps: float) -> tuple[float, float]:
        """(slope, intercept) of a line above the most $/h that keeps the job within `total_usd`, touching it at `rps`.

        That most is total·3600/(startup + requests/R), concave in R.
        """
        requests = self.requests or 0.0
        below = self.startup_s * rps + requests
        most = total_usd * 3600.0 * rps / below
        slope = total_usd * 3600.0 * requests / (below * below)
        return slope, most - slope * rps

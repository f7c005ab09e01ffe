"""The fleet as a controller sees it: launches, the machines behind them, and what their agents tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shuntserve.core.ledger import Rules, Watch
from shuntserve.core.reconcile import Node, NodeState
from shuntserve.errors import Unavailable
from shuntserve.fleet.provider import Machine, Provider
from shuntserve.job import fleet_records
from shuntserve.job.fleet_records import LaunchRecord, NodeReport
from shuntserve.job.prefetch import prefetched
from shuntserve.store.port import Bucket


@dataclass(frozen=True, slots=True)
class Seen:
    """One machine of ours that has not ended, as far as anybody has written down.

    `missing`: the provider has said that it has none (any more, or yet). `machine` is also None while it says nothing.
    """

    launch: LaunchRecord
    machine: Machine | None
    report: NodeReport | None
    node: Node
    missing: bool = False


@dataclass(slots=True)
class FleetObserver:
    """Looks again and again; remembers what has ended and since when it has watched what has not."""

    bucket: Bucket
    job_id: str
    provider: Provider
    rules: Rules
    spending_lease_s: float
    launches: dict[str, LaunchRecord] = field(default_factory=dict)
    _first_seen_s: dict[str, float] = field(default_factory=dict)
    _watches: dict[str, Watch | None] = field(default_factory=dict)
    _had_machine: set[str] = field(default_factory=set)
    _there_unix_s: dict[str, float] = field(default_factory=dict)
    """When the provider last had a machine, or did not say that it has none."""
    _reports: dict[str, NodeReport] = field(default_factory=dict)

    def look(self, now_s: float, now_unix_s: float) -> tuple[Seen, ...]:
        """Every machine that may still cost money, by launch. Raises Unavailable when the bucket cannot be read.

        While the provider does not answer, every machine that had been there is taken to be there still: its agent's
        silence tells when it is not.
        """
        self.launches = fleet_records.load_launches(self.bucket, self.job_id, self.launches)
        machines: Mapping[str, Machine] | None
        try:
            machines = {machine.id: machine for machine in self.provider.machines(self.job_id)}
        except Unavailable:
            machines = None
        open_launches = [launch for launch in self.launches.values() if launch.ended_unix_s is None]
        reports = prefetched(
            (launch.id for launch in open_launches),
            lambda node: fleet_records.read_node(self.bucket, self.job_id, node),
            threads=16,
            ahead=64,
        )
        return tuple(
            self._see(launch, report, machines, now_s, now_unix_s)
            for launch, report in zip(open_launches, reports, strict=True)
        )

    def could_not_read(self) -> None:
        """The bucket did not answer. The watches start anew: what keeps us from reading keeps agents from writing, and
        none of them is dead for that.
        """
        self._watches.clear()

    def _see(
        self,
        launch: LaunchRecord,
        report: NodeReport | None,
        machines: Mapping[str, Machine] | None,
        now_s: float,
        now_unix_s: float,
    ) -> Seen:
        since_s = self._first_seen_s.setdefault(launch.id, now_s)
        machine = None if machines is None else machines.get(launch.id)
        if machine is not None:
            self._had_machine.add(launch.id)
        if report is not None:
            watch = self._watches.get(launch.id)
            self._watches[launch.id] = self.rules.observe(watch, report.reading, now_s)
            self._reports[launch.id] = report
        missing = machines is not None and machine is None
        if not missing:
            self._there_unix_s[launch.id] = now_unix_s
        state = self._state(launch.id, report, missing, now_s - since_s)
        node = Node(
            launch.id,
            launch.pool,
            launch.offer,
            launch.usd_per_h,
            state,
            noticed=report is not None and report.notice_unix_s is not None,
            rebalance=report is not None and bool(report.facts.get("rebalance")),
            failure=report.failure if report is not None else None,
        )
        return Seen(launch, machine, report, node, missing)

    def _state(self, launch_id: str, report: NodeReport | None, missing: bool, age_s: float) -> NodeState:
        # A list may lag behind the machine, and even behind its agent's first report.
        missing = missing and (launch_id in self._had_machine or age_s >= self.provider.patience.machine_s)
        if report is None:
            if missing:
                return NodeState.LOST
            return NodeState.LATE if age_s >= self.provider.patience.agent_s else NodeState.LAUNCHING
        if report.gone:
            return NodeState.DRAINED
        if missing or self.rules.is_dead(self._watches[launch_id]):
            return NodeState.LOST
        if report.facts.get("leaving") is not None:
            return NodeState.LEAVING
        return NodeState.READY

    def as_launched(self, launch: LaunchRecord, now_s: float) -> Seen:
        """A machine that has just been asked for."""
        self._first_seen_s[launch.id] = now_s
        return Seen(launch, None, None, Node(launch.id, launch.pool, launch.offer, launch.usd_per_h))

    def ran_until_unix_s(self, launch: LaunchRecord, now_unix_s: float) -> float:
        """Until when it is charged, as far as is known by now: never less than it has run."""
        until_unix_s = fleet_records.may_run_until_unix_s(
            launch, self._reports.get(launch.id), now_unix_s, self.spending_lease_s
        )
        return max(until_unix_s, self._there_unix_s.get(launch.id, -math.inf))

    def had_machine(self, launch_id: str) -> bool:
        """Whether the provider has ever shown a machine for this launch."""
        return launch_id in self._had_machine

    def spent_usd(self, now_unix_s: float) -> float:
        """What all machines have cost so far."""
        return sum(launch.usd(self.ran_until_unix_s(launch, now_unix_s)) for launch in self.launches.values())


def free_slot(seen: Sequence[Seen]) -> int:
    """The smallest number no machine of the fleet has."""
    taken = {one.launch.slot for one in seen}
    return next(slot for slot in range(len(taken) + 1) if slot not in taken)

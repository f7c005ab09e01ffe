"""What the bucket holds of a job's fleet: launches, nodes, plans, controllers, approval, spending lease.

Bodies are JSON with a schema version. Who writes what, and how often:

    launches/<id>.json       the acting controller, before it asks for the machine     create
    launches/<id>.ended      the controller that saw it end                            create
    nodes/<id>.json          the node's agent                                          one writer
    plans/<n>.json           the acting controller                                     create
    controllers/<e>          who acts in epoch e                                       create
    controllers/<e>.json     its progress counter and state                            one writer
    proposal.json            the acting controller, before machines are launched       overwritten with itself
    approvals/<digest>.json  whoever agrees to that proposal                           create
    spending.json            the acting controller, again and again                    one writer at a time
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shuntserve.core.desired import Desired
from shuntserve.core.ledger import Reading
from shuntserve.errors import NotFound
from shuntserve.job import claims
from shuntserve.store import keys
from shuntserve.store.port import Bucket

SCHEMA_VERSION = 1
_ENDED = ".ended"


def body(writer: str, **fields: object) -> bytes:
    """One of these objects."""
    return json.dumps({"schema_version": SCHEMA_VERSION, "writer": writer, **fields}, sort_keys=True).encode()


def digest(proposal: Mapping[str, Any]) -> str:
    """Names which machines a proposal would use. Whoever agreed to them need not agree again when a price moves."""
    told = [[pool["pool"], pool["count"]] for pool in proposal["pools"]]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def read(bucket: Bucket, key: str) -> dict[str, Any] | None:
    """One of these objects, None when it is not there. Raises Corrupt."""
    try:
        return claims.load(key, bucket.get(key))
    except NotFound:
        return None


@dataclass(frozen=True, slots=True)
class LaunchRecord:
    """One machine that was asked for, and when it was seen to have ended."""

    id: str
    pool: str
    offer: str
    instance_type: str
    zone: str
    market: str
    usd_per_h: float
    on_demand_usd_per_h: float | None
    slot: int
    launched_unix_s: float
    ended_unix_s: float | None = None
    ended_why: str | None = None

    def usd(self, now_unix_s: float) -> float:
        """What it has cost by now."""
        return self.usd_per_h * self.hours(now_unix_s)

    def hours(self, now_unix_s: float) -> float:
        """How long it has run by now."""
        end_unix_s = self.ended_unix_s if self.ended_unix_s is not None else now_unix_s
        return max(0.0, end_unix_s - self.launched_unix_s) / 3600

    def to_json(self) -> dict[str, Any]:
        """What the launch object holds."""
        return {name: getattr(self, name) for name in self.__slots__ if name not in ("ended_unix_s", "ended_why")}


def load_launches(
    bucket: Bucket, job_id: str, known: Mapping[str, LaunchRecord] | None = None
) -> dict[str, LaunchRecord]:
    """Every launch of the job. Those in `known` that have ended are not read again."""
    found: dict[str, LaunchRecord] = {}
    ended: set[str] = set()
    for info in bucket.list(keys.launches(job_id)):
        name = info.key.rsplit("/", 1)[1]
        if name.endswith(_ENDED):
            ended.add(name.removesuffix(_ENDED))
            continue
        launch_id = name.removesuffix(".json")
        record = (known or {}).get(launch_id)
        if record is None:
            value = claims.load(info.key, bucket.get(info.key))
            record = LaunchRecord(**{key: value[key] for key in LaunchRecord.__slots__ if key in value})
        found[launch_id] = record
    for launch_id in ended & found.keys():
        record = found[launch_id]
        if record.ended_unix_s is None:
            key = keys.launch_ended(job_id, launch_id)
            value = claims.load(key, bucket.get(key))
            fields = {**record.to_json(), "ended_unix_s": value["ended_unix_s"], "ended_why": value["why"]}
            found[launch_id] = LaunchRecord(**fields)
    return found


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node's agent last told of itself."""

    id: str
    progress: int
    gone: bool
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> str:
        return "gone" if self.gone else str(self.facts.get("state", "starting"))

    @property
    def notice_unix_s(self) -> float | None:
        """When the machine will be taken, if that was announced."""
        value = self.facts.get("notice_unix_s")
        return None if value is None else float(value)

    @property
    def told_unix_s(self) -> float | None:
        """When it told this, by its own wall clock."""
        value = self.facts.get("told_unix_s")
        return None if value is None else float(value)

    @property
    def failure(self) -> str | None:
        """Why its pipelines cannot work there."""
        value = self.facts.get("failure")
        return None if value is None else str(value)

    @property
    def reading(self) -> Reading:
        """Its counter, as the rules of leases take it."""
        return Reading(self.progress, self.gone)


def read_node(bucket: Bucket, job_id: str, node: str) -> NodeReport | None:
    """The node's object; None before its agent's first report."""
    value = read(bucket, keys.node(job_id, node))
    if value is None:
        return None
    return NodeReport(node, value["progress"], value["gone"], value["facts"])


BOOT_S = 900.0
"""A machine whose agent never reported is believed to have run for so long at most, before its lease began."""
SHUTDOWN_S = 60.0


def may_run_until_unix_s(
    launch: LaunchRecord, report: NodeReport | None, now_unix_s: float, spending_lease_s: float
) -> float:
    """The latest moment, up to now, at which a machine nobody has seen since can have run.

    Its agent ends it when the spending lease does, and in its last report it still ran. Without this, machines that
    ended while no controller was there to see it would be charged until one came.
    """
    if launch.ended_unix_s is not None:
        return launch.ended_unix_s
    told_unix_s = None if report is None else report.told_unix_s
    if told_unix_s is None:
        told_unix_s = launch.launched_unix_s + BOOT_S
    lease_s = 0.0 if report is not None and report.gone else spending_lease_s
    return min(now_unix_s, told_unix_s + lease_s + SHUTDOWN_S)


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """One entry of the plan log. One of an older epoch than an entry before it was written by a dead controller."""

    number: int
    epoch: int
    desired: Desired
    reason: str
    created_unix_s: float


def newest_plan(bucket: Bucket, job_id: str, after: PlanRecord | None = None) -> PlanRecord | None:
    """The newest plan that counts; `after` (the newest known) when there is no newer one."""
    start_after = None if after is None else keys.plan(job_id, after.number)
    newest = after
    for info in bucket.list(keys.plans(job_id), start_after=start_after):
        value = claims.load(info.key, bucket.get(info.key))
        number = int(info.key.rsplit("/", 1)[1].removesuffix(".json"))
        if newest is not None and value["epoch"] < newest.epoch:
            newest = PlanRecord(number, newest.epoch, newest.desired, newest.reason, newest.created_unix_s)
            continue
        newest = PlanRecord(
            number, value["epoch"], Desired.from_json(value["desired"]), value["reason"], value["created_unix_s"]
        )
    return newest


@dataclass(frozen=True, slots=True)
class ControllerReport:
    """The newest controller as it last told of itself."""

    epoch: int
    incarnation: str
    progress: int
    gone: bool
    facts: Mapping[str, Any]


def newest_controller(bucket: Bucket, job_id: str) -> ControllerReport | None:
    """Whoever acts, or acted last; None when no controller was ever started."""
    epochs = [
        int(name)
        for info in bucket.list(keys.controllers(job_id))
        if not (name := info.key.rsplit("/", 1)[1]).endswith(".json")
    ]
    if not epochs:
        return None
    epoch = max(epochs)
    key = keys.controller(job_id, epoch)
    incarnation = str(claims.load(key, bucket.get(key))["writer"])
    pulse = read(bucket, keys.controller_pulse(job_id, epoch))
    if pulse is None or pulse["writer"] != incarnation:
        return ControllerReport(epoch, incarnation, -1, False, {})
    return ControllerReport(epoch, incarnation, pulse["progress"], pulse["gone"], pulse["facts"])

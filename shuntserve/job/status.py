"""How a job stands: one look at its objects, in words a person uses and a schema a program can rely on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from shuntserve.core.manifest import Manifest
from shuntserve.core.resolved import ResolvedJob
from shuntserve.core.states import ended_exit_code, next_step, paused_exit_code, read_pause
from shuntserve.errors import NotFound
from shuntserve.job import control, fleet_records, machine
from shuntserve.job.adjust import current_job
from shuntserve.job.control import Standing
from shuntserve.job.final import Final, load_final
from shuntserve.job.fleet_records import ControllerReport, LaunchRecord, NodeReport
from shuntserve.job.manifests import load_manifest
from shuntserve.job.timeline import History, read_timeline
from shuntserve.job.watch import Snapshot, Watcher, WorkerView
from shuntserve.store import keys
from shuntserve.store.port import Bucket

SCHEMA = "shuntserve.status/1"

_SILENT_LEASES = 4.0
_CONTROLLER_STATES = {
    "ingesting": "INGESTING",
    "awaiting_approval": "AWAITING_APPROVAL",
    "finalizing": "FINALIZING",
}


@dataclass(frozen=True, slots=True)
class FleetView:
    """What the bucket holds of the job's fleet. Empty for a job that runs on one machine."""

    controller: ControllerReport | None = None
    launches: tuple[LaunchRecord, ...] = ()
    nodes: Mapping[str, NodeReport] = field(default_factory=dict)
    proposal: Mapping[str, Any] | None = None
    approval: Mapping[str, Any] | None = None

    @property
    def open_launches(self) -> tuple[LaunchRecord, ...]:
        """Machines that may still cost money."""
        return tuple(launch for launch in self.launches if launch.ended_unix_s is None)


def fleet_view(bucket: Bucket, job_id: str) -> FleetView:
    """Look at the job's fleet."""
    controller = fleet_records.newest_controller(bucket, job_id)
    if controller is None:
        return FleetView()
    launches = tuple(fleet_records.load_launches(bucket, job_id).values())
    nodes = {
        launch.id: report
        for launch in launches
        if launch.ended_unix_s is None and (report := fleet_records.read_node(bucket, job_id, launch.id)) is not None
    }
    proposal = fleet_records.read(bucket, keys.proposal(job_id))
    approval = None
    if proposal is not None:
        approval = fleet_records.read(bucket, keys.approval(job_id, fleet_records.digest(proposal)))
    return FleetView(controller, launches, nodes, proposal, approval)


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job at one moment. `manifest` and `snapshot` are None until its input has been ingested."""

    job: ResolvedJob
    standing: Standing
    manifest: Manifest | None = None
    snapshot: Snapshot | None = None
    final: Final | None = None
    fleet: FleetView = field(default_factory=FleetView)
    history: History = field(default_factory=History)
    now_unix_s: float = 0.0

    @property
    def state(self) -> str:
        """One word: a terminal state, or what the job is doing."""
        if self.final is not None:
            return str(self.final.state)
        doing = self.controller_state
        if self.snapshot is None:
            return "INGESTING" if doing == "INGESTING" else "SUBMITTED"
        if self.snapshot.complete:
            return "FINALIZING"
        if self.standing.stopped is not None:
            return "STOPPING"
        if self.standing.paused is not None:
            return "PAUSED"
        if doing == "AWAITING_APPROVAL":
            return doing
        return "RUNNING" if self.live_workers else "WAITING"

    @property
    def controller_state(self) -> str | None:
        """What the acting controller says it is doing, as a job's state."""
        controller = self.fleet.controller
        if controller is None or controller.gone:
            return None
        return _CONTROLLER_STATES.get(str(controller.facts.get("state")))

    @property
    def controller_epoch(self) -> int:
        """The newest epoch of control; -1 before the first."""
        return -1 if self.fleet.controller is None else self.fleet.controller.epoch

    @property
    def controller_alive(self) -> bool:
        """Whether a controller acts, as far as can be seen from here.

        One on another machine that has told nothing for a while counts as dead. By the wall clock, which may be wrong:
        another one that is started for nothing only stands by.
        """
        controller = self.fleet.controller
        if controller is None or controller.gone or machine.is_gone(controller.facts):
            return False
        told_unix_s = controller.facts.get("told_unix_s")
        silent_s = 0.0 if told_unix_s is None else self.now_unix_s - float(told_unix_s)
        return silent_s < _SILENT_LEASES * self.job.operations.lease_s

    @property
    def workers(self) -> tuple[WorkerView, ...]:
        """Workers that have not ended, as far as can be seen from here: none of a machine that has."""
        live = self.snapshot.live if self.snapshot is not None else ()
        ended = {launch.id for launch in self.fleet.launches if launch.ended_unix_s is not None}
        return tuple(
            worker for worker in live if worker.facts.get("node") not in ended and not machine.is_gone(worker.facts)
        )

    @property
    def live_workers(self) -> int:
        """How many they are."""
        return len(self.workers)

    @property
    def failure(self) -> str | None:
        """Why the newest controller gave up, or what keeps failing."""
        controller = self.fleet.controller
        told = None if controller is None else controller.facts.get("failure")
        return None if told is None else str(told)

    @property
    def exit_code(self) -> int | None:
        """What a command that waited for the job would exit with; None while it goes on."""
        if self.final is not None:
            limit = self.job.operations.max_reject_fraction
            return ended_exit_code(self.final.state, self.final.counts, limit)
        if self.standing.paused is not None and self.standing.stopped is None and not self.controller_alive:
            return paused_exit_code(read_pause(self.standing.paused))
        return None

    @property
    def spent_usd(self) -> float:
        """What the fleet's machines have cost so far, at most."""
        return sum(launch.usd(self._ran_until_unix_s(launch)) for launch in self.fleet.launches)

    @property
    def usd_per_h(self) -> float:
        """What the machines that may still run cost an hour."""
        return sum(
            launch.usd_per_h for launch in self.fleet.open_launches if self._ran_until_unix_s(launch) >= self.now_unix_s
        )

    def _ran_until_unix_s(self, launch: LaunchRecord) -> float:
        report = self.fleet.nodes.get(launch.id)
        return fleet_records.may_run_until_unix_s(launch, report, self.now_unix_s, self.job.operations.spending_lease_s)

    @property
    def on_demand_usd(self) -> float | None:
        """What the same machine hours would have cost on demand; None when that is not known of all of them."""
        if not self.fleet.launches:
            return None
        total = 0.0
        for launch in self.fleet.launches:
            if launch.on_demand_usd_per_h is None:
                return None
            total += launch.on_demand_usd_per_h * launch.hours(self._ran_until_unix_s(launch))
        return total

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the end at the pace of the last quarter of an hour; None when there is none to see."""
        if self.snapshot is None or self.final is not None or not self.live_workers:
            return None
        recent = [one for one in self.history.samples if one[0] >= self.now_unix_s - 900]
        if not recent:
            return None
        began_unix_s, first = recent[0]
        rows, elapsed_s = self.snapshot.rows_ended - first.rows_ended, self.now_unix_s - began_unix_s
        if rows <= 0 or elapsed_s <= 0:
            return None
        return (self.snapshot.rows_in - self.snapshot.rows_ended) * elapsed_s / rows

    def to_json(self) -> dict[str, Any]:
        """For programs; `schema` names the form."""
        snapshot, final, fleet = self.snapshot, self.final, self.fleet
        operations = self.job.operations
        rejected = final.counts.rows_rejected if final else snapshot.rejected if snapshot else None
        ended = snapshot.rows_ended if snapshot else None
        remaining_s = self.remaining_s
        spent_usd = self.spent_usd
        return {
            "schema": SCHEMA,
            "id": self.job.job_id,
            "name": self.job.name,
            "state": self.state,
            "model": self.job.model,
            "parent": self.job.parent,
            "output": operations.output,
            "rows": {
                "total": snapshot.rows_in if snapshot else None,
                "ok": final.counts.rows_out if final else None if ended is None else ended - (rejected or 0),
                "rejected": rejected,
                "ended": ended,
            },
            "chunks": {
                "total": snapshot.chunks if snapshot else None,
                "committed": snapshot.chunks_committed if snapshot else None,
            },
            "tokens": {
                "prompt": self.manifest.prompt_tokens if self.manifest else None,
                "generated": snapshot.total("tokens_generated") if snapshot else 0,
                "durable": snapshot.total("tokens_durable") if snapshot else 0,
                "kept": final.totals.tokens_kept if final else None,
                "regenerated": snapshot.tokens_regenerated if snapshot else 0,
            },
            "cost": {
                "spent_usd": round(spent_usd, 6),
                "cap_usd": operations.max_cost_usd,
                "forecast_usd": None
                if remaining_s is None
                else round(spent_usd + self.usd_per_h * remaining_s / 3600, 6),
                "on_demand_usd": self.on_demand_usd,
                "usd_per_h": self.usd_per_h,
            },
            "finish": {
                "started": _iso(self.history.events[0].unix_s if self.history.events else None),
                "eta": _iso(None if remaining_s is None else self.now_unix_s + remaining_s),
                "ended": _iso(self._ended_unix_s),
                "deadline": _iso(operations.deadline_unix_s),
            },
            "approval": {
                "needed": self.state == "AWAITING_APPROVAL",
                "given_by": None if fleet.approval is None else fleet.approval.get("by"),
                "proposal": None if fleet.proposal is None else dict(fleet.proposal),
            },
            "controller": self._controller_json(),
            "nodes": [self._node_json(launch) for launch in fleet.open_launches],
            "workers": [
                {"incarnation": worker.incarnation, "state": worker.state, **worker.facts} for worker in self.workers
            ],
            "interruptions": [
                {
                    "time": _iso(event.unix_s),
                    "kind": event.kind,
                    "node": event.node,
                    "detail": ", ".join(f"{name}={value}" for name, value in event.fields.items()),
                }
                for event in self.history.interruptions
            ],
            "pause": self.standing.paused,
            "stopped_by": None if self.standing.stopped is None else str(self.standing.stopped),
            "failure": self.failure,
            "exit_code": self.exit_code,
            "next_step": next_step(
                self.state,
                self.standing.paused,
                self.job.job_id,
                self.failure,
                looked_after=self.controller_alive or bool(self.live_workers),
            ),
        }

    @property
    def _ended_unix_s(self) -> float | None:
        ends = [event.unix_s for event in self.history.events if event.kind == "phase_ended"]
        return ends[-1] if self.final is not None and ends else None

    def _controller_json(self) -> dict[str, Any] | None:
        controller = self.fleet.controller
        if controller is None:
            return None
        return {
            "state": controller.facts.get("state", "starting"),
            "epoch": controller.epoch,
            "host": controller.facts.get("host"),
            "pid": controller.facts.get("pid"),
            "alive": self.controller_alive,
        }

    def _node_json(self, launch: LaunchRecord) -> dict[str, Any]:
        report = self.fleet.nodes.get(launch.id)
        return {
            "id": launch.id,
            "pool": launch.pool,
            "market": launch.market,
            "state": "launching" if report is None else report.state,
            "usd_per_h": launch.usd_per_h,
            "since": _iso(launch.launched_unix_s),
            "notice": _iso(None if report is None else report.notice_unix_s),
            "workers": 0 if report is None else int(report.facts.get("workers") or 0),
            "failure": None if report is None else report.failure,
        }


def _iso(unix_s: float | None) -> str | None:
    return None if unix_s is None else datetime.fromtimestamp(unix_s, tz=UTC).isoformat(timespec="milliseconds")


def job_status(bucket: Bucket, job_id: str, *, now_unix_s: float | None = None) -> JobStatus:
    """Look at one job. Raises NotFound when there is none."""
    job = current_job(bucket, job_id)
    standing = control.standing(bucket, job_id)
    manifest = load_manifest(bucket, job_id)
    now = time.time() if now_unix_s is None else now_unix_s
    fleet, history = fleet_view(bucket, job_id), read_timeline(bucket, job_id)
    if manifest is None:
        return JobStatus(job, standing, fleet=fleet, history=history, now_unix_s=now)
    snapshot = Watcher(bucket, job_id, manifest).snapshot()
    return JobStatus(job, standing, manifest, snapshot, load_final(bucket, job_id), fleet, history, now)


def job_ids(bucket: Bucket) -> Sequence[str]:
    """All jobs in a store."""
    return bucket.list_dirs("jobs")


def all_jobs(bucket: Bucket) -> Iterator[JobStatus]:
    """Every job of a store, by id. What is no job (a submission that was cut off before its spec) is left out."""
    for job_id in job_ids(bucket):
        try:
            yield job_status(bucket, job_id)
        except NotFound:
            continue

"""What changed between two looks at a job, as events: `shuntserve.job.*`, `.node.*`, `.capacity.*`.

Resource ids are `shuntserve.job.<job id>` and `shuntserve.node.<node id>`; each event of a job follows the one before
it, so that automations see them in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from prefect.events import Event, emit_event

from flows._states import ENDED, PAUSED

BUDGET_WARNING = 0.8
"""Share of the cost cap at which `shuntserve.job.budget-warning` is emitted."""
NO_PROGRESS_S = 15 * 60.0


@dataclass(frozen=True, slots=True)
class News:
    """One thing that happened, of a job or of one of its nodes."""

    event: str
    node: str | None = None
    payload: Mapping[str, Any] = field(default_factory=dict)


def news(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[News]:
    """Events between two values of `status --json`; before the first look there was nothing."""
    past: Mapping[str, Any] = before or {}
    return [*_job_news(past, now), *_node_news(past, now), *_interruptions(past, now)]


def _job_news(past: Mapping[str, Any], now: Mapping[str, Any]) -> list[News]:
    found: list[News] = []
    state, rows, cost = now["state"], now["rows"], now["cost"]
    if state != past.get("state"):
        kind = "ended" if state in ENDED else "paused" if state == PAUSED else state.lower().replace("_", "-")
        found.append(
            News(f"shuntserve.job.{kind}", payload={"state": state, "pause": now.get("pause"), "rows": dict(rows)})
        )
    if _near_budget(cost) and not _near_budget(past.get("cost") or {}):
        found.append(News("shuntserve.job.budget-warning", payload=dict(cost)))
    if deadline_at_risk(now) and not deadline_at_risk(past):
        found.append(News("shuntserve.job.deadline-at-risk", payload=dict(now["finish"])))
    if (rows.get("ended") or 0) > ((past.get("rows") or {}).get("ended") or 0):
        found.append(News("shuntserve.job.progress", payload=dict(rows)))
    return found


def _node_news(past: Mapping[str, Any], now: Mapping[str, Any]) -> list[News]:
    earlier = {node["id"]: node["state"] for node in past.get("nodes") or ()}
    return [
        News(
            f"shuntserve.node.{str(node['state']).lower().replace('_', '-')}",
            node=node["id"],
            payload={name: node.get(name) for name in ("pool", "market", "state", "usd_per_h", "failure")},
        )
        for node in now.get("nodes") or ()
        if node["state"] != earlier.get(node["id"])
    ]


_CAPACITY_KINDS = {"notice": "interruption-notice", "rebalance": "rebalance-recommendation", "node_lost": "node-lost"}


def _interruptions(past: Mapping[str, Any], now: Mapping[str, Any]) -> list[News]:
    told = {(one["time"], one["kind"], one["node"]) for one in past.get("interruptions") or ()}
    found: list[News] = []
    for one in now.get("interruptions") or ():
        if (one["time"], one["kind"], one["node"]) not in told:
            kind = _CAPACITY_KINDS.get(one["kind"])
            event = f"shuntserve.capacity.{kind}" if kind else f"shuntserve.job.{one['kind'].replace('_', '-')}"
            found.append(News(event, payload=dict(one)))
    return found


def _near_budget(cost: Mapping[str, Any]) -> bool:
    cap = cost.get("cap_usd")
    return bool(cap) and (cost.get("spent_usd") or 0.0) >= BUDGET_WARNING * float(cap or 0)


def deadline_at_risk(status: Mapping[str, Any]) -> bool:
    """Whether a job that has not ended is expected to end after its deadline."""
    finish = status.get("finish") or {}
    eta, deadline = finish.get("eta"), finish.get("deadline")
    if status.get("state") in ENDED or not eta or not deadline:
        return False
    return datetime.fromisoformat(eta) > datetime.fromisoformat(deadline)


class Emitter:
    """Emits a job's news, each following the one before."""

    def __init__(self, job_id: str, job_name: str, flow_run_id: str | None) -> None:
        self._job_id = job_id
        self._job_name = job_name
        self._flow_run_id = flow_run_id
        self._last: Event | None = None

    def emit(self, one: News) -> None:
        """Hand it to Prefect's own queue; whether the server answers is not waited for."""
        job = {"prefect.resource.id": f"shuntserve.job.{self._job_id}", "prefect.resource.name": self._job_name}
        related = [{**job, "prefect.resource.role": "job"}] if one.node else []
        if self._flow_run_id is not None:
            run = {"prefect.resource.id": f"prefect.flow-run.{self._flow_run_id}", "prefect.resource.role": "flow-run"}
            related.append(run)
        resource = {"prefect.resource.id": f"shuntserve.node.{one.node}"} if one.node else job
        self._last = emit_event(
            one.event,
            resource,
            occurred=datetime.now(UTC),
            related=related,
            payload={"job": self._job_id, **one.payload},
            follows=self._last,
        )

"""The report of a job: what it made, what it went through and what it cost, as one JSON value (`report.json`).

    schema         "shuntserve.report/1"
    job            id, name, state, model, versions, output, and of a retry the parent
    time           began, ended, elapsed_s, phases[{phase, seconds, spans_s}], unattended_s
    rows           total, ok, rejected, stopped, by_code[{code, rows}], ended
    tokens         prompt, completion, generated, durable, kept, regenerated, resumed_rows
    throughput     running_s, tokens_per_s, rows_per_s (means); bin_s, series{tokens_per_s, rows_per_s, rows_ended,
                   workers, spent_usd}: a value for each bin
    interruptions  count (machines taken or lost, workers killed, engines lost), total (of events), by_kind,
                   listed[{time, at_s, kind, node, worker, detail}], unseen
    cost           spent_usd, on_demand_usd, predicted_usd, saved_usd, usd_per_million_tokens, by_pool; null if unknown
    plan           of a fleet, the newest that ran anything: number, plans (how many there were),
                   pipelines[{id, generation, stages[{node, gpus, tp, layers}]}]
    machines       lanes[{id, kind, place, begin_s, end_s, state, …}], total
    outputs        url, data[{path, rows, bytes}], rejects[…], files

Seconds count from `time.began`. What nobody knows is null, never a guess. There is no text of the user's but names.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shuntserve import telemetry
from shuntserve.core.desired import Desired
from shuntserve.core.manifest import Manifest
from shuntserve.core.resolved import ResolvedJob
from shuntserve.errors import Corrupt, NotFound, ShuntServeError
from shuntserve.job import claims, report_page, report_series
from shuntserve.job.final import Final
from shuntserve.job.fleet_records import LaunchRecord, load_launches
from shuntserve.job.parts import Part
from shuntserve.job.timeline import PHASES, History, TimelineEvent, read_timeline
from shuntserve.job.watch import Snapshot, Watcher, WorkerView
from shuntserve.readable import iso
from shuntserve.store import keys
from shuntserve.store.port import Bucket

SCHEMA = "shuntserve.report/1"
MOST_LISTED = 1000
"""Interruptions that are listed one by one: the first and the last half of them; the counts are of all."""
MOST_LANES = 200
MOST_PARTS = 200
_PLANS_LOOKED_AT = 50
"""The last plans of a job take machines away one after the other."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PoolCost:
    """What the machines of one pool cost."""

    pool: str
    hours: float
    usd: float


@dataclass(frozen=True, slots=True)
class Costs:
    """What a job cost, what the same machines would have cost on demand, and what was predicted before it began."""

    spent_usd: float
    on_demand_usd: float | None = None
    predicted_usd: float | None = None
    by_pool: tuple[PoolCost, ...] = ()


def costs_of(launches: Sequence[LaunchRecord], now_unix_s: float, predicted_usd: float | None = None) -> Costs | None:
    """What these machines have cost by now; None when there are none."""
    if not launches:
        return None
    hours: dict[str, float] = {}
    spent: dict[str, float] = {}
    for launch in launches:
        hours[launch.offer] = hours.get(launch.offer, 0.0) + launch.hours(now_unix_s)
        spent[launch.offer] = spent.get(launch.offer, 0.0) + launch.usd(now_unix_s)
    prices = [launch.on_demand_usd_per_h for launch in launches]
    on_demand = [
        price * launch.hours(now_unix_s) for price, launch in zip(prices, launches, strict=True) if price is not None
    ]
    return Costs(
        spent_usd=sum(spent.values()),
        on_demand_usd=sum(on_demand) if len(on_demand) == len(launches) else None,
        predicted_usd=predicted_usd,
        by_pool=tuple(PoolCost(offer, hours[offer], spent[offer]) for offer in sorted(hours)),
    )


def build_report(
    bucket: Bucket,
    job: ResolvedJob,
    manifest: Manifest,
    final: Final | None,
    history: History,
    costs: Costs | None,
    *,
    now_unix_s: float,
    output_url: str | None = None,
) -> Json:
    """The report. Without `final` it is of a job under way, as of `now_unix_s`.

    Without `costs` they are what the bucket says of the machines that were launched; nothing when none was.
    """
    snapshot = Watcher(bucket, job.job_id, manifest).snapshot()
    launches = tuple(load_launches(bucket, job.job_id).values())
    costs = costs or costs_of(launches, now_unix_s)
    span = report_series.bounds(history) or (now_unix_s, now_unix_s)
    if final is None:
        span = (span[0], max(span[1], now_unix_s))
    began = span[0]
    phases = report_series.phases(history, None if final is not None else now_unix_s)
    running = phases.get("run", ())
    tokens = _tokens(manifest, final, snapshot)
    told_every_s = job.operations.lease_s / 5  # workers' reports; bins of two of them are calm, where there is room
    least_bin_s = max(told_every_s, min(2 * told_every_s, (span[1] - span[0]) / 40))
    return {
        "schema": SCHEMA,
        "job": _job(job, final, output_url),
        "time": _time(span, phases, ended=final is not None),
        "rows": _rows(final, snapshot),
        "tokens": tokens,
        "throughput": _throughput(history, span, running, tokens, snapshot, least_bin_s),
        "interruptions": _interruptions(history, snapshot, began),
        "cost": None if costs is None else _cost(costs, tokens),
        "plan": _plan(bucket, job.job_id),
        "machines": _machines(snapshot, launches, history, span),
        "outputs": _outputs(final, output_url),
    }


def write_report(
    bucket: Bucket,
    job: ResolvedJob,
    manifest: Manifest,
    final: Final,
    costs: Costs | None,
    *,
    now_unix_s: float,
    output_url: str | None = None,
) -> Json | None:
    """Put `report.json` and `report.html` of a job that has ended; None when that failed, which is logged.

    A job is not worse for having no report: it can be made again at any time (`shuntserve report`).
    """
    try:
        history = read_timeline(bucket, job.job_id)
        report = build_report(
            bucket, job, manifest, final, history, costs, now_unix_s=now_unix_s, output_url=output_url
        )
        bucket.put(keys.report(job.job_id, "html"), report_page.render(report).encode())
        bucket.put(keys.report(job.job_id, "json"), json.dumps(report, ensure_ascii=False).encode())
    except ShuntServeError as error:
        telemetry.emit(telemetry.Event.REPORT_FAILED, job=job.job_id, error=str(error))
        return None
    return report


def load_report(bucket: Bucket, job_id: str) -> Json | None:
    """The stored report of a job that has ended; None when there is none, or one of another schema."""
    key = keys.report(job_id, "json")
    try:
        report: Json = json.loads(bucket.get(key))
    except NotFound:
        return None
    except ValueError as error:
        raise Corrupt(key, "is not JSON", f"make it anew: shuntserve report {job_id} --fresh") from error
    return report if report.get("schema") == SCHEMA else None


def _job(job: ResolvedJob, final: Final | None, output_url: str | None) -> Json:
    return {
        "id": job.job_id,
        "name": job.name,
        "state": str(final.state) if final is not None else "UNDER_WAY",
        "stopped_by": None if final is None or final.counts.stopped_by is None else str(final.counts.stopped_by),
        "model": job.model,
        "revision": job.revision,
        "model_sha256": job.model_sha256,
        "output": output_url or job.operations.output,
        "package_version": job.package_version,
        "engine_version": job.engine_version,
        "inputs": len(job.inputs),
        "parent": job.parent,
    }


def _time(span: report_series.Span, phases: Mapping[str, Sequence[report_series.Span]], *, ended: bool) -> Json:
    began, end = span
    attended = report_series.length_s(report_series.union(one for spans in phases.values() for one in spans))
    ordered = sorted(phases, key=lambda name: PHASES.index(name) if name in PHASES else len(PHASES))
    return {
        "began": iso(began),
        "began_unix_s": round(began, 3),
        "ended": iso(end) if ended else None,
        "elapsed_s": round(end - began, 3),
        "phases": [
            {
                "phase": name,
                "seconds": round(report_series.length_s(phases[name]), 3),
                "spans_s": [[round(a - began, 3), round(b - began, 3)] for a, b in phases[name][:MOST_LISTED]],
            }
            for name in ordered
        ],
        "unattended_s": round(max(0.0, end - began - attended), 3),
    }


def _rows(final: Final | None, snapshot: Snapshot) -> Json:
    if final is None:
        rejected = snapshot.rejected
        return {
            "total": snapshot.rows_in,
            "ended": snapshot.rows_ended,
            "ok": max(0, snapshot.rows_ended - rejected),
            "rejected": rejected,
            "stopped": None,
            "by_code": None,
        }
    counts = final.counts
    codes = final.reject_codes
    return {
        "total": counts.rows_in,
        "ended": counts.rows_in,
        "ok": counts.rows_out,
        "rejected": counts.rows_rejected,
        "stopped": counts.rows_stopped,
        "by_code": None if codes is None else [{"code": code, "rows": rows} for code, rows in codes.items()],
    }


def _tokens(manifest: Manifest, final: Final | None, snapshot: Snapshot) -> Json:
    totals = final.totals if final is not None else None
    return {
        "prompt": totals.prompt_tokens if totals else manifest.prompt_tokens,
        "completion": totals.completion_tokens if totals else None,
        "generated": snapshot.total("tokens_generated"),
        "durable": snapshot.total("tokens_durable"),
        "kept": totals.tokens_kept if totals else snapshot.total("tokens_kept"),
        "regenerated": snapshot.tokens_regenerated if totals else None,
        "resumed_rows": totals.resumed_rows if totals else None,
    }


def _throughput(
    history: History,
    span: report_series.Span,
    running: Sequence[report_series.Span],
    tokens: Json,
    snapshot: Snapshot,
    least_bin_s: float,
) -> Json:
    found = report_series.series(history, span, running, least_bin_s)
    running_s = report_series.length_s(running)
    columns = {name: value for name, value in asdict(found).items() if isinstance(value, tuple)}
    return {
        "running_s": round(running_s, 3),
        "tokens_per_s": round(tokens["generated"] / running_s, 3) if running_s > 0 else None,
        "rows_per_s": round((snapshot.rows_ended - snapshot.rows_refused) / running_s, 4) if running_s > 0 else None,
        "bin_s": round(found.bin_s, 3),
        "series": {
            name: [None if one is None else round(one, 4) for one in column] for name, column in columns.items()
        },
    }


def _interruptions(history: History, snapshot: Snapshot, began: float) -> Json:
    events = history.interruptions
    by_kind = Counter(event.kind for event in events)
    taken = {event.node for event in events if event.kind in ("notice", "node_lost")}  # mostly one after the other
    listed = events if len(events) <= MOST_LISTED else (*events[: MOST_LISTED // 2], *events[-MOST_LISTED // 2 :])
    return {
        "count": by_kind["worker_killed"] + by_kind["engine_lost"] + len(taken),
        "total": len(events),
        "by_kind": dict(sorted(by_kind.items())),
        "unseen": max(0, snapshot.interruptions - by_kind["worker_killed"] - by_kind["engine_lost"]),
        "listed": [
            {
                "time": iso(event.unix_s),
                "at_s": round(event.unix_s - began, 3),
                "kind": event.kind,
                "node": event.node,
                "worker": event.fields.get("worker"),
                "detail": _detail(event),
            }
            for event in listed
        ],
    }


def _detail(event: TimelineEvent) -> str:
    fields = event.fields
    match event.kind:
        case "engine_lost":
            return f"engine {fields.get('loss')}"
        case "worker_killed":
            return "worker process killed"
        case _:
            told = [f"{name} {value}" for name, value in fields.items() if value is not None]
            return str(fields.get("detail") or ", ".join(told))


def _cost(costs: Costs, tokens: Json) -> Json:
    generated = tokens["completion"] or tokens["durable"]
    saved = None if costs.on_demand_usd is None else costs.on_demand_usd - costs.spent_usd
    return {
        "spent_usd": costs.spent_usd,
        "on_demand_usd": costs.on_demand_usd,
        "predicted_usd": costs.predicted_usd,
        "saved_usd": saved,
        "usd_per_million_tokens": 1e6 * costs.spent_usd / generated if generated else None,
        "by_pool": [asdict(pool) for pool in costs.by_pool],
    }


def _plan(bucket: Bucket, job_id: str) -> Json | None:
    """What the fleet was to run before it was told to leave."""
    logged = [info.key for info in bucket.list(keys.plans(job_id))]
    for key in reversed(logged[-_PLANS_LOOKED_AT:]):
        desired = Desired.from_json(claims.load(key, bucket.get(key))["desired"])
        if desired.pipelines:
            number = int(key.rsplit("/", 1)[1].removesuffix(".json"))
            return {"number": number, "plans": len(logged), "pipelines": desired.to_json()["pipelines"]}
    return None


def _machines(snapshot: Snapshot, launches: Sequence[LaunchRecord], history: History, span: report_series.Span) -> Json:
    began, end = span
    killed = {str(one.fields.get("worker")): one.unix_s for one in history.events if one.kind == "worker_killed"}
    lanes = [_machine_lane(launch, began, snapshot) for launch in launches]
    if not lanes:
        lanes = [_worker_lane(worker, began, killed.get(worker.incarnation)) for worker in snapshot.workers]
    lanes.sort(key=lambda lane: (lane["begin_s"] if lane["begin_s"] is not None else end, lane["id"]))
    return {"total": len(lanes), "lanes": lanes[:MOST_LANES]}


def _machine_lane(launch: LaunchRecord, began: float, snapshot: Snapshot) -> Json:
    end = launch.ended_unix_s
    mine = [worker for worker in snapshot.workers if worker.facts.get("node") == launch.id]
    return {
        "id": launch.id,
        "kind": "node",
        "place": launch.offer,
        "market": launch.market,
        "usd_per_h": launch.usd_per_h,
        "begin_s": round(launch.launched_unix_s - began, 3),
        "end_s": None if end is None else round(end - began, 3),
        "state": "running" if end is None else launch.ended_why or "ended",
        "rows": sum(worker.count("rows_finished") for worker in mine),
        "tokens": sum(worker.count("tokens_generated") for worker in mine),
    }


def _worker_lane(worker: WorkerView, began: float, killed_unix_s: float | None) -> Json:
    begin = worker.facts.get("started_unix_s")
    end = killed_unix_s if killed_unix_s is not None else worker.facts.get("ended_unix_s")
    return {
        "id": worker.incarnation,
        "kind": "worker",
        "place": f"{worker.facts.get('host', '?')}, worker {worker.facts.get('slot', '?')}",
        "begin_s": None if begin is None else round(begin - began, 3),
        "end_s": None if end is None else round(end - began, 3),
        "state": worker.state,
        "rows": worker.count("rows_finished"),
        "tokens": worker.count("tokens_generated"),
        "resumed": worker.count("resumed"),
    }


def _outputs(final: Final | None, output_url: str | None) -> Json:
    def parts(of: Sequence[Part]) -> list[Json]:
        return [{"path": part.path, "rows": part.rows, "bytes": part.bytes} for part in of[:MOST_PARTS]]

    return {
        "url": output_url,
        "format": None if final is None else final.format,
        "data": [] if final is None else parts(final.data),
        "rejects": [] if final is None else parts(final.rejects),
        "files": 0 if final is None else len(final.paths),
    }

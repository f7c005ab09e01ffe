"""The controller as a process: one `ControllerLoop` on a real clock, and how it is started so that it outlives us."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from typing import Any

from shuntserve import telemetry
from shuntserve.catalog import load_catalog, user_directory
from shuntserve.core.ledger import Rules
from shuntserve.core.manifest import Manifest
from shuntserve.core.offers import Want
from shuntserve.core.resolved import ResolvedJob
from shuntserve.errors import ShuntServeError, Unavailable
from shuntserve.fleet.controller import ControllerLoop
from shuntserve.fleet.controller_lease import ControllerLease
from shuntserve.fleet.controller_memory import ControllerTimes, Work
from shuntserve.fleet.prediction import Prediction, predict
from shuntserve.fleet.provider import Provider
from shuntserve.job import control, fleet_records, machine
from shuntserve.job.adjust import current_job
from shuntserve.job.carried import carried_type
from shuntserve.job.final import Final, load_final
from shuntserve.job.finalize import finalize
from shuntserve.job.ingest import ingest
from shuntserve.job.local import LocalWorkers
from shuntserve.job.report import costs_of, write_report
from shuntserve.job.run import NO_ENGINE, RunRequest, output_place, worker_plan
from shuntserve.job.worker_main import monotonic_s
from shuntserve.metrics import Metrics, serve_if_asked, tell_controller
from shuntserve.settings import Settings, settings
from shuntserve.store import keys
from shuntserve.store.port import Bucket
from shuntserve.tracing import traced


def work_of(request: RunRequest, bucket: Bucket, job_id: str) -> Work:
    """The long parts of the job on this machine."""

    def finish(job: ResolvedJob, manifest: Manifest) -> Final:
        place = output_place(bucket, job)
        place.reserve(job_id, bucket.url, overwrite=request.overwrite)
        return finalize(bucket, job, manifest, carried_type(job), place, uuid.uuid4().hex)

    def closer(job: ResolvedJob) -> LocalWorkers:
        plan = worker_plan(request, bucket, job)
        log_dir = request.log_dir(job_id) / "closer"
        return LocalWorkers(
            bucket, replace(plan, environments=[{}], engine=NO_ENGINE, engine_options={}, log_dir=log_dir)
        )

    def report(job: ResolvedJob, manifest: Manifest, final: Final) -> None:
        now_unix_s = time.time()
        launches = fleet_records.load_launches(bucket, job_id).values()
        url = output_place(bucket, job).url
        proposal = fleet_records.read(bucket, keys.proposal(job_id)) or {}
        predicted = (proposal.get("prediction") or {}).get("usd_at_most")
        costs = costs_of(list(launches), now_unix_s, predicted)
        write_report(bucket, job, manifest, final, costs, now_unix_s=now_unix_s, output_url=url)

    def prediction(job: ResolvedJob, manifest: Manifest, wants: tuple[Want, ...]) -> Prediction | None:
        return predict(bucket, job, manifest, wants, load_catalog(user_directory()))

    return Work(
        current=lambda: current_job(bucket, job_id),
        ingest=lambda job: ingest(bucket, job),
        finalize=finish,
        report=report,
        predict=prediction,
        closer=closer,
    )


def run_controller(
    request: RunRequest, bucket: Bucket, job_id: str, provider: Provider, times: ControllerTimes | None = None
) -> int | None:
    """Act for the job, or stand by until the one that acts is gone. Returns the job's exit code, None when asked to
    leave before its end. Raises why the job cannot be run.

    SIGTERM and SIGINT make it leave: machines go on, and another controller takes over.
    """
    asked = settings()
    with traced(asked.otlp_endpoint, asked.otlp_protocol, "shuntserve-controller", job=job_id):
        return _run(request, bucket, job_id, provider, times, asked)


def _run(
    request: RunRequest,
    bucket: Bucket,
    job_id: str,
    provider: Provider,
    times: ControllerTimes | None,
    asked: Settings,
) -> int | None:
    job = current_job(bucket, job_id)
    here = {
        "host": socket.gethostname(),
        "place": machine.place(),
        "pid": os.getpid(),
        "started_unix_s": time.time(),
    }
    metrics = Metrics(job_id=job_id)
    serving = serve_if_asked(metrics, asked.metrics_port, asked.metrics_address)
    if serving is not None:
        here["metrics"] = serving.target
    loops: list[ControllerLoop] = []

    def facts() -> dict[str, Any]:
        return {**here, "told_unix_s": time.time(), **(loops[0].facts() if loops else {})}

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: loops[0].leave() if loops else sys.exit(0))
    while True:
        rules = Rules(lease_s=job.operations.lease_s)
        lease = ControllerLease(bucket, job_id, rules, lambda: secrets.token_hex(16), facts)
        loop = ControllerLoop(bucket, job, provider, lease, work_of(request, bucket, job_id), monotonic_s, times)
        loops[:] = [loop]
        try:
            while not loop.over:
                delay_s = loop.tick(monotonic_s(), time.time())
                if serving is not None:
                    _tell_metrics(metrics, loop, lease.epoch)
                time.sleep(delay_s)
        finally:
            loop.close()
            _sign_off(lease)
        if loop.failure is not None:
            raise loop.failure
        if loop.exit_code is None or not _goes_on(bucket, job_id):
            return loop.exit_code


def _tell_metrics(metrics: Metrics, loop: ControllerLoop, epoch: int | None) -> None:
    job, snapshot, nodes = loop.newest or (None, None, {})
    tell_controller(
        metrics,
        snapshot,
        state=loop.state,
        epoch=-1 if epoch is None else epoch,
        nodes=nodes,
        spent_usd=loop.spent_usd,
        usd_per_h=loop.usd_per_h,
        max_cost_usd=None if job is None else job.operations.max_cost_usd,
        deadline_unix_s=None if job is None else job.operations.deadline_unix_s,
    )


def _goes_on(bucket: Bucket, job_id: str) -> bool:
    """Whether a pause was taken back, or the job cancelled, while we were leaving because of the pause.

    Whoever did that looked for a controller afterwards, and may have seen this one still at work. So this is asked
    after the sign-off: one of the two sees the other.
    """
    try:
        standing = control.standing(bucket, job_id)
        waits = standing.paused is not None and standing.stopped is None
        return not waits and load_final(bucket, job_id) is None
    except Unavailable as error:
        telemetry.emit(telemetry.Event.STORE_UNAVAILABLE, what="controller", job=job_id, error=str(error))
        return False


def _sign_off(lease: ControllerLease) -> None:
    """Best effort: the lease would do as well."""
    try:
        lease.release()
    except ShuntServeError as error:
        telemetry.emit(telemetry.Event.STORE_UNAVAILABLE, what="controller sign-off", error=str(error))


def command(request: RunRequest, job_id: str) -> list[str]:
    """The command line of a controller that runs as `request` says."""
    argv = [sys.executable, "-m", "shuntserve.cli.app", "controller", job_id, "--store", request.store_url]
    argv += ["--data-dir", str(request.data_dir)]
    if request.overwrite:
        argv += ["--overwrite"]
    if request.engine is not None:
        argv += ["--worker-engine", request.engine]
    if request.engine_options:
        argv += ["--worker-engine-options", json.dumps(dict(request.engine_options))]
    return argv


def start_detached(request: RunRequest, job_id: str) -> int:
    """Start a controller that outlives this process; its process id. Its log is in the job's log directory."""
    log_dir = request.log_dir(job_id)
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        with (log_dir / "controller.jsonl").open("ab") as log:
            child = subprocess.Popen(
                command(request, job_id), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
    except OSError as error:
        raise Unavailable("controller", f"cannot be started: {error}", f"see {log_dir}") from error
    return child.pid


def end_machines(provider: Provider, job_id: str) -> list[str]:
    """Terminate every machine of the job at once, drained or not; their ids. Raises Unavailable."""
    ended = [machine.id for machine in provider.machines(job_id)]
    for launch_id in ended:
        provider.terminate(job_id, launch_id, at_once=True)
    return ended

"""The worker process: one worker loop on real threads, a real clock and real signals.

    python -m shuntserve.job.worker_main --store URL --job ID --engine module:function [--log-dir DIR]

SIGTERM and SIGINT drain (checkpoint, give back, exit); SIGUSR1 checkpoints at once and goes on (an interruption
notice with time left). When standard input reaches its end, whoever started this worker is gone, and it drains as
well: start it with a pipe that stays open, or with `--detached`.

`--engine` names a function `(job, log_dir, options) -> engine factory`, so that this module needs to know no engine.
Log events go to standard error as JSON lines.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

from shuntserve import telemetry
from shuntserve.core.ledger import Rules
from shuntserve.core.manifest import Manifest
from shuntserve.core.resolved import ResolvedJob
from shuntserve.engine.port import Engine
from shuntserve.errors import InvalidInput, ShuntServeError
from shuntserve.job import claims, machine
from shuntserve.job.manifests import load_manifest
from shuntserve.job.submission import load_job
from shuntserve.job.threads import ThreadSpawner
from shuntserve.job.worker import WorkerLoop
from shuntserve.job.worker_config import WorkerConfig
from shuntserve.metrics import Metrics, serve_if_asked, tell_worker
from shuntserve.settings import settings
from shuntserve.store import keys
from shuntserve.store.open import open_bucket
from shuntserve.store.port import Bucket
from shuntserve.tracing import traced

_TELL_INTERVAL_S = 1.0

EngineMaker = Callable[[ResolvedJob, Path, Mapping[str, Any]], Callable[[], Engine] | None]


class Exit(IntEnum):
    """How a worker process ended."""

    DONE = 0
    """Every chunk of the job is committed."""
    FAILED = 1
    """It cannot work here; the reason is the last line of its standard error."""
    DRAINED = 10
    """Stopped on request; everything it had is durable and given back."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one worker to its end."""
    arguments = _parse(argv)
    telemetry.log_to(sys.stderr, arguments.log_level, job=arguments.job, node=arguments.node, slot=arguments.slot)
    here = settings()
    place = {"job": arguments.job, "node": arguments.node, "slot": arguments.slot}
    with traced(here.otlp_endpoint, here.otlp_protocol, "shuntserve-worker", **place):
        try:
            return int(_work(arguments))
        except ShuntServeError as error:
            telemetry.emit(telemetry.Event.WORKER_EXITED, outcome="failed", error=str(error))
            return int(Exit.FAILED)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="shuntserve-worker", description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--engine", default="shuntserve.wiring:vllm_engine")
    parser.add_argument("--engine-options", default="{}", help="JSON, on top of the job's own engine options")
    parser.add_argument("--log-dir", type=Path, required=True)
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--checkpoint-interval", type=float, default=None, help="seconds; default: the job's")
    parser.add_argument("--slot", type=int, default=0, help="which of this machine's workers this is")
    parser.add_argument("--node", default=None, help="the machine of a fleet this worker is on")
    parser.add_argument(
        "--metrics-port", type=int, default=None, help="answer Prometheus there, 0: any; $SHUNTSERVE_METRICS_PORT"
    )
    parser.add_argument("--detached", action="store_true", help="do not watch standard input for the parent's end")
    return parser.parse_args(argv)


def load_engine_maker(name: str) -> EngineMaker:
    """The function named "module:function"; raises InvalidInput when there is none."""
    module, _, function = name.partition(":")
    try:
        maker: EngineMaker = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidInput(f"engine {name!r}", str(error), "name it as module:function") from error
    return maker


def worker_config(job: ResolvedJob, manifest: Manifest, checkpoint_interval_s: float | None) -> WorkerConfig:
    """What a worker loop needs to know. The lease is the job's alone: workers must agree on it."""
    lease_s = job.operations.lease_s
    return WorkerConfig(
        job_id=job.job_id,
        pages={page.page: page.key for page in manifest.pages},
        page_sha256={page.page: page.sha256 for page in manifest.pages},
        rules=Rules(lease_s=lease_s),
        checkpoint_interval_s=checkpoint_interval_s or job.operations.checkpoint_interval_s,
        renew_interval_s=lease_s / 5,
        survey_interval_s=min(2.0, lease_s / 5),
        control_interval_s=min(3.0, lease_s / 5),
    )


def _work(arguments: argparse.Namespace) -> Exit:
    bucket = open_bucket(arguments.store, mkdir=False)
    job = load_job(bucket, arguments.job)
    manifest = load_manifest(bucket, job.job_id)
    if manifest is None:
        raise InvalidInput(f"job {job.job_id}", "has not been ingested yet", "run ingest to its end first")
    maker = load_engine_maker(arguments.engine)
    factory = maker(job, arguments.log_dir, json.loads(arguments.engine_options))
    spawner = ThreadSpawner(bucket)
    incarnations: list[str] = []

    def new_incarnation() -> str:
        incarnations.append(secrets.token_hex(16))
        print(json.dumps({"incarnation": incarnations[-1]}), flush=True)  # noqa: T201 -- the parent reads it
        return incarnations[-1]

    facts = {
        "host": socket.gethostname(),
        "place": machine.place(),
        "pid": os.getpid(),
        "slot": arguments.slot,
        "node": arguments.node,
        "started_unix_s": time.time(),
    }
    metrics = Metrics(job_id=job.job_id, node=arguments.node, slot=arguments.slot)
    here = settings()
    port = here.metrics_port if arguments.metrics_port is None else arguments.metrics_port
    serving = serve_if_asked(metrics, port, here.metrics_address)
    if serving is not None:
        facts["metrics"] = serving.target
    loop = WorkerLoop(
        worker_config(job, manifest, arguments.checkpoint_interval),
        spawner,
        factory,
        new_incarnation,
        random.Random(secrets.randbits(64)),
        facts,
    )
    _listen(loop, watch_parent=not arguments.detached)
    telemetry.emit(telemetry.Event.WORKER_STARTED, worker=loop.lease.incarnation, job=job.job_id, pid=os.getpid())
    try:
        _turn(loop, lambda: tell_worker(metrics, loop.report(), model=job.model) if serving is not None else None)
    finally:
        if loop.engine is not None:
            loop.engine.stop()
        spawner.close()
    _sign_off(bucket, job.job_id, incarnations, loop)
    if loop.failure is not None:
        raise loop.failure
    telemetry.emit(telemetry.Event.WORKER_EXITED, worker=loop.lease.incarnation, outcome=loop.outcome)
    return Exit.DONE if loop.outcome == "done" else Exit.DRAINED


def _turn(loop: WorkerLoop, tell: Callable[[], None]) -> None:
    """Tick until the loop has an outcome; waiting is done in the engine's poll. `tell` is called now and then."""
    delay_s = 0.0
    tell_at_s = monotonic_s()
    while loop.outcome is None:
        engine = loop.engine
        if engine is not None:
            events = engine.poll(delay_s)
        else:
            events = []
            time.sleep(delay_s)
        now_s = monotonic_s()
        delay_s = loop.tick(now_s, events)
        if now_s >= tell_at_s:
            tell_at_s = now_s + _TELL_INTERVAL_S
            tell()
        if engine is not None and loop.engine is not engine:
            engine.stop()


def monotonic_s() -> float:
    """A clock that also counts while the machine is suspended, as every observer's does."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def _listen(loop: WorkerLoop, *, watch_parent: bool) -> None:
    """Signals set flags in the loop; so does the end of standard input."""
    signal.signal(signal.SIGTERM, lambda number, frame: loop.drain("SIGTERM"))
    signal.signal(signal.SIGINT, lambda number, frame: loop.drain("SIGINT"))
    signal.signal(signal.SIGUSR1, lambda number, frame: loop.flush())
    if watch_parent:
        threading.Thread(target=_until_orphaned, args=(loop,), name="parent", daemon=True).start()


def _until_orphaned(loop: WorkerLoop) -> None:
    # Not through `sys.stdin`: a thread that waits inside its buffer makes the interpreter abort as it ends.
    while os.read(0, 4096):
        pass
    loop.drain("the process that started this worker is gone")


def _sign_off(bucket: Bucket, job_id: str, incarnations: Sequence[str], loop: WorkerLoop) -> None:
    """Say that we are gone, so that nobody waits for a lease to run out. Best effort: the lease would do as well."""
    for incarnation in incarnations:
        facts = {**loop.report(), "ended_unix_s": time.time()} if incarnation == loop.lease.incarnation else {}
        try:
            bucket.put(keys.worker(job_id, incarnation), claims.worker_body(incarnation, -1, gone=True, facts=facts))
        except ShuntServeError as error:
            telemetry.emit(telemetry.Event.STORE_UNAVAILABLE, worker=incarnation, what="sign-off", error=str(error))


if __name__ == "__main__":
    sys.exit(main())

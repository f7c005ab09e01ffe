"""A job on this machine from spec to output: submit, reserve the output, ingest, work, finalize.

The outermost runner of a local job: the one place that waits. Any phase may be cut off anywhere, and the whole run
again.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from shuntserve import telemetry
from shuntserve.core.engine_options import ENGINE_OPTIONS
from shuntserve.core.resolved import ResolvedJob
from shuntserve.core.shares import default_workers, shares
from shuntserve.core.specs import JobSpec
from shuntserve.core.states import Pause, StopCode, ended_exit_code, paused_exit_code
from shuntserve.errors import InvalidInput, ShuntServeError
from shuntserve.job import control, machine
from shuntserve.job.carried import carried_type
from shuntserve.job.final import Final, load_final
from shuntserve.job.finalize import finalize
from shuntserve.job.ingest import IngestProgress, ingest
from shuntserve.job.local import LocalWorkers, WorkerPlan
from shuntserve.job.local_run import LocalRun
from shuntserve.job.manifests import load_manifest
from shuntserve.job.output_place import OutputPlace
from shuntserve.job.report import load_report, write_report
from shuntserve.job.submission import load_job, submit_spec
from shuntserve.job.timeline import Timeline
from shuntserve.job.watch import Snapshot
from shuntserve.store.check import check_bucket
from shuntserve.store.open import open_bucket
from shuntserve.store.port import Bucket

NO_ENGINE = "shuntserve.wiring:no_engine"
"""What a worker runs that only commits what is left of a stopped job."""

_MEMORY_OPTIONS = frozenset({"gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override"})
"""With one of these the user has decided how much memory an engine takes."""

KILL_AFTER_S = 60.0
"""Workers that have not drained by then are killed; what they had checkpointed stays."""


@dataclass(frozen=True, slots=True)
class RunRequest:
    """How to run jobs on this machine."""

    store_url: str
    data_dir: Path
    workers: int | None = None
    """None: one for each group of GPUs, or one with all cores."""
    overwrite: bool = False
    cuda_visible_devices: str | None = None
    size_kv_cache: bool = True
    """On a CPU, give each worker's KV cache a part of the free memory, unless the engine options say how much."""
    log_level: str = "info"
    engine: str | None = None
    engine_options: Mapping[str, Any] = field(default_factory=dict)

    def log_dir(self, job_id: str) -> Path:
        """Where the job's processes on this machine log."""
        return self.data_dir / "logs" / job_id


class Reporter(Protocol):
    """Is told how far a run is; never slows it down."""

    def inspecting(self, bytes_done: int, bytes_total: int) -> None: ...

    def submitted(self, job: ResolvedJob, output_url: str) -> None: ...

    def ingesting(self, progress: IngestProgress) -> None: ...

    def working(self, snapshot: Snapshot, workers_running: int, *, draining: bool) -> None: ...

    def gave_up(self, reason: ShuntServeError) -> None: ...

    def finalizing(self, chunks_done: int, chunks: int) -> None: ...


class Silent:
    """Reports nothing."""

    def inspecting(self, bytes_done: int, bytes_total: int) -> None:
        pass

    def submitted(self, job: ResolvedJob, output_url: str) -> None:
        pass

    def ingesting(self, progress: IngestProgress) -> None:
        pass

    def working(self, snapshot: Snapshot, workers_running: int, *, draining: bool) -> None:
        pass

    def gave_up(self, reason: ShuntServeError) -> None:
        pass

    def finalizing(self, chunks_done: int, chunks: int) -> None:
        pass


class StopSwitch:
    """How a run is told to end early: once to drain, twice to end at once. May be pressed from a signal handler."""

    def __init__(self) -> None:
        self.working = False
        """Workers are running, so that there is something to drain. In other phases a run can simply be broken off."""
        self._pressed = 0
        self._wake = threading.Event()

    def press(self) -> None:
        self._pressed += 1
        self._wake.set()

    @property
    def drain(self) -> bool:
        return self._pressed >= 1

    @property
    def kill(self) -> bool:
        return self._pressed >= 2

    def wait(self, timeout_s: float) -> None:
        """Wait, but not after the next press."""
        if self._wake.wait(timeout_s):
            self._wake.clear()


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended: with the job's end (`final`), or with a pause after which the same run goes on."""

    job: ResolvedJob
    output_url: str
    snapshot: Snapshot
    elapsed_s: float
    final: Final | None = None
    pause: Pause | None = None

    @property
    def exit_code(self) -> int:
        """See `core.states`."""
        if self.final is not None:
            return ended_exit_code(self.final.state, self.final.counts, self.job.operations.max_reject_fraction)
        return paused_exit_code(self.pause or Pause.DRAINED)

    def summary(self) -> dict[str, Any]:
        """What `--json` prints."""
        final = self.final
        return {
            "job": self.job.job_id,
            "state": str(final.state) if final else "PAUSED",
            "paused_by": None if final or self.pause is None else str(self.pause),
            "rows_in": self.snapshot.rows_in,
            "rows_out": final.counts.rows_out if final else None,
            "rows_rejected": final.counts.rows_rejected if final else None,
            "rows_ended": self.snapshot.rows_ended,
            "interruptions": self.snapshot.interruptions,
            "resumed_rows": final.totals.resumed_rows if final else None,
            "tokens_kept": final.totals.tokens_kept if final else None,
            "tokens_regenerated": self.snapshot.tokens_regenerated,
            "prompt_tokens": final.totals.prompt_tokens if final else None,
            "completion_tokens": final.totals.completion_tokens if final else None,
            "duplicates": final.duplicates if final else None,
            "missing": final.missing if final else None,
            "output": self.output_url,
            "elapsed_s": round(self.elapsed_s, 3),
        }


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job in its store, with its output reserved."""

    bucket: Bucket
    job: ResolvedJob
    place: OutputPlace


def submit_job(request: RunRequest, spec: JobSpec, reporter: Reporter) -> Submitted:
    """Put the job into the store (the same submission is the same job) and reserve its output. Runs nothing."""
    bucket = open_store(request.store_url)
    job = submit_spec(bucket, spec, on_bytes=reporter.inspecting)
    place = output_place(bucket, job)
    place.reserve(job.job_id, bucket.url, overwrite=request.overwrite)
    telemetry.emit(telemetry.Event.JOB_SUBMITTED, job=job.job_id, store=bucket.url, output=place.url)
    return Submitted(bucket, job, place)


def run_job(request: RunRequest, spec: JobSpec, reporter: Reporter, stop: StopSwitch) -> RunResult:
    """Submit a job and run it to its end, or until `stop` is pressed. Raises the reason when it cannot be run."""
    return run_submitted(request, submit_job(request, spec, reporter), reporter, stop)


def run_submitted(request: RunRequest, submitted: Submitted, reporter: Reporter, stop: StopSwitch) -> RunResult:
    """Run a job that is in its store."""
    bucket, job = submitted.bucket, submitted.job
    reporter.submitted(job, submitted.place.url)
    return _run(submitted, lambda: worker_plan(request, bucket, job), reporter, stop)


def cancel_job(request: RunRequest, bucket: Bucket, job_id: str, reporter: Reporter, stop: StopSwitch) -> RunResult:
    """Stop a job for good and write its output. Needs no engine.

    Workers elsewhere commit what they hold; a worker of our own, without an engine, commits the rest. A job that has
    ended already stays as it ended.
    """
    job = load_job(bucket, job_id)
    place = output_place(bucket, job)
    place.reserve(job_id, bucket.url, overwrite=False)
    reporter.submitted(job, place.url)
    if load_final(bucket, job_id) is None:
        control.stop(bucket, job_id, uuid.uuid4().hex, StopCode.CANCELLED)

    def plan() -> WorkerPlan:
        return replace(worker_plan(request, bucket, job), environments=[{}], engine=NO_ENGINE, engine_options={})

    return _run(Submitted(bucket, job, place), plan, reporter, stop)


def _run(submitted: Submitted, plan: Callable[[], WorkerPlan], reporter: Reporter, stop: StopSwitch) -> RunResult:
    began_s = time.monotonic()
    bucket, job, place = submitted.bucket, submitted.job, submitted.place
    timeline = Timeline(bucket, job.job_id, f"run-{uuid.uuid4().hex[:12]}")
    with _phase(timeline, "ingest", wanted=load_manifest(bucket, job.job_id) is None):
        manifest = ingest(bucket, job, on_progress=reporter.ingesting)
    run = LocalRun(bucket, job, manifest, LocalWorkers(bucket, plan()), timeline)
    ended = load_final(bucket, job.job_id) is not None
    with _phase(timeline, "run", wanted=not ended):
        snapshot = _work(run, reporter, stop)
        if run.pause is not None:
            timeline.event(time.time(), "pause", reason=str(run.pause))
    final = None
    if run.pause is None:
        with _phase(timeline, "finalize", wanted=not ended):
            final = finalize(
                bucket,
                job,
                manifest,
                carried_type(job),
                place,
                uuid.uuid4().hex,
                lambda done: reporter.finalizing(done, manifest.chunks),
            )
        telemetry.emit(telemetry.Event.JOB_FINISHED, job=job.job_id, state=str(final.state))
        if not ended or load_report(bucket, job.job_id) is None:
            write_report(bucket, job, manifest, final, None, now_unix_s=time.time(), output_url=place.url)
    return RunResult(job, place.url, snapshot, time.monotonic() - began_s, final=final, pause=run.pause)


@contextmanager
def _phase(timeline: Timeline, name: str, *, wanted: bool) -> Iterator[None]:
    """Put the begin and the end of a phase on the job's timeline, however it ends, unless it has nothing to do."""
    if wanted:
        timeline.event(time.time(), "phase_started", phase=name)
    try:
        yield
    finally:
        if wanted:
            timeline.event(time.time(), "phase_ended", phase=name)
            timeline.flush(time.time(), force=True)


def open_store(url: str) -> Bucket:
    """The bucket, tried. Raises what is wrong with it."""
    bucket = open_bucket(url)
    if bucket.url.startswith("memory:"):
        raise InvalidInput(
            f"store {url}", "is in one process's memory, workers are processes", "name a directory or s3://"
        )
    check_bucket(bucket)
    return bucket


def output_place(bucket: Bucket, job: ResolvedJob) -> OutputPlace:
    """Where the job's output goes: where the spec says, else `outbox/<job>` in the bucket."""
    return OutputPlace(open_bucket(job.operations.output or f"{bucket.url.rstrip('/')}/outbox/{job.job_id}"))


def worker_plan(request: RunRequest, bucket: Bucket, job: ResolvedJob) -> WorkerPlan:
    """Which workers to start. Engine options that may differ between runs of one job are this run's."""
    gpus = machine.gpus(request.cuda_visible_devices)
    each = int(job.engine.get("tensor_parallel_size", 1)) * int(job.engine.get("pipeline_parallel_size", 1))
    workers = request.workers or default_workers(len(gpus), each)
    mine = shares(workers, machine.cores(), machine.free_memory_bytes(), gpus, each)
    options = dict(request.engine_options)
    if request.engine is None:
        capacity = {name: value for name, value in job.engine.items() if not ENGINE_OPTIONS[name].changes_results}
        if mine[0].kv_cache_bytes is not None and request.size_kv_cache and not _MEMORY_OPTIONS & capacity.keys():
            capacity["kv_cache_memory_bytes"] = mine[0].kv_cache_bytes
        options = {"cpu_threads": mine[0].cpu_threads, "engine": capacity, **options}
    return WorkerPlan(
        store_url=bucket.url,
        job_id=job.job_id,
        environments=[share.environment for share in mine],
        log_dir=request.log_dir(job.job_id),
        log_level=request.log_level,
        checkpoint_interval_s=job.operations.checkpoint_interval_s,
        engine=request.engine,
        engine_options=options,
    )


def _work(run: LocalRun, reporter: Reporter, stop: StopSwitch) -> Snapshot:
    """Tick until all is committed or all workers have left. However this is left, no worker stays behind."""
    kill_at_s: float | None = None
    failures_told = 0
    stop.working = True
    try:
        while True:
            now_s = time.monotonic()
            delay_s = run.tick(now_s, time.time())
            if run.over:
                break
            if stop.drain:
                run.drain()
            if run.pause is not None and kill_at_s is None:
                kill_at_s = now_s + KILL_AFTER_S
            if stop.kill or (kill_at_s is not None and now_s >= kill_at_s):
                run.kill()
            for failure in run.failures[failures_told:]:
                reporter.gave_up(failure)
            failures_told = len(run.failures)
            if run.snapshot is not None:
                reporter.working(run.snapshot, run.workers_running, draining=run.pause is not None)
            stop.wait(delay_s)
    finally:
        run.end()
        stop.working = False
    assert run.snapshot is not None
    return run.snapshot

"""The Python interface: submit a job, wait for it, read what it made.

from shuntserve import JobSpec, submit

job = submit(JobSpec(input="prompts.parquet", model="Qwen/Qwen3-0.6B", output="out"))
job.wait()
job.results().to_table()
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from shuntserve.core.resolved import InputKind
from shuntserve.core.specs import JobSpec
from shuntserve.core.states import Pause, StopCode
from shuntserve.errors import Conflict
from shuntserve.fleet.controller_main import end_machines, start_detached
from shuntserve.job import control, fleet_records
from shuntserve.job.adjust import change, current_job, resubmitted
from shuntserve.job.final import load_final
from shuntserve.job.parts import Part
from shuntserve.job.run import (
    Reporter,
    RunRequest,
    RunResult,
    Silent,
    StopSwitch,
    Submitted,
    cancel_job,
    open_store,
    output_place,
    run_submitted,
    submit_job,
)
from shuntserve.job.status import JobStatus, job_status
from shuntserve.settings import settings
from shuntserve.store import keys
from shuntserve.wiring import check_fleet, provider_of

if TYPE_CHECKING:
    import pyarrow.dataset as ds

__all__ = ["Job", "JobSpec", "JobStatus", "RunResult", "StopSwitch", "attach", "submit"]


def submit(
    spec: JobSpec, *, store: str | Path | None = None, workers: int | None = None, overwrite: bool = False, **more: Any
) -> Job:
    """Put a job into the store and reserve its output; nothing runs yet.

    Submitting the same again gives the same job, run from now on as this submission asks. `store` is a directory or
    `s3://` URL (default: SHUNTSERVE_STORE, else a directory of the user's). Raises InvalidInput, NotFound or
    Unavailable, each with the next step.
    """
    request = request_for(store, workers=workers, overwrite=overwrite, **more)
    submitted = submit_job(request, spec, Silent())
    resubmitted(submitted.bucket, submitted.job, uuid.uuid4().hex)
    return Job(request, submitted)


def attach(job_id: str, *, store: str | Path | None = None, **more: Any) -> Job:
    """A job that was submitted before. Raises NotFound."""
    request = request_for(store, **more)
    bucket = open_store(request.store_url)
    job = current_job(bucket, job_id)
    return Job(request, Submitted(bucket, job, output_place(bucket, job)))


def request_for(store: str | Path | None, **more: Any) -> RunRequest:
    """How this process runs jobs: settings, with `more` over them."""
    here = settings()
    given = {
        "engine": here.worker_engine,
        "engine_options": json.loads(here.worker_engine_options),
        "size_kv_cache": here.vllm_cpu_kvcache_space is None,
        "data_dir": here.data_dir,
        **more,
    }
    return RunRequest(
        store_url=str(store) if store is not None else here.store_url,
        cuda_visible_devices=here.cuda_visible_devices,
        log_level=here.log_level,
        **given,
    )


@dataclass(frozen=True, slots=True)
class Job:
    """A submitted job. Run it here and wait (`wait`), or on a fleet, looked after by a process of its own (`start`)."""

    _request: RunRequest
    _submitted: Submitted

    @property
    def job_id(self) -> str:
        """Its id: the same for the same submission."""
        return self._submitted.job.job_id

    @property
    def output_url(self) -> str:
        """Where its output goes."""
        return self._submitted.place.url

    def status(self) -> JobStatus:
        """How it stands now."""
        return job_status(self._submitted.bucket, self.job_id)

    def wait(self, *, reporter: Reporter | None = None, stop: StopSwitch | None = None) -> RunResult:
        """Run the job with workers of this machine until it has ended, and write its output.

        Continues what was interrupted. Returns also when the job was paused (`result.pause`): by a limit, by
        `stop.press()` from another thread, or by somebody else. Raises the reason when no worker can work here.
        """
        return run_submitted(self._request, self._submitted, reporter or Silent(), stop or StopSwitch())

    def start(self) -> int | None:
        """Make sure that a controller looks after the job: a process that outlives this one.

        Returns its process id; None when one is at work already, or the job has ended. Raises InvalidInput for a fleet
        that can never be launched.
        """
        status = self.status()
        if status.final is not None and not status.fleet.open_launches:
            return None
        if status.controller_alive:
            return None
        check_fleet(self._request, self._submitted.job)
        return start_detached(self._request, self.job_id)

    def pause(self, reason: str = "requested") -> None:
        """Ask for a pause: everything becomes durable, machines go, nothing is lost. Returns at once.

        Raises Conflict when the job has ended.
        """
        self._must_go_on()
        control.pause(self._submitted.bucket, self.job_id, uuid.uuid4().hex, reason)

    def resume(self, **changes: Any) -> int | None:
        """Go on after a pause; `changes` are settings such as `max_reject_fraction=1`. Starts a controller."""
        self._must_go_on()
        bucket, writer = self._submitted.bucket, uuid.uuid4().hex
        if changes:
            change(bucket, self.job_id, changes, writer, time.time())
        control.resume(bucket, self.job_id, writer)
        return self.start()

    def _must_go_on(self) -> None:
        final = load_final(self._submitted.bucket, self.job_id)
        if final is not None and not self.status().fleet.open_launches:
            raise Conflict(
                f"job {self.job_id}", f"has ended as {final.state}", "read its output, or submit with --rerun"
            )

    def approve(self, by: str) -> bool:
        """Agree to the proposal as it stands; False when somebody has already. Makes sure a controller is at work.

        Raises Conflict while nothing is proposed.
        """
        bucket = self._submitted.bucket
        proposal = fleet_records.read(bucket, keys.proposal(self.job_id))
        if proposal is None:
            raise Conflict(f"job {self.job_id}", "has not proposed anything yet", "wait until it awaits approval")
        body = fleet_records.body(uuid.uuid4().hex, by=by)
        created = bucket.create(keys.approval(self.job_id, fleet_records.digest(proposal)), body)
        self.start()
        return created

    def stop(self, *, now: bool = False) -> None:
        """The brake: pause the job and end its machines. `now` ends them without letting them drain."""
        self.pause(str(Pause.REQUESTED))
        if not now and self.status().fleet.open_launches:
            self.start()  # somebody has to see the machines off
        if now:
            end_machines(provider_of(self._request, self._submitted.job), self.job_id)

    def cancel(self, *, wait: bool = True, reporter: Reporter | None = None) -> RunResult | None:
        """Stop it for good: rows that have not ended become rejects with what they had, and the output is written.

        By this process, or, without `wait`, by a controller.
        """
        bucket = self._submitted.bucket
        if wait:
            return cancel_job(self._request, bucket, self.job_id, reporter or Silent(), StopSwitch())
        if load_final(bucket, self.job_id) is None:
            control.stop(bucket, self.job_id, uuid.uuid4().hex, StopCode.CANCELLED)
            self.start()
        return None

    def report(self) -> dict[str, Any] | None:
        """What `report.json` holds; None while there is none."""
        from shuntserve.job.report import load_report

        return load_report(self._submitted.bucket, self.job_id)

    def results(self) -> ds.Dataset:
        """The answers. Raises Conflict while the job has not ended."""
        return self._dataset("data")

    def rejects(self) -> ds.Dataset:
        """Rows without an answer, each with code and message. Raises Conflict while the job has not ended."""
        return self._dataset("rejects")

    def _dataset(self, which: str) -> ds.Dataset:
        import pyarrow.dataset as ds

        manifest = self._submitted.place.manifest()
        if manifest is None or manifest["job"] != self.job_id:
            raise Conflict(f"job {self.job_id}", "has no output yet", "call wait() first")
        parts = [Part.from_json(part) for part in manifest[which]]
        form = "json" if manifest["format"] == InputKind.OPENAI_JSONL else "parquet"
        where = urlsplit(self.output_url)
        if where.scheme == "file":
            return ds.dataset([str(Path(unquote(where.path)) / part.path) for part in parts], format=form)
        import s3fs

        root = f"{where.netloc}{where.path}".rstrip("/")
        return ds.dataset([f"{root}/{part.path}" for part in parts], format=form, filesystem=s3fs.S3FileSystem())

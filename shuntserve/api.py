"""The Python interface: submit a job, wait for it, read what it made.

from shuntserve import JobSpec, submit

job = submit(JobSpec(input="prompts.parquet", model="Qwen/Qwen3-0.6B", output="out"))
job.wait()
job.results().to_table()
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from shuntserve.core.resolved import InputKind
from shuntserve.core.specs import JobSpec
from shuntserve.errors import Conflict
from shuntserve.job.parts import Part
from shuntserve.job.run import (
    Reporter,
    RunRequest,
    RunResult,
    Silent,
    StopSwitch,
    Submitted,
    cancel_job,
    run_submitted,
    submit_job,
)
from shuntserve.job.status import JobStatus, job_status
from shuntserve.settings import settings

if TYPE_CHECKING:
    import pyarrow.dataset as ds

__all__ = ["Job", "JobSpec", "JobStatus", "RunResult", "StopSwitch", "submit"]


def submit(
    spec: JobSpec, *, store: str | Path | None = None, workers: int | None = None, overwrite: bool = False, **more: Any
) -> Job:
    """Put a job into the store and reserve its output; nothing runs yet.

    Submitting the same again gives the same job. `store` is a directory or `s3://` URL (default: SHUNTSERVE_STORE, else
    a directory of the user's). Raises InvalidInput, NotFound or Unavailable, each with the next step.
    """
    here = settings()
    request = RunRequest(
        store_url=str(store) if store is not None else here.store_url,
        data_dir=here.data_dir,
        workers=workers,
        overwrite=overwrite,
        cuda_visible_devices=here.cuda_visible_devices,
        size_kv_cache=here.vllm_cpu_kvcache_space is None,
        log_level=here.log_level,
        **more,
    )
    return Job(request, submit_job(request, spec, Silent()))


@dataclass(frozen=True, slots=True)
class Job:
    """A submitted job."""

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

    def cancel(self, *, reporter: Reporter | None = None) -> RunResult:
        """Stop it for good: rows that have not ended become rejects with what they had, and the output is written."""
        bucket = self._submitted.bucket
        return cancel_job(self._request, bucket, self.job_id, reporter or Silent(), StopSwitch())

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

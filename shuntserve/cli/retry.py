"""`shuntserve retry`: a child job of a job's rejects."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from shuntserve.cli.common import AsJson, JobId, Store, existing_store
from shuntserve.cli.light import without_torch


def register(app: typer.Typer) -> None:
    """Add `retry`."""
    app.command()(retry)


def retry(
    job_id: JobId,
    store: Store = None,
    code: Annotated[
        list[str] | None, typer.Option(help="Only rows rejected with this code, e.g. engine_crash; repeat.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting that shall differ: max_tokens=512, deadline=2h; repeat."),
    ] = None,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Start its controller.")] = True,
    as_json: AsJson = False,
    worker_engine: Annotated[str | None, typer.Option("--worker-engine", hidden=True)] = None,
    worker_engine_options: Annotated[str, typer.Option("--worker-engine-options", hidden=True)] = "{}",
) -> None:
    """Run a job's rejects again, as a job of its own under the same settings. Ids are kept.

    The same retry again is the same job. Parameters that rows bring themselves stand over --set, as in any job.
    """
    without_torch()
    from shuntserve.api import submit
    from shuntserve.cli.spec_options import parse_values
    from shuntserve.job.retry import retry_spec

    bucket = existing_store(store)
    spec = retry_spec(bucket, job_id, code or (), **parse_values("--set", settings or ()))
    engine = (
        {} if worker_engine is None else {"engine": worker_engine, "engine_options": json.loads(worker_engine_options)}
    )
    job = submit(spec, store=bucket.url, **engine)
    pid = job.start() if start else None
    if as_json:
        print(json.dumps({"job": job.job_id, "parent": job_id, "output": job.output_url, "controller_pid": pid}))
        return
    print(job.job_id)
    print(f"output: {job.output_url}", file=sys.stderr)
    next_step = f"shuntserve status {job.job_id} --watch" if start else f"shuntserve resume {job.job_id}"
    print(f"{'watch' if start else 'start'} it: {next_step}", file=sys.stderr)

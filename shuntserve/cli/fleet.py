"""Commands for jobs on a fleet: submit, controller, pause, resume, approve, stop."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shuntserve.cli.common import existing_store
from shuntserve.cli.light import without_torch

if TYPE_CHECKING:
    from shuntserve.api import Job
    from shuntserve.job.run import RunRequest

Store = Annotated[
    str | None,
    typer.Option("--store", help="Where jobs are kept: a directory or s3:// URL. Default: $SHUNTSERVE_STORE."),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, as `shuntserve list` shows it.")]
Engine = Annotated[str | None, typer.Option("--worker-engine", hidden=True)]
EngineOptions = Annotated[str, typer.Option("--worker-engine-options", hidden=True)]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(no_args_is_help=True)(submit)
    app.command()(controller)
    app.command()(pause)
    app.command()(resume)
    app.command()(approve)
    app.command()(stop)


def submit(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT...", help="Parquet files or OpenAI batch JSONL: files, directories, globs, URLs."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="A model directory, or a name on the Hugging Face hub.")] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Default: outbox/JOB in the store.")] = None,
    store: Store = None,
    spec_file: Annotated[
        Path | None, typer.Option("--spec", help="A job.yaml with any settings; options given here stand over it.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="A readable name; it begins the job's id.")] = None,
    fleet: Annotated[str | None, typer.Option(help="local (this machine) or ec2.")] = None,
    pool: Annotated[
        list[str] | None,
        typer.Option(help="TYPE[/ZONE][/spot|on-demand]=COUNT[@PRICE]; repeat. On a local fleet: local=COUNT."),
    ] = None,
    pipeline: Annotated[
        list[str] | None,
        typer.Option(help="A replica over several machines: g6.12xlarge:tp=4:layers=20,g6e.xlarge:…; repeat."),
    ] = None,
    market: Annotated[str | None, typer.Option(help="prefer_spot, spot or on_demand.")] = None,
    max_cost_usd: Annotated[float | None, typer.Option(min=0, help="Stop before machines cost more.")] = None,
    deadline: Annotated[str | None, typer.Option(help="A duration (2h30m) or a moment with its zone.")] = None,
    approval: Annotated[str | None, typer.Option(help="never, over_budget or always.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting of a job: NAME=VALUE (JSON or text); repeat.")
    ] = None,
    rerun: Annotated[bool, typer.Option("--rerun", help="A new job even if this submission is one already.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another job's output.")] = False,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Start the controller.")] = True,
    as_json: AsJson = False,
    worker_engine: Engine = None,
    worker_engine_options: EngineOptions = "{}",
) -> None:
    """Put a job into the store and start its controller, which looks after it in the background."""
    without_torch()
    from shuntserve.api import submit as submit_spec
    from shuntserve.cli.spec_options import merged, parse_values, read_spec_file
    from shuntserve.core.specs import JobSpec

    given = {
        "input": inputs or None,
        "model": model,
        "output": output,
        "name": name,
        "fleet": fleet,
        "pools": pool or None,
        "pipelines": pipeline or None,
        "market": market,
        "max_cost_usd": max_cost_usd,
        "deadline": deadline,
        "approval": approval,
        "rerun": rerun or None,
    }
    values = merged(read_spec_file(spec_file) if spec_file is not None else {}, given)
    values = merged(values, parse_values("--set", settings or ()))
    job = submit_spec(
        JobSpec(**values), store=store, overwrite=overwrite, **_engine(worker_engine, worker_engine_options)
    )
    pid = job.start() if start else None
    if as_json:
        print(json.dumps({"job": job.job_id, "output": job.output_url, "controller_pid": pid}))
        return
    print(job.job_id)
    print(f"output: {job.output_url}", file=sys.stderr)
    watch = f"shuntserve status {job.job_id} --watch"
    print(f"watch it: {watch}" if start else f"start it: shuntserve resume {job.job_id}", file=sys.stderr)


def controller(
    job_id: JobId,
    store: Store = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where logs and local machines are kept.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another job's output.")] = False,
    worker_engine: Engine = None,
    worker_engine_options: EngineOptions = "{}",
) -> None:
    """Look after one job until it has ended, or stand by for whoever does. `submit` starts one by itself.

    Exits with the job's exit code; 0 also when it was asked to leave.
    """
    without_torch()
    from dataclasses import replace

    from shuntserve import telemetry
    from shuntserve.fleet.controller_main import run_controller
    from shuntserve.job.adjust import current_job
    from shuntserve.settings import settings
    from shuntserve.wiring import provider_of

    telemetry.log_to(sys.stderr, settings().log_level)
    bucket = existing_store(store)
    request = _request(bucket.url, worker_engine, worker_engine_options)
    request = replace(request, data_dir=data_dir or request.data_dir, overwrite=overwrite)
    provider = provider_of(request, current_job(bucket, job_id))
    raise typer.Exit(run_controller(request, bucket, job_id, provider) or 0)


def pause(job_id: JobId, store: Store = None) -> None:
    """Pause a job: what it has becomes durable, its machines end; `resume` goes on without losing a token."""
    _attach(job_id, store).pause()
    print(f"asked; go on with: shuntserve resume {job_id}", file=sys.stderr)


def resume(
    job_id: JobId,
    store: Store = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a limit: max_reject_fraction=1, max_cost_usd=20; repeat.")
    ] = None,
    worker_engine: Engine = None,
    worker_engine_options: EngineOptions = "{}",
) -> None:
    """Go on with a job that was paused, or whose controller is gone."""
    without_torch()
    from shuntserve.cli.spec_options import parse_values

    job = _attach(job_id, store, **_engine(worker_engine, worker_engine_options))
    pid = job.resume(**parse_values("--set", settings or ()))
    print("a controller is at work" if pid is None else f"started controller {pid}", file=sys.stderr)


def approve(job_id: JobId, store: Store = None) -> None:
    """Agree to what a job proposes to spend; see it with `status`."""
    import getpass

    if not _attach(job_id, store).approve(getpass.getuser()):
        print("somebody has agreed already", file=sys.stderr)


def stop(
    job_id: Annotated[str | None, typer.Argument(metavar="JOB")] = None,
    store: Store = None,
    every: Annotated[bool, typer.Option("--all", help="Every job of the store that has not ended.")] = False,
    now: Annotated[
        bool, typer.Option("--now", help="Do not wait until machines have made everything durable.")
    ] = False,
) -> None:
    """The brake: pause jobs and end their machines. Nothing committed is lost; `resume` goes on.

    With --all a job that cannot be stopped does not keep the others from it; the first such error is told at the end.
    """
    without_torch()
    from shuntserve.errors import InvalidInput, ShuntServeError
    from shuntserve.job.final import load_final
    from shuntserve.job.status import job_ids

    if (job_id is None) != every:
        raise InvalidInput("stop", "needs one job or --all", "for instance shuntserve stop JOB")
    if job_id is not None:
        _attach(job_id, store).stop(now=now)
        print(f"stopped {job_id}", file=sys.stderr)
        return
    bucket = existing_store(store)
    errors: list[ShuntServeError] = []
    for one in job_ids(bucket):
        try:
            if load_final(bucket, one) is None:
                _attach(one, store).stop(now=now)
                print(f"stopped {one}", file=sys.stderr)
        except ShuntServeError as error:
            print(f"not stopped: {one}: {error}", file=sys.stderr)
            errors.append(error)
    if errors:
        raise errors[0]


def _attach(job_id: str, store: str | None, **more: Any) -> Job:
    from shuntserve.api import attach

    return attach(job_id, store=existing_store(store).url, **more)


def _engine(worker_engine: str | None, options: str) -> dict[str, Any]:
    """What stands over the environment's choice of an engine."""
    return {} if worker_engine is None else {"engine": worker_engine, "engine_options": json.loads(options)}


def _request(store_url: str, worker_engine: str | None, options: str) -> RunRequest:
    from shuntserve.api import request_for

    return request_for(store_url, **_engine(worker_engine, options))

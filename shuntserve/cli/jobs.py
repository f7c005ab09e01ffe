"""Commands that look at jobs or end them: list, status, wait, cancel."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from shuntserve.cli.common import AsJson, JobId, Store, console, existing_store, log_file
from shuntserve.cli.light import without_torch
from shuntserve.core.states import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from rich.table import Table

    from shuntserve.job.status import JobStatus

EXIT_TIMEOUT = 124
"""As timeout(1) has it: the job goes on."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("list")(list_jobs)
    app.command()(status)
    app.command()(wait)
    app.command()(cancel)


def list_jobs(store: Store = None, as_json: AsJson = False) -> None:
    """All jobs of a store."""
    from rich.markup import escape
    from rich.table import Table

    from shuntserve.job.status import all_jobs

    jobs = list(all_jobs(existing_store(store)))
    if as_json:
        for job in jobs:
            print(json.dumps(job.to_json()))
        return
    if not jobs:
        print("no jobs yet")
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("job", "state", "rows", "rejected", "workers", "model"):
        table.add_column(title)
    for job in jobs:
        cells = (job.job.job_id, job.state, _rows(job), _rejected(job), str(job.live_workers or ""), job.job.model)
        table.add_row(*map(escape, cells))
    console().print(table)


def status(
    job_id: JobId,
    store: Store = None,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again until the job has ended.")] = False,
) -> None:
    """How one job stands."""
    from shuntserve.job.status import job_status

    bucket = existing_store(store)
    if watch:
        from shuntserve.cli.watching import watch_status

        try:
            watch_status(lambda: job_status(bucket, job_id), status_table, as_json=as_json)
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        return
    job = job_status(bucket, job_id)
    if as_json:
        print(json.dumps(job.to_json()))
    else:
        console().print(status_table(job))


def status_table(job: JobStatus) -> Table:
    """One job's standing in words."""
    from rich.markup import escape
    from rich.table import Table

    from shuntserve.readable import duration, usd

    told = job.to_json()
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("job", job.job.job_id)
    table.add_row("state", job.state + (f" ({escape(str(job.standing.paused))})" if job.state == "PAUSED" else ""))
    if job.job.parent is not None:
        codes = f" ({', '.join(job.job.retry_codes)})" if job.job.retry_codes else ""
        table.add_row("retry of", escape(job.job.parent + codes))
    table.add_row("model", escape(job.job.model))
    table.add_row("rows", _rows(job))
    table.add_row("rejected", _rejected(job))
    if job.snapshot is not None:
        table.add_row("chunks committed", f"{job.snapshot.chunks_committed:,} of {job.snapshot.chunks:,}")
        table.add_row("interruptions", f"{len(told['interruptions']) or job.snapshot.interruptions:,}")
    if job.fleet.launches:
        cap = told["cost"]["cap_usd"]
        limit = "" if cap is None else f" of at most {usd(cap)}"
        table.add_row("cost", f"{usd(told['cost']['spent_usd'])}{limit}, {usd(told['cost']['usd_per_h'])} an hour now")
    if job.remaining_s is not None:
        table.add_row("time left", f"about {duration(job.remaining_s)} at this pace")
    for node in told["nodes"]:
        notice = f", to be taken at {node['notice']}" if node["notice"] else ""
        table.add_row("machine", escape(f"{node['id']} ({node['pool']}): {node['state']}{notice}"))
    for worker in job.workers:
        facts = worker.facts
        where = f"{facts.get('host', '?')} pid {facts.get('pid', '?')}"
        where += f" ({facts['node']})" if facts.get("node") else ""
        table.add_row(
            "worker", escape(f"{worker.state} on {where}, {worker.count('in_engine')} sequences in its engine")
        )
    if job.job.operations.output:
        table.add_row("output", escape(job.job.operations.output))
    if told["next_step"]:
        table.add_row("next", escape(told["next_step"]))
    return table


def _rows(job: JobStatus) -> str:
    return f"{job.snapshot.rows_ended:,} of {job.snapshot.rows_in:,}" if job.snapshot else "not read yet"


def _rejected(job: JobStatus) -> str:
    if job.final is not None:
        return f"{job.final.counts.rows_rejected:,}"
    return f"{job.snapshot.rejected:,}" if job.snapshot else ""


def wait(
    job_id: JobId,
    store: Store = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Give up after this long (2h30m): exit code 124.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Wait until a job has ended or is paused, and exit as `run` would have. Runs nothing itself."""
    from shuntserve.cli.watching import wait_for_end
    from shuntserve.core.specs import parse_duration_s
    from shuntserve.job.status import job_status

    bucket = existing_store(store)
    within_s = None if timeout is None else parse_duration_s(timeout)
    try:
        job = wait_for_end(lambda: job_status(bucket, job_id), within_s)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        print(json.dumps(job.to_json()))
    else:
        print(job.state)
    raise typer.Exit(EXIT_TIMEOUT if job.exit_code is None else job.exit_code)


def cancel(
    job_id: JobId,
    store: Store = None,
    as_json: AsJson = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Write the output here, or leave it to a controller.")
    ] = True,
) -> None:
    """Stop a job for good: rows that have not ended become rejects, with what they had; the output is written."""
    if not wait:
        from shuntserve.api import attach

        without_torch()
        attach(job_id, store=existing_store(store).url).cancel(wait=False)
        print("asked; a controller writes the output", file=sys.stderr)
        return
    from shuntserve import telemetry
    from shuntserve.cli.interrupts import interrupts
    from shuntserve.cli.progress import TerminalReporter
    from shuntserve.job.run import RunRequest, StopSwitch, cancel_job
    from shuntserve.settings import settings

    without_torch()
    here = settings()
    bucket = existing_store(store)
    request = RunRequest(store_url=bucket.url, data_dir=here.data_dir, log_level=here.log_level)
    stop = StopSwitch()
    with log_file(here.data_dir) as log:
        telemetry.log_to(log, here.log_level)
        with TerminalReporter(sys.stderr) as reporter, interrupts(stop):
            result = cancel_job(request, bucket, job_id, reporter, stop)
            reporter.ended(result, f"shuntserve cancel {job_id}")
    if as_json:
        print(json.dumps(result.summary()))

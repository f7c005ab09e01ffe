"""Commands that look at jobs or stop them: list, status, rows, cancel."""

from __future__ import annotations

import json
import sys
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from shuntserve.cli.common import existing_store, log_file
from shuntserve.cli.light import without_torch

if TYPE_CHECKING:
    from rich.console import Console

    from shuntserve.job.row_view import RowView
    from shuntserve.job.status import JobStatus

_PIPED_WIDTH = 400
"""A program or a file that reads a table is given whole lines."""

Store = Annotated[
    str | None,
    typer.Option("--store", help="Where jobs are kept: a directory or s3:// URL. Default: $SHUNTSERVE_STORE."),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, as `shuntserve list` shows it.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("list")(list_jobs)
    app.command()(status)
    app.command()(cancel)
    rows = typer.Typer(help="What became of single rows.", no_args_is_help=True)
    rows.command("show")(show_row)
    rows.command("rejected")(rejected)
    app.add_typer(rows, name="rows")


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPED_WIDTH)


def list_jobs(store: Store = None, as_json: AsJson = False) -> None:
    """All jobs of a store."""
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
        table.add_row(job.job.job_id, job.state, _rows(job), _rejected(job), str(job.live_workers or ""), job.job.model)
    _console().print(table)


def status(job_id: JobId, store: Store = None, as_json: AsJson = False) -> None:
    """How one job stands."""
    from rich.table import Table

    from shuntserve.job.status import job_status

    job = job_status(existing_store(store), job_id)
    if as_json:
        print(json.dumps(job.to_json()))
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("job", job.job.job_id)
    table.add_row("state", job.state + (f" ({job.standing.paused})" if job.state == "PAUSED" else ""))
    table.add_row("model", job.job.model)
    table.add_row("rows", _rows(job))
    table.add_row("rejected", _rejected(job))
    if job.snapshot is not None:
        table.add_row("chunks committed", f"{job.snapshot.chunks_committed:,} of {job.snapshot.chunks:,}")
        table.add_row("interruptions", f"{job.snapshot.interruptions:,}")
        for worker in job.snapshot.live:
            facts = worker.facts
            where = f"{facts.get('host', '?')} pid {facts.get('pid', '?')}"
            table.add_row("worker", f"{worker.state} on {where}, {worker.count('in_engine')} sequences in its engine")
    if job.job.operations.output:
        table.add_row("output", job.job.operations.output)
    _console().print(table)


def _rows(job: JobStatus) -> str:
    return f"{job.snapshot.rows_ended:,} of {job.snapshot.rows_in:,}" if job.snapshot else "not read yet"


def _rejected(job: JobStatus) -> str:
    if job.final is not None:
        return f"{job.final.counts.rows_rejected:,}"
    return f"{job.snapshot.rejected:,}" if job.snapshot else ""


def show_row(
    job_id: JobId,
    row: Annotated[str, typer.Argument(metavar="ID", help="A request id, or FILE:ROW.")],
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """One row: where it came from, the prompt the model saw, parameters, attempts and outcome."""
    from shuntserve.errors import InvalidInput
    from shuntserve.job.row_view import find_row
    from shuntserve.job.status import job_status

    bucket = existing_store(store)
    job = job_status(bucket, job_id)
    if job.manifest is None:
        raise InvalidInput(f"job {job_id}", "has not read its input yet", "run it first")
    view = find_row(bucket, job.job, job.manifest, row)
    prompt = _prompt(job, view)
    if as_json:
        print(json.dumps({**_row_json(view), "prompt": prompt}))
    else:
        _print_row(view, prompt)


def _prompt(job: JobStatus, view: RowView) -> str | None:
    """The prompt as the model saw it, special tokens included."""
    if view.chunk is None:
        return None
    from shuntserve.job.model_files import find_model
    from shuntserve.job.tokenizing import load_tokenizer

    options = job.job.engine
    if not options.get("trust_remote_code"):
        without_torch()
    files = find_model("tokenizer", job.job.tokenizer, job.job.tokenizer_revision)
    tokenizer = load_tokenizer(
        files,
        trust_remote_code=bool(options.get("trust_remote_code")),
        mode=str(options.get("tokenizer_mode", "auto")),
    )
    return str(tokenizer.decode(list(view.prompt_token_ids), skip_special_tokens=False))


def _row_json(view: RowView) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(view)


def _print_row(view: RowView, prompt: str | None) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("source", escape(f"{view.source_file}, row {view.source_row}"))
    table.add_row("request id", escape(view.request_id or "none"))
    if view.chunk is not None:
        table.add_row("chunk", f"{view.chunk}, {'committed' if view.committed else 'not committed yet'}")
        table.add_row("prompt", escape(f"{prompt!r} ({len(view.prompt_token_ids)} tokens)"))
        table.add_row("parameters", escape(json.dumps(view.params)))
        table.add_row("seed", f"{view.seed}" + (f", {view.n} samples" if view.n > 1 else ""))
        crashes = sum(claim.crash is not None for claim in view.attempts)
        table.add_row("attempts", f"{len(view.attempts)}" + (f", of them {crashes} crashes" if crashes else ""))
    for sample in view.samples:
        label = f"output {sample.index}" if view.n > 1 else "output"
        ended = sample.finish_reason or sample.code or "unfinished"
        resumed = f", resumed {sample.resumed_count} times" if sample.resumed_count else ""
        table.add_row(label, escape(f"{ended}, {sample.completion_tokens} tokens{resumed}: {sample.text!r}"))
    if view.code is not None:
        table.add_row("rejected", escape(f"{view.code}: {view.message}"))
    _console().print(table)


def rejected(
    job_id: JobId,
    store: Store = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to show.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Rows rejected so far, and why."""
    from rich.markup import escape

    from shuntserve.job.manifests import load_manifest
    from shuntserve.job.row_view import rejected_rows
    from shuntserve.job.submission import load_job

    bucket = existing_store(store)
    manifest = load_manifest(bucket, load_job(bucket, job_id).job_id)
    found = rejected_rows(bucket, job_id, manifest) if manifest is not None else iter(())
    shown = 0
    for row in islice(found, limit):
        shown += 1
        if as_json:
            print(json.dumps(row))
        else:
            name = row["request_id"] or f"{row['source_file']}:{row['source_row']}"
            _console().print(escape(f"{name}  {row['code']}: {row['message']}"), soft_wrap=True)
    if next(found, None) is not None and not as_json:
        print(f"… and more: --limit {10 * limit}", file=sys.stderr)
    if not shown and not as_json:
        print("no rejects", file=sys.stderr)


def cancel(job_id: JobId, store: Store = None, as_json: AsJson = False) -> None:
    """Stop a job for good: rows that have not ended become rejects, with what they had; the output is written."""
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

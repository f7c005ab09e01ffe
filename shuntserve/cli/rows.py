"""Commands about single rows: `rows show`, `rows rejected`."""

from __future__ import annotations

import json
import sys
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from shuntserve.cli.common import AsJson, JobId, Store, console, existing_store
from shuntserve.cli.light import without_torch
from shuntserve.core.states import EXIT_FAILED, EXIT_OK
from shuntserve.errors import InvalidInput

if TYPE_CHECKING:
    from shuntserve.job.replay import Replay
    from shuntserve.job.row_view import RowView
    from shuntserve.job.status import JobStatus
    from shuntserve.store.port import Bucket

DEFAULT_ENGINE = "shuntserve.wiring:vllm_engine"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    rows = typer.Typer(help="What became of single rows.", no_args_is_help=True)
    rows.command("show")(show_row)
    rows.command("rejected")(rejected)
    app.add_typer(rows, name="rows")


def show_row(
    job_id: JobId,
    row: Annotated[str, typer.Argument(metavar="ID", help="A request id, or FILE:ROW.")],
    store: Store = None,
    again: Annotated[
        bool, typer.Option("--replay", help="Run it again on this machine, and compare: exit code 1 when it differs.")
    ] = False,
    as_json: AsJson = False,
    worker_engine: Annotated[str | None, typer.Option("--worker-engine", hidden=True)] = None,
    worker_engine_options: Annotated[str, typer.Option("--worker-engine-options", hidden=True)] = "{}",
) -> None:
    """One row: where it came from, the prompt the model saw, parameters, attempts and outcome."""
    from shuntserve.job.row_view import find_row
    from shuntserve.job.status import job_status

    bucket = existing_store(store)
    job = job_status(bucket, job_id)
    if job.manifest is None:
        raise InvalidInput(f"job {job_id}", "has not read its input yet", "run it first")
    view = find_row(bucket, job.job, job.manifest, row)
    prompt = _prompt(job, view)
    if not as_json:
        _print_row(view, prompt)
    told: dict[str, object] = {**_row_json(view), "prompt": prompt}
    same = True
    if again:
        found = _replay(bucket, job, view, worker_engine, worker_engine_options)
        told["replay"] = found.to_json()
        same = found.same
        if not as_json:
            _print_replay(found, job.job.engine_version)
    if as_json:
        print(json.dumps(told))
    raise typer.Exit(EXIT_OK if same else EXIT_FAILED)


def _replay(bucket: Bucket, job: JobStatus, view: RowView, engine: str | None, options: str) -> Replay:
    """Run the row in an engine of this machine, under the job's engine options."""
    import os

    from shuntserve.api import request_for
    from shuntserve.job.replay import replay
    from shuntserve.job.run import worker_plan
    from shuntserve.job.worker_main import load_engine_maker

    chosen = {} if engine is None else {"engine": engine, "engine_options": json.loads(options)}
    request = request_for(bucket.url, workers=1, **chosen)
    plan = worker_plan(request, bucket, job.job)
    log_dir = request.log_dir(job.job.job_id) / "replay"
    log_dir.mkdir(parents=True, exist_ok=True)
    make = load_engine_maker(plan.engine or DEFAULT_ENGINE)(job.job, log_dir, plan.engine_options)
    if make is None:
        raise InvalidInput("--worker-engine", "makes no engine", "name another")
    os.environ.update(plan.environments[0])  # which GPUs the engine sees
    print(f"starting an engine (its log is in {log_dir})", file=sys.stderr)
    return replay(make(), view)


def _print_replay(found: Replay, engine_version: str | None) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    engine = ", ".join(f"{name} {value}" for name, value in found.fingerprint.items())
    table.add_row("replayed by", escape(engine or "no engine"))
    if engine_version is not None:
        table.add_row("submitted with", escape(engine_version))
    if found.crashed is not None:
        table.add_row("replay", escape(f"the engine was lost over this row: {found.crashed}"))
    for one in found.samples if found.crashed is None else ():
        ended = one.finish_reason or f"{one.code}: {one.message}"
        match one.same:
            case True:
                verdict = "the same as stored"
            case None:
                verdict = "nothing is stored to compare with"
            case _:
                verdict = f"differs from token {one.differs_at} on" if one.differs_at is not None else "ends otherwise"
        label = f"replay {one.index}" if len(found.samples) > 1 else "replay"
        table.add_row(label, escape(f"{verdict}; {ended}, {len(one.token_ids)} tokens: {one.text!r}"))
    console().print(table)


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
    console().print(table)


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
            console().print(escape(f"{name}  {row['code']}: {row['message']}"), soft_wrap=True)
    if next(found, None) is not None and not as_json:
        print(f"… and more: --limit {10 * limit}", file=sys.stderr)
    if not shown and not as_json:
        print("no rejects", file=sys.stderr)

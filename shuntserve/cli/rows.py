"""Commands about single rows: `rows show`, `rows rejected`."""

from __future__ import annotations

import json
import sys
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from shuntserve.cli.common import AsJson, JobId, Store, console, existing_store
from shuntserve.cli.light import without_torch

if TYPE_CHECKING:
    from shuntserve.job.row_view import RowView
    from shuntserve.job.status import JobStatus


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

"""`shuntserve inbox scan`: one look at the drop folder without Prefect; for cron, or by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from shuntserve.cli.common import AsJson, Store, existing_store


def register(app: typer.Typer) -> None:
    """Add the command group."""
    group = typer.Typer(help="The drop folder: submissions that become jobs.", no_args_is_help=True)
    group.command("scan")(scan)
    app.add_typer(group, name="inbox")


def scan(
    store: Store = None,
    spec: Annotated[Path | None, typer.Option("--spec", help="A YAML file with settings for all submissions.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Such a setting; a job.yaml stands over it.")
    ] = None,
    quiet: Annotated[str, typer.Option(help="Complete without a marker after so long without a write.")] = "60s",
    rerun: Annotated[list[str] | None, typer.Option(metavar="NAME=TEXT", help="Another job of a submission.")] = None,
    as_json: AsJson = False,
) -> None:
    """Take every submission that is complete, and start its job. Repeating it starts nothing twice."""
    from shuntserve.api import attach
    from shuntserve.cli.spec_options import merged, parse_pairs, parse_values, read_spec_file
    from shuntserve.core.specs import parse_duration_s
    from shuntserve.errors import ShuntServeError
    from shuntserve.job.inbox import mark_told, submit_taken
    from shuntserve.job.inbox import scan as look

    bucket = existing_store(store)
    defaults = merged(read_spec_file(spec) if spec is not None else {}, parse_values("--set", settings or []))
    reruns = parse_pairs("--rerun", rerun or [])
    found = look(bucket, defaults=defaults, quiet_s=parse_duration_s(quiet), rerun=reruns)
    jobs: dict[str, str] = {}
    refused = {one.submission: one.reason for one in found.refused}
    for record in found.start:
        try:
            jobs[record.submission] = submit_taken(bucket, record.submission, record.number)
        except ShuntServeError as error:
            refused[record.submission] = str(error)
        else:
            attach(jobs[record.submission], store=bucket.url).start()
    told = {
        "started": jobs,
        "refused": refused,
        "waiting": {one.submission: one.reason for one in found.waiting},
        "changed": {one.submission: str(one.changes) for one in found.warned},
    }
    if as_json:
        print(json.dumps(told))
        mark_told(bucket, found)
        return
    for what, those in told.items():
        for name, detail in those.items():
            print(f"{name}: {what}: {detail}")
    if not any(told.values()):
        print("nothing new")
    mark_told(bucket, found)

"""`shuntserve report`: what a job made, went through and cost, as a page, as JSON or in a few lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shuntserve.cli.common import AsJson, JobId, Store, existing_store

if TYPE_CHECKING:
    from shuntserve.store.port import Bucket


def register(app: typer.Typer) -> None:
    """Add `report`."""
    app.command()(report)


def report(
    job_id: JobId,
    store: Store = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the page to this file; it needs nothing but a browser.")
    ] = None,
    as_json: AsJson = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Make it anew instead of reading the stored one.")] = False,
) -> None:
    """What a job made, went through and cost. Of a job under way: as of now."""
    from shuntserve.errors import InvalidInput

    bucket = existing_store(store)
    found = _report(bucket, job_id, fresh=fresh)
    if html is not None:
        from shuntserve.job.report_page import render

        try:
            html.write_text(render(found), encoding="utf-8")
        except OSError as error:
            raise InvalidInput(str(html), error.strerror or "cannot be written", "name another file") from error
        print(html.resolve().as_uri(), file=sys.stderr)
    if as_json:
        print(json.dumps(found))
    elif html is None:
        _print(found)


def _report(bucket: Bucket, job_id: str, *, fresh: bool) -> dict[str, Any]:
    """The stored report of a job that has ended, else one made now."""
    import time

    from shuntserve.errors import InvalidInput
    from shuntserve.job.adjust import current_job
    from shuntserve.job.final import load_final
    from shuntserve.job.manifests import load_manifest
    from shuntserve.job.report import build_report, load_report
    from shuntserve.job.run import output_place
    from shuntserve.job.timeline import read_timeline

    job = current_job(bucket, job_id)
    stored = None if fresh else load_report(bucket, job_id)
    if stored is not None:
        return stored
    manifest = load_manifest(bucket, job_id)
    if manifest is None:
        raise InvalidInput(f"job {job_id}", "has not read its input yet", "there is nothing to report")
    return build_report(
        bucket,
        job,
        manifest,
        load_final(bucket, job_id),
        read_timeline(bucket, job_id),
        None,
        now_unix_s=time.time(),
        output_url=output_place(bucket, job).url,
    )


def _print(found: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from shuntserve.cli.common import console
    from shuntserve.readable import compact, duration, usd

    rows, tokens, speed, cost = found["rows"], found["tokens"], found["throughput"], found["cost"]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("job", escape(found["job"]["id"]))
    table.add_row("state", found["job"]["state"])
    table.add_row("rows", f"{rows['ok']:,} of {rows['total']:,} answered, {rows['rejected']:,} rejected")
    for one in rows["by_code"] or ():
        table.add_row("", f"{one['rows']:,} {escape(one['code'])}")
    phases = ", ".join(f"{one['phase']} {duration(one['seconds'])}" for one in found["time"]["phases"])
    table.add_row("time", duration(found["time"]["elapsed_s"]) + (f" ({phases})" if phases else ""))
    if speed["tokens_per_s"] is not None:
        table.add_row("throughput", f"{compact(speed['tokens_per_s'])} tok/s, {compact(speed['rows_per_s'])} rows/s")
    again = "" if tokens["regenerated"] is None else f", {tokens['regenerated']:,} generated again"
    table.add_row("tokens", f"{tokens['generated']:,} generated, {tokens['kept']:,} kept{again}")
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in found["interruptions"]["by_kind"].items())
    count = found["interruptions"]["count"] + found["interruptions"]["unseen"]
    table.add_row("interruptions", f"{count:,}" + (f" ({kinds})" if kinds else ""))
    if cost is not None:
        beside = "" if cost["on_demand_usd"] is None else f", on demand {usd(cost['on_demand_usd'])}"
        table.add_row("cost", usd(cost["spent_usd"]) + beside)
    if found["outputs"]["url"]:
        table.add_row("output", escape(found["outputs"]["url"]))
    console().print(table)
    print(f"as a page: shuntserve report {found['job']['id']} --html report.html", file=sys.stderr)

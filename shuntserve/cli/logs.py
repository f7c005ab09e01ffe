"""`shuntserve logs`: what a job's processes on this machine have logged, merged in time."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from shuntserve.cli.common import AsJson, JobId, Store, existing_store
from shuntserve.core.states import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from shuntserve.job_logs import LogLine

_FOLLOW_INTERVAL_S = 0.5
_SHORT = 12
"""Ids are cut to this many characters, except in JSON."""


def register(app: typer.Typer) -> None:
    """Add `logs`."""
    app.command()(logs)


def logs(
    job_id: JobId,
    store: Store = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on showing what is added.")] = False,
    last: Annotated[int | None, typer.Option("-n", "--last", min=0, help="Begin with the last N lines.")] = None,
    level: Annotated[str, typer.Option(help="The least level: debug, info, warning or error.")] = "info",
    event: Annotated[list[str] | None, typer.Option(help="Only this event, e.g. engine_lost; repeat.")] = None,
    as_json: AsJson = False,
) -> None:
    """What a job's processes on this machine have logged. Never prompts or outputs."""
    from shuntserve.core.near_miss import did_you_mean
    from shuntserve.errors import InvalidInput
    from shuntserve.job.submission import load_job
    from shuntserve.job_logs import LEVELS, LogReader, wanted
    from shuntserve.settings import settings
    from shuntserve.telemetry import Event

    for name in event or ():
        if name not in set(Event):
            raise InvalidInput(
                f"event {name!r}", "is not one that is logged", did_you_mean(name, [one.value for one in Event])
            )
    if level not in LEVELS:
        raise InvalidInput(f"level {level!r}", "is not a log level", f"use one of {', '.join(LEVELS)}")
    data_dir = settings().data_dir
    reader = LogReader(data_dir, job_id)
    lines: Iterable[LogLine] = wanted(reader.read(), level, event or ())
    shown = _show(lines if last is None else deque(lines, maxlen=last), as_json=as_json)
    if not shown and not follow:
        load_job(existing_store(store), job_id)  # a wrong id is an error
        print(f"no logs of this job on this machine (in {data_dir})", file=sys.stderr)
    try:
        while follow:
            time.sleep(_FOLLOW_INTERVAL_S)
            _show(wanted(reader.read(), level, event or ()), as_json=as_json)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _show(lines: Iterable[LogLine], *, as_json: bool) -> int:
    count = 0
    for line in lines:
        count += 1
        print(_as_json(line) if as_json else _as_text(line), flush=True)
    return count


def _as_json(line: LogLine) -> str:
    told = {"time": line.time, "source": line.source}
    if not line.event:
        return json.dumps({**told, "text": line.text})
    return json.dumps({**told, "level": line.level, "event": line.event, **line.fields})


def _as_text(line: LogLine) -> str:
    if not line.event:
        return f"{'':<13}{line.source:<12}   {line.text}"
    level = "" if line.level == "info" else f"{line.level.upper()} "
    fields = " ".join(f"{name}={_value(value)}" for name, value in line.fields.items() if name != "job")
    return f"{line.time[11:23]} {line.source:<12} {level}{line.event} {fields}".rstrip()


def _value(value: object) -> str:
    if isinstance(value, str):
        short = value[:_SHORT] if len(value) == 32 and value.isalnum() else value
        return short if short and not set(short) & set(" \"'=") else json.dumps(short)
    return json.dumps(value)

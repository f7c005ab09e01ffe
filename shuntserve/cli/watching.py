"""Looking at a job again and again: until it has ended, or for somebody who watches."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from shuntserve.cli.common import console
from shuntserve.errors import Unavailable

if TYPE_CHECKING:
    from rich.table import Table

    from shuntserve.job.status import JobStatus

LOOK_INTERVAL_S = 2.0
_LOOKING_SHARE = 0.1
"""Of the time, at most this much is spent looking: jobs of many chunks are looked at more rarely."""

Look = Callable[[], "JobStatus"]


def wait_for_end(look: Look, within_s: float | None) -> JobStatus:
    """The job as it stood when it had ended or paused, or when `within_s` seconds were over.

    What could keep it from ending (nobody is at work on it, somebody has to agree) is said on standard error. While the
    store does not answer, waits on.
    """
    begin_s = time.monotonic()
    said: str | None = None
    while True:
        began_s = time.monotonic()
        job = _patiently(look)
        now_s = time.monotonic()
        if job is not None:
            if job.exit_code is not None or (within_s is not None and now_s - begin_s >= within_s):
                return job
            said = _say_once(job, said)
        pause_s = _pause_s(now_s - began_s)
        if within_s is not None:
            pause_s = min(pause_s, max(0.0, begin_s + within_s - now_s))
        time.sleep(pause_s)


def watch_status(look: Look, table: Callable[[JobStatus], Table], *, as_json: bool) -> None:
    """Show the job until it has ended or paused: in place on a terminal, else a line for each change."""
    from rich.live import Live

    screen = console()
    if as_json or not screen.is_terminal:
        _watch_lines(look, as_json=as_json)
        return
    with Live(console=screen, auto_refresh=False, transient=False) as live:
        while True:
            began_s = time.monotonic()
            job = _patiently(look)
            if job is not None:
                live.update(table(job), refresh=True)
                if job.exit_code is not None:
                    return
            time.sleep(_pause_s(time.monotonic() - began_s))


def _watch_lines(look: Look, *, as_json: bool) -> None:
    before: str | None = None
    while True:
        began_s = time.monotonic()
        job = _patiently(look)
        if job is not None:
            line = json.dumps(job.to_json()) if as_json else _line(job)
            if line != before:
                print(line, flush=True)
            before = line
            if job.exit_code is not None:
                return
        time.sleep(_pause_s(time.monotonic() - began_s))


def _line(job: JobStatus) -> str:
    if job.snapshot is None:
        return job.state
    seen = job.snapshot
    return f"{job.state}: {seen.rows_ended:,} of {seen.rows_in:,} rows, {seen.rejected:,} rejected"


def _patiently(look: Look) -> JobStatus | None:
    """None while the store does not answer."""
    try:
        return look()
    except Unavailable as error:
        print(f"still trying: {error}", file=sys.stderr)
        return None


def _say_once(job: JobStatus, before: str | None) -> str | None:
    told = job.to_json()["next_step"]
    hint = told if "shuntserve" in told else None
    if hint is not None and hint != before:
        print(f"{job.state}: {hint}", file=sys.stderr)
    return hint


def _pause_s(look_s: float) -> float:
    return max(LOOK_INTERVAL_S, look_s * (1 / _LOOKING_SHARE - 1))

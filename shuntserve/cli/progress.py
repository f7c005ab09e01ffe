"""The run on a terminal: one bar for the present phase, rates and ETA; plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Self, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table

from shuntserve.core.states import JobState, Pause
from shuntserve.readable import duration

if TYPE_CHECKING:
    from types import TracebackType

    from shuntserve.core.resolved import ResolvedJob
    from shuntserve.errors import ShuntServeError
    from shuntserve.job.ingest import IngestProgress
    from shuntserve.job.run import RunResult
    from shuntserve.job.watch import Snapshot

_PLAIN_FIRST_S = 2.0
"""Where there is no terminal, a phase that is over by then is not mentioned."""
_PLAIN_INTERVAL_S = 10.0
_RATE_WINDOW_S = 30.0


class Meter:
    """A rate over the last half minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()

    def add(self, now_s: float, value: float) -> None:
        """Note a growing quantity. It may fall a little, when a worker was killed between two reports."""
        self._seen.append((now_s, value))
        while now_s - self._seen[0][0] > _RATE_WINDOW_S:
            self._seen.popleft()

    @property
    def per_s(self) -> float:
        """0 while nothing can be said."""
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        return max(0.0, last - first) / (last_s - first_s) if last_s > first_s else 0.0


class TerminalReporter:
    """A `job.run.Reporter`. Use as a context manager."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[detail]}"),
            console=self._console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._phase = ""
        self._plain_at_s = 0.0
        self._rows = Meter()
        self._tokens = Meter()
        self._said_draining = False
        self._rows_ended = 0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    # -- the run's phases ------------------------------------------------------------------------------------------

    def inspecting(self, bytes_done: int, bytes_total: int) -> None:
        if bytes_total:  # called from several threads
            self._show("looking at the input", bytes_done, bytes_total, f"{bytes_done / bytes_total:.0%} read")

    def submitted(self, job: ResolvedJob, output_url: str) -> None:
        self.say(f"job [bold]{escape(job.job_id)}[/], output {escape(output_url)}")

    def ingesting(self, progress: IngestProgress) -> None:
        phase = "comparing ids" if progress.checking_ids else "reading and tokenizing"
        rejected = f", {progress.rows_rejected:,} rejected" if progress.rows_rejected else ""
        self._show(phase, progress.rows_done, progress.rows_total, f"{progress.rows_done:,} rows{rejected}")

    def working(self, snapshot: Snapshot, workers_running: int, *, draining: bool) -> None:
        now_s = time.monotonic()
        # Finished rows of a worker that has just gone are not counted until its chunks are taken up; they are not lost.
        self._rows_ended = max(self._rows_ended, snapshot.rows_ended)
        self._rows.add(now_s, self._rows_ended)
        self._tokens.add(now_s, snapshot.total("tokens_generated"))
        if draining and not self._said_draining:
            self._said_draining = True
            self.say("draining: workers write what they have and leave (Ctrl-C again ends them at once)")
        self._show("draining" if draining else "generating", self._rows_ended, snapshot.rows_in, self._detail(snapshot))

    def gave_up(self, reason: ShuntServeError) -> None:
        self.say(f"[red]a worker gave up[/]: {escape(str(reason))}")

    def finalizing(self, chunks_done: int, chunks: int) -> None:
        self._show("writing output", chunks_done, chunks, f"{chunks_done:,} of {chunks:,} chunks")

    def _detail(self, snapshot: Snapshot) -> str:
        parts = [f"{self._rows_ended:,}/{snapshot.rows_in:,} rows"]
        left = snapshot.rows_in - self._rows_ended
        if self._rows.per_s:
            parts += [f"{self._rows.per_s:,.1f} rows/s", f"ETA {duration(left / self._rows.per_s)}"]
        if self._tokens.per_s:
            parts.append(f"{self._tokens.per_s:,.0f} tok/s")
        states = [worker.state for worker in snapshot.live]
        counts = {state: states.count(state) for state in dict.fromkeys(states)}
        workers = ", ".join(f"{count} {state}" for state, count in counts.items()) or "none yet"
        parts.append(f"workers: {workers}")
        if snapshot.interruptions:
            parts.append(f"{snapshot.interruptions} interruptions")
        return " · ".join(parts)

    def _show(self, phase: str, done: int, total: int, detail: str) -> None:
        if not self._console.is_terminal:
            now_s = time.monotonic()
            if phase != self._phase:
                self._plain_at_s = now_s + _PLAIN_FIRST_S
            elif now_s >= self._plain_at_s:
                self._plain_at_s = now_s + _PLAIN_INTERVAL_S
                self._console.print(f"{phase}: {detail}", markup=False, soft_wrap=True)
            self._phase = phase
            return
        if self._task is None or phase != self._phase:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(phase, total=total, detail=detail)
            self._phase = phase
        self._progress.update(self._task, completed=done, total=total, detail=detail)

    # -- the end ---------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """A line (rich markup) above the bar."""
        self._console.print(text, soft_wrap=True)

    def broken_off(self, again: str) -> None:
        """The user interrupted a phase in which no worker runs."""
        self._stop()
        self.say(f"[yellow]interrupted[/]; nothing is lost. Continue with\n  {escape(again)}")

    def ended(self, result: RunResult, again: str) -> None:
        """The result in words."""
        self._stop()
        if result.final is None:
            self.say(f"[yellow]paused[/] after {duration(result.elapsed_s)}: {_why_paused(result)}")
            self.say(f"{_before_again(result)}Continue with\n  {escape(again + _raised_limit(result))}")
            return
        style = "green" if result.final.state is JobState.COMPLETED else "yellow"
        if result.final.state is JobState.FAILED:
            style = "red"
        self.say(f"[{style}]{result.final.state}[/] in {duration(result.elapsed_s)}")
        self._console.print(summary_table(result))
        if result.exit_code:
            self.say(_why_not_zero(result))


def summary_table(result: RunResult) -> Table:
    """The numbers of the end."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    labels = {
        "rows_in": "rows in",
        "rows_out": "rows out",
        "rows_rejected": "rows rejected",
        "interruptions": "interruptions",
        "resumed_rows": "rows resumed",
        "tokens_kept": "tokens kept",
        "tokens_regenerated": "tokens regenerated",
        "duplicates": "duplicates",
        "missing": "missing",
    }
    summary = result.summary()
    for name, label in labels.items():
        table.add_row(label, f"{summary[name]:,}")
    table.add_row("output", escape(str(summary["output"])))
    return table


def _why_paused(result: RunResult) -> str:
    operations = result.job.operations
    rejected = result.snapshot.rejected
    match result.pause:
        case Pause.REJECTS:
            limit = operations.max_reject_fraction
            return (
                f"{rejected:,} of {result.snapshot.rows_in:,} rows were rejected, "
                f"more than --max-reject-fraction {limit:g}. "
                f"`shuntserve rows rejected {result.job.job_id}` shows them."
            )
        case Pause.LENGTH:
            cut, out = result.snapshot.total("length_finishes"), result.snapshot.total("sequences_out")
            limit = operations.max_length_finish_fraction
            return (
                f"{cut:,} of {out:,} outputs ran out of max_tokens, more than --max-length-finish-fraction {limit:g}."
            )
        case Pause.REQUESTED:
            return "a pause was asked for."
        case _:
            return "everything generated so far is kept."


def _before_again(result: RunResult) -> str:
    if result.pause in (Pause.REJECTS, Pause.LENGTH):
        return "To accept this, raise the limit; to mend it, change the input or the parameters. "
    return ""


def _raised_limit(result: RunResult) -> str:
    """The option that accepts what the job was paused for."""
    snapshot = result.snapshot
    match result.pause:
        case Pause.REJECTS:
            return f" --max-reject-fraction {_rounded_up(snapshot.rejected / snapshot.rows_in)}"
        case Pause.LENGTH:
            return " --max-length-finish-fraction 1"
        case _:
            return ""


def _rounded_up(fraction: float) -> float:
    """To the next hundredth above, so that a few more do not pause the job again."""
    return min(1.0, (int(fraction * 100) + 2) / 100)


def _why_not_zero(result: RunResult) -> str:
    final = result.final
    assert final is not None
    if final.state is JobState.PARTIAL:
        stopped = f"{final.counts.rows_stopped:,} rows were not finished"
        return f"{stopped} ({final.counts.stopped_by}); they are in the rejects, with what they had."
    return (
        f"{final.counts.rows_rejected:,} of {final.counts.rows_in:,} rows were rejected, more than "
        f"--max-reject-fraction {result.job.operations.max_reject_fraction:g}."
    )

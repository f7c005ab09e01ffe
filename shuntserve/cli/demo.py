"""The demonstration behind `make demo`: real vLLM on two workers, killed in the middle, and every row exactly once.

    python -m shuntserve.cli.demo [--directory demo]

It makes a tiny random model and a Parquet of prompts (some bad ones among them), starts `shuntserve run` on two
workers, kills a worker, an engine and then everything with SIGKILL, runs the same command again, and compares every
text with those of an undisturbed run. The summary goes to `<directory>/summary.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from shuntserve.cli.progress import TerminalReporter, duration
from shuntserve.errors import NotFound, ShuntServeError, Unavailable
from shuntserve.job.manifests import load_manifest
from shuntserve.job.status import job_ids
from shuntserve.job.watch import Snapshot, Watcher
from shuntserve.sim.tiny_model import TinyModel, write_tiny_model
from shuntserve.store.open import open_bucket

GOOD_ROWS = 300
WORKERS = 2
MODEL = TinyModel(hidden_size=256, layers=6, heads=8, kv_heads=4, intermediate_size=768, mean_output_tokens=120.0)
MAX_MODEL_LEN = 512
SETTINGS = (
    "--max-tokens=160",
    "--checkpoint-interval=1",
    "--lease=5",
    "--max-reject-fraction=0.05",
    "--max-length-finish-fraction=1",
    f"--engine=max_model_len={MAX_MODEL_LEN}",
    "--engine=max_num_seqs=16",
    "--engine=dtype=float32",
    "--engine=enforce_eager=true",
    "--engine=kv_cache_memory_bytes=268435456",
)
_WORDS = (
    "river",
    "stone",
    "window",
    "garden",
    "letter",
    "winter",
    "paper",
    "music",
    "bridge",
    "table",
    "forest",
    "light",
)
_LONGEST_S = 540.0
_TIME_TO_COMPARE_S = 300.0
"""A machine that took longer than this for the run itself is spared the undisturbed one."""


@dataclass(slots=True)
class Demo:
    """One run of the demonstration."""

    directory: Path
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))

    # -- what it works on ------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the model and the prompts anew."""
        shutil.rmtree(self.directory, ignore_errors=True)
        write_tiny_model(self.directory / "model", MODEL)
        pq.write_table(pa.Table.from_pylist(prompts(random.Random(0))), self.directory / "prompts.parquet")

    def command(self, name: str) -> list[str]:
        """The command line the demonstration is about."""
        return [
            *("shuntserve", "run", str(self.directory / "prompts.parquet"), f"--model={self.directory / 'model'}"),
            *(f"--output={self.directory / name}", f"--store={self.directory / 'store' / name}"),
            *(f"--workers={WORKERS}", *SETTINGS, "--json"),
        ]

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start it; its progress lines go to a log, since the bar shown is the demonstration's own."""
        arguments = [sys.executable, "-m", "shuntserve.cli.app", *self.command(name)[1:]]
        environment = {**os.environ, "XDG_DATA_HOME": str(self.directory / "data"), "HF_HUB_OFFLINE": "1"}
        with (self.directory / f"{name}.log").open("ab") as log:
            return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=log, env=environment)

    # -- the three acts --------------------------------------------------------------------------------------------

    def disturbed(self) -> dict[str, Any]:
        """Run, kill, run again; returns the summary of the command that finished."""
        child = self.start("out")
        kills: list[tuple[str, Callable[[int], bool], Callable[[Snapshot], bool]]] = [
            ("kill -9 one worker", kill_worker, lambda seen: busy(seen) >= 1 and seen.total("tokens_durable") > 0),
            ("kill -9 one engine", kill_engine, lambda seen: busy(seen) >= 1 and seen.interruptions >= 1),
            ("kill -9 everything, the command too", kill_all, lambda seen: seen.rows_ended >= 0.5 * seen.rows_in),
        ]
        with TerminalReporter(sys.stderr) as reporter:
            for snapshot in self.snapshots(child, "out"):
                reporter.working(snapshot, WORKERS, draining=False)
                if kills and kills[0][2](snapshot) and kills[0][1](child.pid):
                    reporter.say(
                        f"[bold red]{kills.pop(0)[0]}[/] with {snapshot.total('tokens_generated'):,} tokens generated"
                    )
                    if not kills:
                        break
        if child.wait() == -signal.SIGKILL:
            self.console.print("the same command again:")
            child = self.start("out")
            with TerminalReporter(sys.stderr) as reporter:
                for snapshot in self.snapshots(child, "out"):
                    reporter.working(snapshot, WORKERS, draining=False)
        return self.summary_of(child, "out")

    def undisturbed(self) -> None:
        """The same job in a store of its own, left alone."""
        child = self.start("undisturbed")
        with TerminalReporter(sys.stderr) as reporter:
            for snapshot in self.snapshots(child, "undisturbed"):
                reporter.working(snapshot, WORKERS, draining=False)
        self.summary_of(child, "undisturbed")

    def compare(self) -> tuple[int, int]:
        """(rows compared, rows whose text is not the undisturbed run's)."""
        disturbed, undisturbed = (self.texts(name) for name in ("out", "undisturbed"))
        names = disturbed.keys() | undisturbed.keys()
        return len(names), sum(disturbed.get(name) != undisturbed.get(name) for name in names)

    # -- observing -------------------------------------------------------------------------------------------------

    def snapshots(self, child: subprocess.Popen[bytes], name: str) -> Iterator[Snapshot]:
        """The job's progress, until the command has ended."""
        began_s = time.monotonic()
        watcher: Watcher | None = None
        while child.poll() is None:
            if time.monotonic() - began_s > _LONGEST_S:
                kill_all(child.pid)
                raise Unavailable("the demonstration", "does not come to an end", f"see {self.directory / name}.log")
            with contextlib.suppress(NotFound, Unavailable):
                watcher = watcher or self.watcher(name)
                if watcher is not None:
                    yield watcher.snapshot()
            time.sleep(0.2)

    def watcher(self, name: str) -> Watcher | None:
        """A view of the job, once there is one."""
        bucket = open_bucket(self.directory / "store" / name, mkdir=False)
        for job_id in job_ids(bucket):
            manifest = load_manifest(bucket, job_id)
            if manifest is not None:
                return Watcher(bucket, job_id, manifest)
        return None

    def summary_of(self, child: subprocess.Popen[bytes], name: str) -> dict[str, Any]:
        """What the command printed. Raises when it failed."""
        assert child.stdout is not None
        out = child.stdout.read()
        if child.wait() != 0:
            tail = (self.directory / f"{name}.log").read_text(encoding="utf-8").strip().splitlines()[-1:]
            raise Unavailable(
                "shuntserve run", f"exit code {child.returncode}: {' '.join(tail)}", "see the demo's logs"
            )
        summary: dict[str, Any] = json.loads(out)
        return summary

    def texts(self, name: str) -> dict[str, str]:
        """Output texts by request id."""
        table = pq.read_table(self.directory / name / "data", columns=["request_id", "output_text"])
        return dict(zip(table["request_id"].to_pylist(), table["output_text"].to_pylist(), strict=True))


def prompts(rng: random.Random) -> list[dict[str, Any]]:
    """Prompts of all lengths, half of them greedy and half sampled, and six rows nobody can answer."""
    rows: list[dict[str, Any]] = [
        {
            "request_id": f"row-{index:03d}",
            "prompt": "Tell me about the " + " ".join(rng.choices(_WORDS, k=rng.randint(1, 40))),
            "sampling_params": json.dumps({"temperature": 0.0 if index % 2 else 0.8}),
            "topic": rng.choice(_WORDS),
        }
        for index in range(GOOD_ROWS)
    ]
    bad: list[dict[str, Any]] = [
        {"request_id": "bad-empty", "prompt": ""},
        {"request_id": "bad-null", "prompt": None},
        {"request_id": "bad-long", "prompt": "river " * 2 * MAX_MODEL_LEN},
        {"request_id": "bad-name", "prompt": "hello", "sampling_params": '{"temprature": 1}'},
        {"request_id": "bad-value", "prompt": "hello", "sampling_params": '{"top_p": 7}'},
        {"request_id": "row-007", "prompt": "the id of another row"},
    ]
    for row in bad:
        rows.insert(rng.randrange(20, len(rows)), {"sampling_params": None, "topic": "none", **row})
    return rows


def busy(snapshot: Snapshot) -> int:
    """Workers that are generating now and have told so."""
    return sum(worker.count("in_engine") > 0 and worker.count("tokens_generated") > 0 for worker in snapshot.live)


def kill_worker(command_pid: int) -> bool:
    """SIGKILL one worker; its engine dies with it."""
    return _kill(_below(command_pid, "shuntserve.job.worker_main")[:1])


def kill_engine(command_pid: int) -> bool:
    """SIGKILL one engine's core; its worker lives and starts another."""
    for host in _below(command_pid, "shuntserve.engine.host"):
        with contextlib.suppress(psutil.NoSuchProcess):
            if cores := host.children():
                return _kill(cores[:1])
    return False


def kill_all(command_pid: int) -> bool:
    """SIGKILL the command and everything below it."""
    try:
        command = psutil.Process(command_pid)
        return _kill([command, *command.children(recursive=True)])
    except psutil.NoSuchProcess:
        return False


def _below(pid: int, module: str) -> list[psutil.Process]:
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if module in process.cmdline():
                    found.append(process)
    return found


def _kill(processes: Sequence[psutil.Process]) -> bool:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return bool(processes)


def main() -> int:
    """Run the demonstration; 0 when every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m shuntserve.cli.demo", description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path("demo"))
    demo = Demo(parser.parse_args().directory.absolute())
    began_s = time.monotonic()
    try:
        summary = _play(demo)
    except ShuntServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    summary["elapsed_s"] = round(time.monotonic() - began_s, 1)
    kept = _promises_kept(summary)
    (demo.directory / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    Console(highlight=False).print(_table(summary))
    print(f"{'every promise kept' if kept else 'SOMETHING IS WRONG'}; {demo.directory / 'summary.json'}")
    return 0 if kept else 1


def _play(demo: Demo) -> dict[str, Any]:
    demo.prepare()
    demo.console.print(f"[bold]$ {' '.join(demo.command('out'))}[/]", soft_wrap=True)
    began_s = time.monotonic()
    summary = demo.disturbed()
    if time.monotonic() - began_s > _TIME_TO_COMPARE_S:
        demo.console.print("this took long; texts are not compared with an undisturbed run's")
        return {**summary, "texts_compared": 0, "texts_differing": 0}
    demo.console.print("and once more in a store of its own, undisturbed, to compare:")
    demo.undisturbed()
    compared, differing = demo.compare()
    return {**summary, "texts_compared": compared, "texts_differing": differing}


def _promises_kept(summary: dict[str, Any]) -> bool:
    return (
        summary["duplicates"] == summary["missing"] == summary["texts_differing"] == 0
        and summary["rows_out"] + summary["rows_rejected"] == summary["rows_in"]
        and summary["interruptions"] >= 2
        and summary["resumed_rows"] > 0
    )


def _table(summary: dict[str, Any]) -> Table:
    meaning = {
        "rows_in": "rows in the Parquet file",
        "rows_out": "rows answered",
        "rows_rejected": "bad rows planted, each with its reason in rejects",
        "interruptions": "workers and engines killed with SIGKILL",
        "resumed_rows": "rows continued where they were interrupted",
        "tokens_kept": "their tokens, not generated again",
        "tokens_regenerated": "tokens lost with a process before they were checkpointed",
        "duplicates": "rows answered twice",
        "missing": "rows without answer or reason",
    }
    if summary["texts_compared"]:
        meaning["texts_differing"] = f"of {summary['texts_compared']} texts, those unlike the undisturbed run's"
    title = f"ShuntServe demo: {duration(summary['elapsed_s'])}"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("", style="bold")
    table.add_column("", justify="right")
    table.add_column("")
    for name, text in meaning.items():
        table.add_row(name, f"{summary[name]:,}", text)
    return table


if __name__ == "__main__":
    sys.exit(main())

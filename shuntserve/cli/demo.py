"""The demonstration behind `make demo`: the whole path on one machine, with losses, and every row exactly once.

    python -m shuntserve.cli.demo [--directory demo] [--keep]

A submission is dropped into the inbox of an S3 bucket. Prefect's inbox flow finds it and starts a batch run; the job's
controller buys two spot instances from an EC2 server, and their agents run real vLLM on the CPU with a tiny random
model. One instance is interrupted with notice, the other's worker is killed with SIGKILL. When the job has ended its
texts are compared with those of an undisturbed run. S3, EC2 and Prefect run on the loopback; nothing leaves this
machine, and nothing of it is left running. `<directory>/summary.json` and `report.html` tell how it went.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import yaml
from rich.console import Console
from rich.table import Table

from shuntserve.cli import demo_input
from shuntserve.cli.demo_site import STORE, Site, own_environment
from shuntserve.cli.progress import TerminalReporter
from shuntserve.errors import ShuntServeError, Unavailable
from shuntserve.fleet import local_machine
from shuntserve.job.status import JobStatus, job_ids, job_status
from shuntserve.readable import duration
from shuntserve.store import keys

SUBMISSION = "news"
NOTICE_S = 20.0
"""EC2 gives two minutes; a demonstration has less time."""
_LONGEST_S = 540.0
_LOOK_S = 1.0
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")


@dataclass(slots=True)
class Demo:
    """One run of the demonstration."""

    directory: Path
    site: Site
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))
    rows: list[dict[str, Any]] = field(default_factory=lambda: demo_input.prompts(random.Random(0)))

    def say(self, text: str) -> None:
        """A line (rich markup)."""
        self.console.print(text, soft_wrap=True)

    # -- the acts ----------------------------------------------------------------------------------------------------

    def submit(self) -> str:
        """Upload the submission as a user would, and have the inbox looked into now; the inbox run's id."""
        for name, body in demo_input.submission(demo_input.write_model(self.directory), self.rows).items():
            self.site.bucket.put(f"inbox/{SUBMISSION}/{name}", body)
        self.say(f"uploaded {len(self.rows)} prompts to [bold]{STORE}/inbox/{SUBMISSION}/[/], job.yaml last")
        return self.site.run("shuntserve-inbox/inbox")

    def job(self, inbox_run: str) -> str:
        """The job that the inbox flow has made of it."""
        for _ in self._looks("the inbox flow"):
            ids = job_ids(self.site.bucket)
            if ids:
                self.say(f"the inbox flow has started job [bold]{ids[0]}[/]")
                return ids[0]
            run = self.site.prefect(f"/flow_runs/{inbox_run}")
            if run["state_type"] in _ENDED[1:]:
                break
        raise Unavailable("the inbox flow", "has not started a job", f"see {self.directory / 'logs'}")

    def work(self, job_id: str) -> JobStatus:
        """Watch the job to its end, and do it harm on the way."""
        harmed = False
        with TerminalReporter(sys.stderr) as reporter:
            for status in self._statuses(job_id):
                if status.snapshot is not None:
                    reporter.working(status.snapshot, status.live_workers, draining=False)
                nodes = generating(status)
                if not harmed and len(nodes) == demo_input.MACHINES and (done := self.kill_worker(nodes[1])):
                    harmed = True
                    reporter.say(done)
                    reporter.say(self.interrupt(job_id, nodes[0]))
                if status.final is not None and not status.fleet.open_launches and not status.controller_alive:
                    return status
        raise AssertionError("unreachable: looking ends with an error")

    def interrupt(self, job_id: str, node: str) -> str:
        """Announce that an instance will be taken; what was done, in words."""
        local_machine.interrupt(self.site.machine(job_id, node), NOTICE_S)
        return f"[bold red]interruption notice[/] on instance {node}: it will be taken in {NOTICE_S:.0f} s"

    def kill_worker(self, node: str) -> str | None:
        """SIGKILL an instance's worker; its engine dies with it, the agent starts another. None: there was none."""
        workers = [process for process in self.site.fleet() if _runs(process, "shuntserve.job.worker_main", node)]
        for process in workers:
            process.kill()
        return f"[bold red]kill -9[/] of the worker on instance {node}, with its engine" if workers else None

    def flow_end(self) -> tuple[str, str]:
        """Prefect's batch run, and the state in which it has ended."""
        body = {"flows": {"name": {"any_": ["shuntserve-batch"]}}, "limit": 1}
        for _ in self._looks("the batch flow", 180.0):
            (run,) = self.site.prefect("/flow_runs/filter", body)
            if run["state_type"] in _ENDED:
                return str(run["id"]), str(run["state_type"])
        raise AssertionError("unreachable: looking ends with an error")

    def collect(self, job_id: str) -> None:
        """Copy output and report out of the bucket, which ends with the demonstration."""
        bucket = self.site.bucket
        for info in bucket.list(f"outbox/{job_id}"):
            path = self.directory / "out" / info.key.removeprefix(f"outbox/{job_id}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bucket.get(info.key))
        for name in ("report.html", "report.json"):
            (self.directory / name).write_bytes(bucket.get(keys.report(job_id, name.removeprefix("report."))))

    def undisturbed(self) -> None:
        """The same submission on this machine, in a store of its own, left alone."""
        settings = demo_input.settings(self.directory / "model")
        local = {name: value for name, value in settings.items() if name not in ("fleet", "pools", "max_cost_usd")}
        spec = self.directory / "undisturbed.yaml"
        spec.write_text(yaml.safe_dump(local), encoding="utf-8")
        command = [sys.executable, "-m", "shuntserve.cli.app", "run", f"{STORE}/inbox/{SUBMISSION}/*.parquet"]
        command += [f"--spec={spec}", f"--output={self.directory / 'undisturbed'}", f"--workers={demo_input.MACHINES}"]
        command += [f"--store={self.directory / 'undisturbed-store'}"]
        log_path = self.directory / "logs" / "undisturbed.log"
        with log_path.open("ab") as log:
            done = subprocess.run(command, stdout=log, stderr=log, timeout=_LONGEST_S)
        if done.returncode != 0:
            raise Unavailable("the undisturbed run", f"exit code {done.returncode}", f"see {log_path}")

    # -- the account -------------------------------------------------------------------------------------------------

    def summary(self, status: JobStatus) -> dict[str, Any]:
        """The numbers of the end. Rows are counted anew, from the files a user reads."""
        told = status.to_json()
        assert status.final is not None
        data, rejects = (_rows(self.directory / "out" / which) for which in ("data", "rejects"))
        count = len(self.rows)
        ended = Counter(row["number"] for row in data)
        ended.update(demo_input.number(row["source_file"], row["source_row"], count) for row in rejects)
        here, there = _texts(data), _texts(_rows(self.directory / "undisturbed" / "data"))
        return {
            "job": status.job.job_id,
            "state": told["state"],
            "rows_in": count,
            "rows_out": len(data),
            "rows_rejected": len(rejects),
            "interruptions": len(told["interruptions"]),
            "resumed_rows": status.final.totals.resumed_rows,
            "tokens_kept": status.final.totals.tokens_kept,
            "tokens_regenerated": told["tokens"]["regenerated"],
            "duplicates": ended.total() - len(ended),
            "missing": len(set(range(count)) - ended.keys()),
            "texts_compared": len(here.keys() | there.keys()),
            "texts_differing": sum(here.get(name) != there.get(name) for name in here.keys() | there.keys()),
            "machines_launched": len(status.fleet.launches),
            "spent_usd": round(told["cost"]["spent_usd"], 6),
            "on_demand_usd": told["cost"]["on_demand_usd"],
        }

    # -- looking -----------------------------------------------------------------------------------------------------

    def _statuses(self, job_id: str) -> Iterator[JobStatus]:
        for _ in self._looks("the job"):
            with contextlib.suppress(Unavailable):
                yield job_status(self.site.bucket, job_id)

    def _looks(self, what: str, longest_s: float = _LONGEST_S) -> Iterator[None]:
        """Once a second, until nobody looks any more. Raises Unavailable when that takes too long."""
        give_up_s = time.monotonic() + longest_s
        while time.monotonic() < give_up_s:
            yield
            time.sleep(_LOOK_S)
        raise Unavailable(what, "does not come to an end", f"see {self.directory / 'logs'}")


def generating(status: JobStatus) -> list[str]:
    """Nodes on which rows are being generated, with something to lose and something durable."""
    if status.snapshot is None:
        return []
    busy = [one for one in status.snapshot.live if one.count("in_engine") and one.count("tokens_durable")]
    return sorted({str(one.facts["node"]) for one in busy if one.facts.get("node") is not None})


def _runs(process: psutil.Process, *words: str) -> bool:
    """Whether all these words are in its command line."""
    with contextlib.suppress(psutil.Error):
        return set(words) <= set(process.cmdline())
    return False


def _rows(directory: Path) -> list[dict[str, Any]]:
    """What a user reads there."""
    rows: list[dict[str, Any]] = pq.read_table(directory).to_pylist()
    return rows


def _texts(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["request_id"]: row["output_text"] for row in rows}


def main() -> int:
    """Run the demonstration; 0 when every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m shuntserve.cli.demo", description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path("demo"))
    parser.add_argument("--keep", action="store_true", help="keep Prefect's pages up until Ctrl-C")
    arguments = parser.parse_args()
    directory = arguments.directory.absolute()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    own_environment(directory)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    demo = Demo(directory, Site(directory))
    try:
        summary = _play(demo)
        kept = _tell(demo, summary)
        if arguments.keep:
            demo.say(f"kept up until Ctrl-C: [bold]{demo.site.prefect_url}/runs/flow-run/{summary['flow_run']}[/]")
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
        return 0 if kept else 1
    except ShuntServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("broken off; nothing of it is left running", file=sys.stderr)
        return 130
    finally:
        demo.site.close()


def _play(demo: Demo) -> dict[str, Any]:
    began_s = time.monotonic()
    demo.say("starting S3, EC2 and Prefect on the loopback")
    demo.site.open()
    demo.say(f"[bold]Prefect: {demo.site.prefect_url}[/] (while this runs)")
    job_id = demo.job(demo.submit())
    status = demo.work(job_id)
    flow_run, flow_state = demo.flow_end()
    demo.collect(job_id)
    instances = demo.site.instances()
    left = len(demo.site.fleet())
    demo.say("and once more on this machine, undisturbed, to compare")
    demo.undisturbed()
    return {
        **demo.summary(status),
        "flow_run": flow_run,
        "flow": flow_state,
        "instances_running": sum(state != "terminated" for state in instances.values()),
        "processes_left": left,
        "elapsed_s": round(time.monotonic() - began_s, 1),
    }


def _tell(demo: Demo, summary: dict[str, Any]) -> bool:
    """Show how it went and where to look; whether every promise was kept."""
    kept = promises_kept(summary)
    (demo.directory / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    Console(highlight=False).print(_table(summary))
    print("every promise kept" if kept else "SOMETHING IS WRONG")
    for what, where in (("report", "report.html"), ("output", "out"), ("numbers", "summary.json"), ("logs", "logs")):
        print(f"  {what:8} {demo.directory / where}")
    return kept


def promises_kept(summary: dict[str, Any]) -> bool:
    """Whether the demonstration showed what it is to show."""
    return (
        summary["duplicates"] == summary["missing"] == summary["texts_differing"] == 0
        and summary["instances_running"] == summary["processes_left"] == 0
        and summary["rows_out"] + summary["rows_rejected"] == summary["rows_in"]
        and summary["rows_out"] == summary["texts_compared"]
        and summary["interruptions"] >= 2
        and summary["resumed_rows"] > 0
        and summary["flow"] == "COMPLETED"
    )


def _table(summary: dict[str, Any]) -> Table:
    meaning = {
        "rows_in": "rows in the submission",
        "rows_out": "rows answered",
        "rows_rejected": "bad rows planted, each with its reason in rejects",
        "interruptions": "an instance taken with notice, a worker killed with SIGKILL",
        "machines_launched": "instances bought, each terminated in the end",
        "resumed_rows": "rows continued where they were interrupted",
        "tokens_kept": "their tokens, not generated again",
        "tokens_regenerated": "tokens lost with a process before they were checkpointed",
        "duplicates": "rows answered twice",
        "missing": "rows without answer or reason",
        "texts_differing": f"of {summary['texts_compared']} texts, those unlike the undisturbed run's",
    }
    title = f"ShuntServe demo: {duration(summary['elapsed_s'])}"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("", style="bold")
    table.add_column("", justify="right")
    table.add_column("")
    for name, text in meaning.items():
        table.add_row(name, f"{summary[name]:,}", text)
    if summary["on_demand_usd"]:
        table.add_row("spent_usd", f"{summary['spent_usd']:.4f}", f"on demand: {summary['on_demand_usd']:.4f}")
    return table


if __name__ == "__main__":
    sys.exit(main())

"""Jobs on a local fleet under SIGKILL: controller, machines, agents, workers as real processes, and a check of every
row against an undisturbed run on one machine."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from shuntserve.core.desired import Desired, Pipeline
from shuntserve.job.fleet_records import PlanRecord, newest_plan
from shuntserve.job.status import JobStatus, job_status
from shuntserve.store import keys
from shuntserve.store.open import open_bucket
from tests.support.kills import MAX_MODEL_LEN, KillTrial

MODULES = {
    "controller": ("shuntserve.cli.app", "controller"),
    "machine": ("shuntserve.fleet.local_machine",),
    "agent": ("shuntserve.fleet.agent_main",),
    "worker": ("shuntserve.job.worker_main",),
}
KINDS = tuple(MODULES)


class FleetTrial(KillTrial):
    """One input, its undisturbed run, and any number of jobs on local fleets."""

    def submit(self, name: str, *more: str, nodes: int = 2, source: Path | None = None) -> FleetJob:
        """Submit the planted input (or another) as a job of its own; its controller starts."""
        command = [
            *(str(Path(sys.executable).with_name("shuntserve")), "submit", str(source or self.input)),
            *(f"--model={self.model}", f"--store={self.directory / f'store-{name}'}"),
            *(f"--output={self.directory / f'out-{name}'}", *([f"--pool=local={nodes}@1"] if nodes else [])),
            f"--name={name}",
            "--max-cost-usd=100",
            *("--set=max_reject_fraction=1", "--set=max_length_finish_fraction=1", "--set=seed=7"),
            *("--set=checkpoint_interval_s=0.5", "--set=lease_s=3", "--set=spending_lease_s=20"),
            f'--set=engine={{"max_model_len": {MAX_MODEL_LEN}, {self._engine_settings()}}}',
            *self.engine_arguments(),
            *("--json", *more),
        ]
        done = self.run(command)
        assert done.returncode == 0, done.stderr
        return FleetJob(self, f"store-{name}", str(json.loads(done.stdout)["job"]))

    def engine_arguments(self) -> list[str]:
        """Which engine the job's workers run, for commands that start a controller."""
        return [text for text in self.engine.arguments if text.startswith("--worker-engine")]

    def _engine_settings(self) -> str:
        """The engine options of `shuntserve run`, as settings of a job."""
        pairs = [text.split("=", 2)[1:] for text in self.engine.arguments if text.startswith("--engine=")]
        plain = {"true", "false"}
        values = [f'"{name}": {text if text in plain or text.isdigit() else json.dumps(text)}' for name, text in pairs]
        return ", ".join(values) or '"dtype": "auto"'

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """A command to its end, in this trial's environment."""
        return subprocess.run(command, capture_output=True, text=True, env=self.environment(), timeout=120, check=False)

    def run_detached(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """A command in a session of its own."""
        environment = self.environment()
        with (self.directory / "commands.log").open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def environment(self) -> Mapping[str, str]:
        """What the trial's processes see."""
        return {**os.environ, **self.engine.environment, "XDG_DATA_HOME": str(self.directory / "data")}

    def processes(self, kind: str) -> list[psutil.Process]:
        """This trial's living processes of one kind."""
        wanted = MODULES[kind]
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                words = process.cmdline()
                here = any(str(self.directory) in word for word in words)
                if here and all(word in words for word in wanted) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def kill_machine(self, node: str) -> None:
        """Cut one machine's power: its process and everything below it, at once."""
        for machine in self.processes("machine"):
            if any(word.endswith(f"/{node}") for word in machine.cmdline()):
                for process in (machine, *machine.children(recursive=True)):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()

    def kill(self, *kinds: str) -> int:
        """SIGKILL every process of these kinds at once; how many there were."""
        victims = [process for kind in kinds for process in self.processes(kind)]
        for process in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return len(victims)


class FleetJob:
    """One job of a trial."""

    def __init__(self, trial: FleetTrial, store: str, job_id: str) -> None:
        self.trial = trial
        self.id = job_id
        self.store = str(trial.directory / store)
        self.bucket = open_bucket(self.store)

    def status(self) -> JobStatus:
        """How it stands now."""
        return job_status(self.bucket, self.id)

    def command(self, verb: str, *more: str) -> subprocess.CompletedProcess[str]:
        """`shuntserve VERB JOB …`."""
        program = str(Path(sys.executable).with_name("shuntserve"))
        return self.trial.run([program, verb, self.id, f"--store={self.store}", *more])

    def controller_command(self) -> list[str]:
        """One more controller of this job."""
        engine = self.trial.engine_arguments()
        return [sys.executable, "-m", "shuntserve.cli.app", "controller", self.id, f"--store={self.store}", *engine]

    def go_on(self) -> None:
        """What a flow does: make sure that a controller is at work."""
        done = self.command("resume", *self.trial.engine_arguments())
        assert done.returncode == 0, done.stderr

    def wait_for(self, what: Callable[[JobStatus], bool], within_s: float = 90.0) -> JobStatus:
        """Wait until the job's status satisfies `what`."""
        deadline_s = time.monotonic() + within_s
        while True:
            status = self.status()
            if what(status):
                return status
            if time.monotonic() >= deadline_s:
                raise AssertionError(f"not within {within_s} s: {json.dumps(status.to_json())}\n{self.log_tail()}")
            time.sleep(0.2)

    def generating(self, within_s: float = 90.0) -> JobStatus:
        """Wait until both durable and undurable work is under way."""
        return self.wait_for(lambda status: status.snapshot is not None and under_way(status), within_s)

    def ended(self, within_s: float = 90.0) -> JobStatus:
        """Wait for the end of the job, its fleet and its controller."""
        return self.wait_for(
            lambda status: status.final is not None and not status.fleet.open_launches and not status.controller_alive,
            within_s,
        )

    def plan(self) -> PlanRecord:
        """The newest plan."""
        found = newest_plan(self.bucket, self.id)
        assert found is not None
        return found

    def formations(self) -> list[Pipeline]:
        """Every formation of every pipeline, in the order of the plans that made them."""
        found: dict[tuple[str, int], Pipeline] = {}
        for info in self.bucket.list(keys.plans(self.id)):
            desired = Desired.from_json(json.loads(self.bucket.get(info.key))["desired"])
            for pipeline in desired.pipelines:
                found.setdefault((pipeline.id, pipeline.generation), pipeline)
        return list(found.values())

    def machine_directory(self, node: str) -> Path:
        """Where a local machine's files are."""
        (found,) = (self.trial.directory / "data" / "shuntserve" / "machines").glob(f"*/{self.id}/{node}")
        return found

    def log_tail(self) -> str:
        """The end of the controller's log."""
        path = self.trial.directory / "data" / "shuntserve" / "logs" / self.id / "controller.jsonl"
        return path.read_text()[-3000:] if path.exists() else ""

    def report(self) -> dict[str, Any]:
        """The status as programs see it."""
        return self.status().to_json()


def under_way(status: JobStatus) -> bool:
    """Whether a worker generates, and has durable tokens."""
    assert status.snapshot is not None
    live = status.snapshot.live
    return any(worker.count("in_engine") and worker.count("tokens_durable") for worker in live)

"""The `shuntserve` command as a user runs it: a process of its own, its store, output and logs in one directory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from shuntserve.job.manifests import load_manifest
from shuntserve.job.status import job_ids
from shuntserve.job.watch import Snapshot, Watcher
from shuntserve.sim.tiny_model import TinyModel, write_tiny_model
from shuntserve.store.open import open_bucket

ENTRY = [sys.executable, "-m", "shuntserve.cli.app"]
PATIENCE_S = 120.0
CRASH_TEXT = "<|think|>"
"""A prompt with this text holds `CRASH_TOKEN`."""
CRASH_TOKEN = 4


def wait_for(what: str, condition: Callable[[], Any]) -> Any:
    """The condition's first truthy value."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {PATIENCE_S:.0f} s in vain for {what}")


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def summary(self) -> dict[str, Any]:
        """What `--json` printed."""
        value: dict[str, Any] = json.loads(self.stdout.splitlines()[-1])
        return value


@dataclass
class Running:
    """A command under way."""

    child: subprocess.Popen[str]

    def wait(self, timeout_s: float = PATIENCE_S) -> Finished:
        stdout, stderr = self.child.communicate(timeout=timeout_s)
        return Finished(self.child.returncode, stdout, stderr)

    def signal(self, number: signal.Signals) -> None:
        self.child.send_signal(number)

    def below(self) -> list[psutil.Process]:
        """Every process it has started, directly or not."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.child.pid).children(recursive=True)
        return []

    def running(self, module: str) -> list[psutil.Process]:
        """Those of them that run this module."""
        found = []
        for process in self.below():
            with contextlib.suppress(psutil.NoSuchProcess):
                if module in process.cmdline():
                    found.append(process)
        return found


@dataclass
class Workplace:
    """One directory with a model, an input and whatever the commands make."""

    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def model(self) -> Path:
        path = self.directory / "model"
        return path if path.exists() else write_tiny_model(path, TinyModel())

    def write(self, rows: Sequence[Mapping[str, Any]], name: str = "prompts.parquet") -> Path:
        """A Parquet file of these rows."""
        path = self.directory / name
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
        return path

    @property
    def whole_environment(self) -> dict[str, str]:
        """What every process of this workplace sees."""
        return {
            **os.environ,
            "XDG_DATA_HOME": str(self.directory / "data"),
            "SHUNTSERVE_STORE": str(self.directory / "store"),
            **self.environment,
        }

    def start(self, *arguments: str | Path) -> Running:
        """Start `shuntserve` with these arguments."""
        child = subprocess.Popen(
            [*ENTRY, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.whole_environment,
            cwd=self.directory,
            start_new_session=True,
        )
        return Running(child)

    def call(self, *arguments: str | Path) -> Finished:
        """Run `shuntserve` to its end."""
        return self.start(*arguments).wait()

    def run_arguments(self, *more: str | Path, slow: bool = False, **engine: Any) -> list[str | Path]:
        """`run` on the written input with the stand-in engine; `slow` leaves time to do something to it."""
        options = {"seats": 8, "step_s": 0.02 if slow else 0.001, "stream_interval": 2, **engine}
        return [
            "run",
            *(() if any(str(one).endswith(("parquet", "jsonl")) for one in more) else ("prompts.parquet",)),
            f"--model={self.model}",
            "--output=out",
            "--workers=2",
            "--checkpoint-interval=0.3",
            "--lease=3",
            "--max-length-finish-fraction=1",
            "--json",
            "--worker-engine=shuntserve.wiring:standin_engine",
            f"--worker-engine-options={json.dumps(options)}",
            *more,
        ]

    def snapshot(self) -> Snapshot | None:
        """How the workplace's only job stands; None until it has been ingested."""
        if not (self.directory / "store/jobs").exists():
            return None
        bucket = open_bucket(self.directory / "store")
        for job_id in job_ids(bucket):
            manifest = load_manifest(bucket, job_id)
            if manifest is not None:
                return Watcher(bucket, job_id, manifest).snapshot()
        return None

    def until(self, what: str, reached: Callable[[Snapshot], bool]) -> Snapshot:
        """Wait until the job has got there."""

        def look() -> Snapshot | None:
            snapshot = self.snapshot()
            return snapshot if snapshot is not None and reached(snapshot) else None

        found: Snapshot = wait_for(what, look)
        return found

    def until_generating(self) -> Snapshot:
        """Wait until some output is durable and more is under way."""
        return self.until(
            "output under way",
            lambda seen: seen.total("tokens_durable") > 0 and any(one.count("in_engine") for one in seen.live),
        )

    def data(self, output: str = "out") -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = ds.dataset(self.directory / output / "data").to_table().to_pylist()
        return rows

    def texts(self, output: str = "out") -> dict[str, str]:
        """Output texts by id; no id may come twice."""
        rows = self.data(output)
        texts = {row["request_id"]: row["output_text"] for row in rows}
        assert len(texts) == len(rows), "an id occurs twice"
        return texts

    def rejects(self, output: str = "out") -> dict[int, str]:
        """Reject codes by row number; no row may come twice."""
        rows = ds.dataset(self.directory / output / "rejects").to_table().to_pylist()
        codes = {row["source_row"]: row["code"] for row in rows}
        assert len(codes) == len(rows), "a row occurs twice"
        return codes

    def processes(self) -> list[psutil.Process]:
        """Everything alive that was started here, whoever its parent is now."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                line = process.cmdline()
                ours = any("shuntserve" in word for word in line)
                if ours and process.environ().get("XDG_DATA_HOME") == str(self.directory / "data"):
                    found.append(process)
        return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


def prompts(rows: int, max_tokens: int = 60) -> list[dict[str, Any]]:
    """Rows that take the stand-in engine a while, half greedy, half sampled."""
    return [
        {
            "request_id": f"row-{index:03d}",
            "prompt": f"tell me about river {index}",
            "max_tokens": max_tokens,
            "sampling_params": json.dumps({"temperature": index % 2, "ignore_eos": True}),
        }
        for index in range(rows)
    ]

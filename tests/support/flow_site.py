"""A whole site as a user has it: a bucket on an S3 server, Prefect's server with the deployments, a worker,
automations, and jobs on a local fleet with the stand-in engine."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import s3fs

from shuntserve.sim.tiny_model import TinyModel, write_tiny_model
from shuntserve.store.open import open_bucket
from shuntserve.store.port import Bucket
from tests.conformance.s3_server import S3Server
from tests.support.command import prompts
from tests.support.prefect_server import CHECKOUT, POOL, PrefectServer

BUCKET = "shunt"
QUIET_S = 6.0


def until(what: str, condition: Callable[[], Any], timeout_s: float = 300.0) -> Any:
    """The condition's first truthy value; asked rarely, because the S3 server lives in this process."""
    give_up_s = time.monotonic() + timeout_s
    while time.monotonic() < give_up_s:
        value = condition()
        if value:
            return value
        time.sleep(0.5)
    raise AssertionError(f"waited {timeout_s:.0f} s in vain for {what}")


@dataclass
class FlowSite:
    """See the module's docstring."""

    directory: Path
    s3: S3Server
    prefect: PrefectServer
    model: Path

    @property
    def store_url(self) -> str:
        return f"s3://{BUCKET}/store"

    @property
    def bucket(self) -> Bucket:
        return open_bucket(self.store_url, s3=self.s3.options)

    @property
    def filesystem(self) -> s3fs.S3FileSystem:
        return s3fs.S3FileSystem(
            key="test",
            secret="test",
            endpoint_url=self.s3.endpoint_url,
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def settings(self, **more: Any) -> dict[str, Any]:
        """Job settings that suit tests."""
        return {
            "model": str(self.model),
            "pools": ["local=1"],
            "checkpoint_interval_s": 0.5,
            "lease_s": 3,
            "spending_lease_s": 20,
            "max_length_finish_fraction": 1,
            "seed": 7,
            **more,
        }

    # -- input -----------------------------------------------------------------------------------------------------

    def drop(self, path: str, rows: Sequence[Mapping[str, Any]]) -> str:
        """A Parquet file in the inbox; its URL."""
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), file)
        self.bucket.put(f"inbox/{path}", file.getvalue())
        return f"{self.store_url}/inbox/{path}"

    def write(self, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
        """A Parquet file beside the inbox; its URL."""
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), file)
        self.bucket.put(f"given/{name}.parquet", file.getvalue())
        return f"{self.store_url}/given/{name}.parquet"

    def batch(self, name: str, rows: Sequence[Mapping[str, Any]], *, given: Mapping[str, Any] = {}, **more: Any) -> str:
        """Start a run of the batch deployment on these rows; its id."""
        settings = self.settings(**more)
        model = settings.pop("model")
        return self.prefect.run(
            "shuntserve-batch/batch",
            input=self.write(name, rows),
            model=model,
            name=name,
            settings=settings,
            **given,
        )

    def save_block(self, name: str) -> str:
        """Register the block type and save the site's store as a block; what a flow's `store` says for it."""
        self.prefect.command("block", "register", "--file", "flows/blocks.py")
        secrets = {"AWS_SECRET_ACCESS_KEY": "test"}
        program = f"""from flows.blocks import ShuntServeStore
ShuntServeStore(url={self.store_url!r}, environment={secrets!r}).save({name!r}, overwrite=True)"""
        subprocess.run([sys.executable, "-c", program], env=self.prefect.environ, cwd=CHECKOUT, check=True)
        return f"block:{name}"

    # -- jobs ------------------------------------------------------------------------------------------------------

    def jobs(self, name: str) -> list[str]:
        """Ids of the jobs of this name."""
        return [job for job in self.bucket.list_dirs("jobs") if job.rpartition("-")[0] == name]

    def job(self, name: str) -> str:
        """The one job of this name, once it is there."""
        until(f"job {name}", lambda: self.jobs(name))
        (job_id,) = self.jobs(name)
        return job_id

    def status(self, job_id: str) -> dict[str, Any]:
        """`shuntserve status --json`."""
        found: dict[str, Any] = json.loads(self.command("status", job_id, "--json"))
        return found

    def command(self, *arguments: str, exit_codes: Sequence[int] = (0,)) -> str:
        """Run `shuntserve` against the store; what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "shuntserve.cli.app", *arguments],
            env={**os.environ, **self.prefect.environment},
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode in exit_codes, f"{arguments}: {done.returncode} {done.stdout}{done.stderr}"
        return done.stdout

    def generating(self, job_id: str) -> bool:
        """Whether some of the job's output is durable and rows are left."""
        for info in self.bucket.list(f"jobs/{job_id}/workers"):
            facts = json.loads(self.bucket.get(info.key))["facts"]
            if facts.get("tokens_durable") and facts.get("in_engine"):
                return True
        return False

    def rows(self, job_id: str, which: str = "data") -> list[dict[str, Any]]:
        """What the job answered, or its rejects; no id may come twice."""
        root = f"{BUCKET}/store/outbox/{job_id}"
        manifest = json.loads(self.bucket.get(f"outbox/{job_id}/_manifest.json"))
        paths = [f"{root}/{part['path']}" for part in manifest[which]]
        if not paths:
            return []
        rows: list[dict[str, Any]] = ds.dataset(paths, filesystem=self.filesystem).to_table().to_pylist()
        ids = [row["request_id"] for row in rows]
        assert len(set(ids)) == len(ids), "an id occurs twice"
        return rows

    def texts(self, job_id: str) -> dict[str, str]:
        return {row["request_id"]: row["output_text"] for row in self.rows(job_id)}

    # -- processes -------------------------------------------------------------------------------------------------

    def processes(self, *words: str) -> list[psutil.Process]:
        """Everything of the fleet that is alive and has one of these words in its command line (all: no words)."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                ours = process.environ().get("XDG_DATA_HOME") == str(self.directory / "data")
                line = " ".join(process.cmdline())
                if (
                    ours
                    and "shuntserve" in line
                    and "prefect" not in line
                    and (not words or any(w in line for w in words))
                ):
                    found.append(process)
        return found

    def start_worker(self) -> None:
        self.prefect.start_worker()


@contextlib.contextmanager
def flow_site(directory: Path) -> Iterator[FlowSite]:
    """Set a site up as the README says, and leave nothing of it behind."""
    s3 = S3Server()
    s3.make_bucket(BUCKET)
    environment = {
        **s3.environ,
        "AWS_ENDPOINT_URL": s3.endpoint_url,
        "XDG_DATA_HOME": str(directory / "data"),
        "SHUNTSERVE_STORE": f"s3://{BUCKET}/store",
        "SHUNTSERVE_WORKER_ENGINE": "shuntserve.wiring:standin_engine",
        "SHUNTSERVE_WORKER_ENGINE_OPTIONS": json.dumps({"seats": 8, "step_s": 0.02, "stream_interval": 2}),
        "HF_HUB_OFFLINE": "1",
    }
    prefect = PrefectServer(directory, environment)
    site = FlowSite(directory, s3, prefect, write_tiny_model(directory / "model", TinyModel()))
    try:
        prefect.start_server()
        prefect.command("work-pool", "create", POOL, "--type", "process")
        prefect.command("deploy", "--all", "--no-prompt")
        prefect.set_variable("shuntserve_inbox", site.settings())
        subprocess.run(
            [sys.executable, str(CHECKOUT / "infra/prefect/automations/apply.py")], env=prefect.environ, check=True
        )
        site.start_worker()
        yield site
    finally:
        prefect.stop()
        for process in site.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        s3.stop()


def rows(count: int, max_tokens: int = 60) -> list[dict[str, Any]]:
    """Prompts that take the stand-in engine a while."""
    return prompts(count, max_tokens)

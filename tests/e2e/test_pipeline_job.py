"""A whole job on a pipeline over two hosts, one of which is taken away: the survivors finish it, every row once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from shuntserve.core.rendezvous import Rendezvous
from shuntserve.core.specs import JobSpec
from shuntserve.core.topology import PipelineTopology
from shuntserve.engine.launch import NodeProcess, leader_options
from shuntserve.job.carried import carried_type
from shuntserve.job.finalize import finalize
from shuntserve.job.ingest import ingest
from shuntserve.job.output_place import OutputPlace
from shuntserve.job.submission import submit_spec
from shuntserve.job.worker_main import Exit
from shuntserve.sim.tiny_model import TinyModel, write_tiny_model
from shuntserve.store.open import open_bucket
from tests.support.netns import Hosts, hosts
from tests.support.pipelines import worker_of
from tests.support.vllm_driver import START_TIMEOUT_S

__all__ = ["hosts"]

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

ROWS = 80
MAX_TOKENS = 240
TOPOLOGY = PipelineTopology.of([2, 1], [5, 3], node_ranks=[2, 1])
SIZES = {"max_num_seqs": 16, "kv_cache_memory_bytes": 1 << 26}
WORDS = ("river", "stone", "window", "signal", "early", "machine", "garden", "between", "nothing", "letter")


class Job:
    """The same rows in a store of their own, and workers on them."""

    def __init__(self, directory: Path, model: Path) -> None:
        self.directory = directory
        directory.mkdir()
        rows = [
            {
                "request_id": f"row-{row:03d}",
                "prompt": " ".join(WORDS[(row * 3 + i * 7) % len(WORDS)] for i in range(3 + row % 20)),
                "sampling_params": json.dumps({"temperature": 0.9 if row % 2 else 0.0, "ignore_eos": True}),
            }
            for row in range(ROWS)
        ]
        pq.write_table(pa.Table.from_pylist(rows), directory / "rows.parquet")
        self.store = f"file://{directory}/store"
        self.bucket = open_bucket(self.store)
        spec = JobSpec(
            input=directory / "rows.parquet",
            model=model,
            seed=7,
            sampling_params={"max_tokens": MAX_TOKENS},
            engine={"max_model_len": 512, "dtype": "float32", "enforce_eager": True, **SIZES},
            max_length_finish_fraction=1.0,
            lease_s=4.0,
            checkpoint_interval_s=0.5,
        )
        self.resolved = submit_spec(self.bucket, spec)
        self.manifest = ingest(self.bucket, self.resolved)

    def worker(self, name: str, **options: Any) -> subprocess.Popen[bytes]:
        """A worker process with engine options of its machine; its log events are in `<name>.log`."""
        logs = self.directory / name
        command = [
            *(sys.executable, "-m", "shuntserve.job.worker_main"),
            f"--store={self.store}",
            f"--job={self.resolved.job_id}",
            f"--log-dir={logs}",
            f"--engine-options={json.dumps({'cpu_threads': 1, **options})}",
        ]
        with (self.directory / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)

    def events(self, name: str, event: str) -> list[dict[str, Any]]:
        lines = (self.directory / f"{name}.log").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line.get("event") == event]

    def durable_tokens(self) -> int:
        reports = (self.directory / "store").glob("jobs/*/workers/*.json")
        return sum(json.loads(report.read_text())["facts"].get("tokens_durable") or 0 for report in reports)

    def results(self) -> dict[str, dict[str, Any]]:
        """By id, after the workers are done; raises when an id is there twice."""
        place = OutputPlace(open_bucket(f"file://{self.directory}/out"))
        place.reserve(self.resolved.job_id, self.bucket.url, overwrite=False)
        finalize(self.bucket, self.resolved, self.manifest, carried_type(self.resolved), place, "test")
        rows = ds.dataset(self.directory / "out" / "data", format="parquet").to_table().to_pylist()
        found = {row["request_id"]: row for row in rows}
        assert len(found) == len(rows), "an id occurs twice"
        return found


def wait_until(condition: Any, within_s: float, what: str) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"{what} did not come within {within_s} s"
        time.sleep(0.1)


def test_a_job_survives_the_loss_of_a_stage_with_the_same_text(hosts: Hosts, tmp_path: Path) -> None:
    """A stage's worker on the other host is killed in the middle: the worker gives its rows back with what they have
    within ten seconds, nothing is left of the generation, and another worker finishes the job. Every id is there once
    with the text of an undisturbed run."""
    model = write_tiny_model(tmp_path / "model", TinyModel("llama", layers=8))
    undisturbed, job = Job(tmp_path / "undisturbed", model), Job(tmp_path / "job", model)
    alone = undisturbed.worker("alone")
    rendezvous_path = tmp_path / "rendezvous.json"
    with hosts.inside("a"):
        leader = job.worker("leader", pipeline=leader_options(TOPOLOGY, "g", hosts.addresses["a"], rendezvous_path))
    wait_until(rendezvous_path.exists, START_TIMEOUT_S, "the rendezvous")
    rendezvous = Rendezvous.from_json(rendezvous_path.read_text())
    node = NodeProcess(rendezvous, 1, hosts.addresses["b"], tmp_path, options={"cpu_threads": 1})
    workers = [alone, leader]
    try:
        with hosts.inside("b"):
            node.start()
        wait_until(lambda: job.durable_tokens() > 200, START_TIMEOUT_S, "the first checkpoint")

        struck_s = time.monotonic()
        os.kill(worker_of(node.process_ids), signal.SIGKILL)
        wait_until(
            lambda: job.events("leader", "engine_lost") and not node.process_ids, 10, "the end of the generation"
        )
        over_s = time.monotonic() - struck_s
        leader.send_signal(signal.SIGTERM)  # as its agent does when there is no node to try again with
        survivor = job.worker("survivor")
        workers.append(survivor)
        assert leader.wait(30) == Exit.DRAINED
        for worker in (alone, survivor):
            assert worker.wait(240) == Exit.DONE, worker.args
        expected, got = undisturbed.results(), job.results()
    finally:
        node.stop()
        for worker in workers:
            worker.kill()
            worker.wait()

    (lost,) = job.events("leader", "engine_lost")
    assert lost["kind"] == "killed", lost
    assert len(expected) == ROWS
    assert {name: row["output_text"] for name, row in got.items()} == {
        name: row["output_text"] for name, row in expected.items()
    }
    assert sum(row["resumed_count"] for row in got.values()) > 0
    print(f"over {over_s:.1f} s after the kill")

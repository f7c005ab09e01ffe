"""A job on a local fleet whose one replica stands on two machines, with unlike stages, on real vLLM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.fleets import FleetTrial
from tests.support.kills import MAX_MODEL_LEN, VLLM

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


def test_a_replica_on_two_machines_survives_the_loss_of_one_with_the_same_text(tmp_path: Path) -> None:
    """Two ranks on one machine, one on the other: the second machine is killed in the middle, another takes its place,
    the pipeline is formed anew from the survivor and it, and every row is there once with the text of one process."""
    trial = FleetTrial(tmp_path, VLLM, seed=14, rows=48)
    layers = json.loads((trial.model / "config.json").read_text())["num_hidden_layers"]
    shape = f"local:tp=2:layers={layers - 1},local:tp=1:layers=1"
    engine = {
        "max_model_len": MAX_MODEL_LEN,
        "dtype": "float32",
        "enforce_eager": True,
        "max_num_seqs": 16,
        "kv_cache_memory_bytes": 1 << 27,
    }
    try:
        job = trial.submit("pipe", f"--pipeline={shape}", f"--set=engine={json.dumps(engine)}")
        job.generating(within_s=300.0)
        first = job.plan()
        assert [len(pipeline.nodes) for pipeline in first.desired.pipelines] == [2]

        follower = first.desired.pipelines[0].nodes[1]
        trial.kill_machine(follower)
        status = job.ended(within_s=400.0)

        trial.check("pipe")
        assert status.exit_code == 0
        assert status.final is not None
        assert status.final.totals.tokens_kept > 0
        formed = job.formations()
        assert len(formed) >= 2, "the pipeline was formed anew"
        assert follower not in formed[-1].nodes
        assert formed[-1].nodes[0] == formed[0].nodes[0], "the survivor stayed"
        assert trial.survivors() == []
    finally:
        trial.kill("controller", "machine", "agent", "worker")

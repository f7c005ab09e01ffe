"""A job on a local fleet with real vLLM, all of whose processes are killed at once in the middle and started again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fleets import FleetTrial
from tests.support.kills import VLLM

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


def test_everything_killed_at_once_on_real_vllm_then_started_again(tmp_path: Path) -> None:
    """Controller, machine, agent, worker and engine killed at one moment: after a new start every row is there once,
    with the undisturbed run's text, tokens of before are kept, and no process is left."""
    trial = FleetTrial(tmp_path, VLLM, seed=13, rows=48)
    try:
        job = trial.submit("all", nodes=1)
        job.generating(within_s=300.0)
        assert trial.kill("controller", "machine", "agent", "worker") >= 4
        assert trial.survivors() == []

        job.go_on()
        status = job.ended(within_s=300.0)

        trial.check("all")
        assert status.exit_code == 0
        assert status.final is not None
        assert status.final.totals.tokens_kept > 0
        assert trial.survivors() == []
    finally:
        trial.kill("controller", "machine", "agent", "worker")

"""`shuntserve inbox scan`: the drop folder without Prefect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command import Workplace, prompts, wait_for

pytestmark = pytest.mark.timeout(240)


def test_a_look_by_hand_starts_each_submission_once(tmp_path: Path) -> None:
    """What is complete becomes a job that runs by itself; a second look has nothing to do; what cannot be a job is
    refused with the reason, what is not complete is named."""
    place = Workplace(tmp_path, {"SHUNTSERVE_WORKER_ENGINE": "shuntserve.wiring:standin_engine"})
    (tmp_path / "store/inbox/good").mkdir(parents=True)
    (tmp_path / "store/inbox/bad").mkdir()
    place.write(prompts(6, 10), "store/inbox/good/rows.parquet")
    (tmp_path / "store/inbox/good/_READY").touch()
    (tmp_path / "store/inbox/bad/rows.parquet").write_bytes(b"no Parquet")
    (tmp_path / "store/inbox/bad/_READY").touch()
    place.write(prompts(2, 10), "store/inbox/coming.parquet")
    look = ("inbox", "scan", f"--set=model={place.model}", "--set=max_length_finish_fraction=1", "--quiet=1h", "--json")

    first = place.call(*look)
    again = place.call(*look)
    (job,) = first.summary["started"].values()
    ended = wait_for("the job", lambda: json.loads(place.call("status", job, "--json").stdout)["exit_code"] == 0)

    assert first.exit_code == again.exit_code == 0
    assert first.summary["started"].keys() == {"good"}
    assert "is not a Parquet file" in first.summary["refused"]["bad"]
    assert first.summary["waiting"] == again.summary["waiting"] == {"coming.parquet": "still being written"}
    assert again.summary["started"] == again.summary["refused"] == {}
    assert ended
    assert wait_for("no process left", lambda: not place.processes())

"""The demonstration's own accounting: what it counts, and when it says that every promise was kept."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from shuntserve.cli import demo_input
from shuntserve.cli.demo import promises_kept
from shuntserve.cli.demo_site import MARK, own_environment, sweep
from tests.support.command import wait_for

GOOD: dict[str, Any] = {
    "rows_in": 246,
    "rows_out": 240,
    "rows_rejected": 6,
    "interruptions": 2,
    "resumed_rows": 1,
    "duplicates": 0,
    "missing": 0,
    "texts_compared": 240,
    "texts_differing": 0,
    "flow": "COMPLETED",
    "instances_running": 0,
    "processes_left": 0,
}


@pytest.mark.parametrize(
    "broken",
    [
        {"rows_out": 239},
        {"rows_rejected": 7},
        {"interruptions": 1},
        {"resumed_rows": 0},
        {"duplicates": 1},
        {"missing": 1},
        {"texts_compared": 241},
        {"texts_differing": 1},
        {"flow": "FAILED"},
        {"instances_running": 1},
        {"processes_left": 1},
    ],
)
def test_one_broken_promise_is_enough(broken: dict[str, Any]) -> None:
    """The demonstration succeeds only when all of it is right; any one number that is not makes it fail."""
    assert promises_kept(GOOD)

    assert not promises_kept({**GOOD, **broken})


def test_every_row_of_the_submission_has_the_number_its_place_says(tmp_path: Path) -> None:
    """A reject is known by file and row, an answer by the number it carries; both count the same rows."""
    rows = demo_input.prompts(random.Random(0))
    files = demo_input.submission(tmp_path, rows)

    seen = [
        (row["number"], demo_input.number(f"news/{name}", line, len(rows)))
        for name, body in files.items()
        if name.endswith(".parquet")
        for line, row in enumerate(pq.read_table(io.BytesIO(body)).to_pylist())
    ]

    assert [carried for carried, _ in seen] == list(range(len(rows)))
    assert all(carried == placed for carried, placed in seen)
    assert list(files)[-1] == "job.yaml", "what completes the submission comes last"


def test_nothing_of_the_users_cloud_reaches_the_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Profiles, keys, endpoints and Prefect's settings of who runs it are gone before anything is started."""
    kept = dict(os.environ)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "PREFECT_API_URL", "SHUNTSERVE_STORE"):
        monkeypatch.setenv(name, "the user's")

    own_environment(tmp_path)
    after = dict(os.environ)
    os.environ.clear()
    os.environ.update(kept)

    assert "the user's" not in after.values()
    assert after["AWS_CONFIG_FILE"].startswith(str(tmp_path))


def test_the_sweep_ends_what_carries_the_mark_and_nothing_else(tmp_path: Path) -> None:
    """Processes of this demonstration are killed with all they started; those of another one go on."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'], env={})"
    mine, other = (
        subprocess.Popen([sys.executable, "-c", code], env={**os.environ, MARK: str(tmp_path / name)})
        for name in ("mine", "other")
    )
    try:
        started = wait_for("its child", psutil.Process(mine.pid).children)

        sweep(tmp_path / "mine")

        assert mine.wait(10) != 0
        assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in started)
        assert other.poll() is None
    finally:
        sweep(tmp_path / "other")
        other.wait(10)

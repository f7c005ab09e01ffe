"""After a run: wait, logs, rows replayed, rejects retried, all through the command line."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from tests.support.command import CRASH_TEXT, CRASH_TOKEN, Finished, Workplace, prompts, wait_for

pytestmark = pytest.mark.timeout(240)

STANDIN = "--worker-engine=shuntserve.wiring:standin_engine"
POISON = "row-009"


def standin(**options: Any) -> list[str]:
    return [STANDIN, f"--worker-engine-options={json.dumps({'seats': 8, 'step_s': 0.001, **options})}"]


@dataclass(frozen=True)
class Parent:
    """A finished job with two rejects: an empty prompt and a row that crashed its engine twice."""

    place: Workplace
    job_id: str
    finished: Finished


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Parent:
    place = Workplace(tmp_path_factory.mktemp("parent"))
    rows = prompts(16)
    rows[9]["prompt"] = f"this one {CRASH_TEXT} is poison"
    rows[3]["prompt"] = ""
    place.write(rows)
    finished = place.call(*place.run_arguments("--max-reject-fraction=0.5", "--workers=1", crash_token=CRASH_TOKEN))
    assert finished.exit_code == 0, finished.stderr
    return Parent(place, finished.summary["job"], finished)


def test_a_retry_ends_what_the_first_run_could_not(parent: Parent) -> None:
    """The poisoned row is run again on an engine that survives it: a job of its own with that row alone, its id kept,
    which knows its parent; waiting for it gives its exit code; the same retry again is the same job."""
    place = parent.place
    begun = place.call("retry", parent.job_id, "--code=engine_crash", "--set=lease_s=2", "--json", *standin())
    assert begun.exit_code == 0, begun.stderr
    child = begun.summary["job"]
    waited = place.call("wait", child, "--timeout=60s")
    again = place.call("retry", parent.job_id, "--code=engine_crash", "--set=lease_s=2", "--json", *standin())
    wait_for("the controller to be gone", lambda: not place.processes())

    assert (waited.exit_code, waited.stdout) == (0, "COMPLETED\n")
    answered = ds.dataset(place.directory / "store/outbox" / child / "data").to_table().to_pylist()
    assert [row["request_id"] for row in answered] == [POISON]
    assert again.summary["job"] == child
    status = json.loads(place.call("status", child, "--json").stdout)
    report = json.loads(place.call("report", child, "--json").stdout)
    assert status["parent"] == report["job"]["parent"] == parent.job_id
    assert (report["rows"]["ok"], report["rows"]["total"]) == (1, 1)


def test_a_row_run_again_gives_what_is_stored(parent: Parent) -> None:
    """`rows show --replay`: one engine, one row, the stored seed: the same tokens, exit 0; the crash is one again."""
    place = parent.place
    same = place.call("rows", "show", parent.job_id, "row-001", "--replay", "--json", *standin())
    crash = place.call("rows", "show", parent.job_id, POISON, "--replay", "--json", *standin(crash_token=CRASH_TOKEN))
    healed = place.call("rows", "show", parent.job_id, POISON, "--replay", *standin())

    told = same.summary
    assert same.exit_code == 0, same.stderr
    assert told["replay"]["samples"][0]["token_ids"] == told["samples"][0]["token_ids"]
    assert told["replay"]["samples"][0]["text"] == told["samples"][0]["text"] == place.texts()["row-001"]
    assert told["replay"]["fingerprint"] == {"engine": "standin-1"}
    assert (crash.exit_code, crash.summary["replay"]["same"]) == (0, True)
    assert "SIGABRT" in crash.summary["replay"]["crashed"]
    assert healed.exit_code == 1
    assert place.processes() == []


def test_logs_tell_the_story_without_texts(parent: Parent) -> None:
    """All processes' events in order, each with its job; the crashes are there with chunk and epoch, texts are not."""
    lines = [json.loads(line) for line in parent.place.call("logs", parent.job_id, "--json").stdout.splitlines()]

    events = [line["event"] for line in lines]
    assert [one for one in events if one.startswith(("job", "ingest", "finalize"))][:3] == [
        "job_submitted",
        "ingest_started",
        "ingest_finished",
    ]
    assert events.count("row_poisoned") == 1
    assert events.index("worker_started") < events.index("row_poisoned") < events.index("job_finished")
    assert {line["job"] for line in lines} == {parent.job_id}
    assert all("chunk" in line and "epoch" in line for line in lines if line["event"].startswith("chunk_"))
    assert "river" not in json.dumps(lines)


def test_following_logs_ends_with_ctrl_c(parent: Parent) -> None:
    """`logs -f` shows what is there and waits for more; Ctrl-C ends it with 130."""
    following = parent.place.start("logs", parent.job_id, "-f", "--event=job_finished")
    assert following.child.stdout is not None
    first = following.child.stdout.readline()
    following.signal(signal.SIGINT)

    assert "job_finished" in first
    assert following.wait(timeout_s=30).exit_code == 130


def test_waiting_has_an_end(tmp_path: Path) -> None:
    """For a paused job: at once, with the pause's exit code. For one that nobody runs: after the timeout, 124, and what
    to do is said."""
    place = Workplace(tmp_path)
    place.write([*prompts(5), {"request_id": "bad", "prompt": ""}])
    paused = place.call(*place.run_arguments())
    job_id = paused.summary["job"]
    waited = place.call("wait", job_id)
    place.write(prompts(3), "other.parquet")
    begun = place.call("submit", "other.parquet", f"--model={place.model}", "--no-start", "--json", *standin())
    idle = place.call("wait", begun.summary["job"], "--timeout=1s")

    assert (paused.exit_code, waited.exit_code) == (3, 3)
    assert waited.stdout == "PAUSED\n"
    assert idle.exit_code == 124
    assert f"shuntserve resume {begun.summary['job']}" in idle.stderr


def test_watching_shows_each_change_until_the_end(parent: Parent) -> None:
    """`status --watch` of a job that has ended prints its state once and ends."""
    watched = parent.place.call("status", parent.job_id, "--watch")

    assert watched.exit_code == 0
    assert watched.stdout == "COMPLETED_WITH_REJECTS: 16 of 16 rows, 2 rejected\n"

"""The Prefect deployments as users meet them: a real server and worker, the drop folder on an S3 server, jobs on a
local fleet. Submissions, schedules, answers asked of people, and how ends and pauses show. (Kills: test_flow_kills.)"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import pytest
import yaml

from tests.support.browser import visit
from tests.support.flow_site import FlowSite, flow_site, rows, until
from tests.support.prefect_server import CHECKOUT

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.timeout(900)

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
UPLOAD_QUIET_S = 8.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlowSite]:
    with flow_site(tmp_path_factory.mktemp("flows")) as site:
        yield site


def submissions(site: FlowSite, name: str) -> list[dict[str, Any]]:
    """Batch runs that were started for a submission."""
    found = site.prefect.flow_runs("shuntserve-batch")
    return [run for run in found if run["parameters"].get("submission") == name]


def message_of(run: dict[str, Any]) -> str:
    return (run["state"] or {}).get("message") or ""


class Upload:
    """Somebody who puts one file after another into a directory of the inbox, more often than its quiet time."""

    def __init__(self, site: FlowSite, name: str) -> None:
        self._site = site
        self._name = name
        self._enough = threading.Event()
        self.files = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._enough.wait(UPLOAD_QUIET_S / 4):
            some = [{**row, "request_id": f"{self.files}-{row['request_id']}"} for row in rows(4, 20)]
            self._site.drop(f"{self._name}/part-{self.files:03d}.parquet", some)
            self.files += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()


def test_the_drop_folder_on_its_schedule(site: FlowSite, browser: Browser) -> None:
    """Deployed as the README says, the inbox runs every minute by itself: a marked submission becomes Parquet in the
    outbox; one whose files keep coming waits through a whole look and becomes one job with all of them; what lies there
    twice is one job. Prefect's own pages show the scheduled runs and the batch."""
    prefect = site.prefect
    inbox = prefect.get("/deployments/name/shuntserve-inbox/inbox")
    prefect.patch(f"/deployments/{inbox['id']}", {"parameters": {"quiet_s": UPLOAD_QUIET_S}})
    for name in ("daily", "again"):
        site.drop(f"{name}/a.parquet", rows(12))
        site.drop(f"{name}/b.parquet", [{**row, "request_id": f"b-{row['request_id']}"} for row in rows(12)])
        site.bucket.put(f"inbox/{name}/job.yaml", b"max_tokens: 40\n")

    with Upload(site, "slowly") as upload:
        looked = until(
            "scheduled looks that start what is marked and leave the other",
            lambda: [
                run
                for run in prefect.flow_runs("shuntserve-inbox")
                if run["auto_scheduled"] and "slowly (still being written)" in message_of(run)
                if submissions(site, "daily") and submissions(site, "again")
            ],
        )
    inbox_run(site, quiet_s=0.1)
    batches = {name: submissions(site, name) for name in ("daily", "again", "slowly")}
    ended = [prefect.until(runs[0]["id"], ENDED)["state_name"] for runs in batches.values()]
    (daily,) = site.jobs("daily") + site.jobs("again")
    slowly = site.job("slowly")

    assert ended == ["Completed"] * 3
    assert [len(runs) for runs in batches.values()] == [1, 1, 1]
    assert site.texts(daily).keys() == {f"{part}row-{index:03d}" for part in ("", "b-") for index in range(12)}
    assert len(site.texts(slowly)) == 4 * upload.files

    name, _, _ = daily.rpartition("-")
    artifacts = prefect.artifacts(f"shuntserve-{name}-")
    assert {key.removeprefix(f"shuntserve-{name}-") for key in artifacts} >= {
        "progress",
        "plan",
        "cost",
        "report",
        "output",
    }
    assert artifacts[f"shuntserve-{name}-progress"]["data"] == 100
    assert f"outbox/{daily}" in artifacts[f"shuntserve-{name}-output"]["data"]
    events = {event["event"] for event in prefect.events("shuntserve.") if daily in json.dumps(event)}
    assert {"shuntserve.job.running", "shuntserve.job.ended", "shuntserve.node.ready"} <= events

    with visit(browser, f"{prefect.url}/deployments/deployment/{inbox['id']}") as page:
        page.page.get_by_text(looked[0]["name"]).first.wait_for(timeout=60_000)
    with visit(browser, f"{prefect.url}/runs/flow-run/{batches['daily'][0]['id']}", size=(1400, 900)) as page:
        page.page.get_by_text("Completed").first.wait_for(timeout=60_000)
        page.page.get_by_text("finalize").first.wait_for(timeout=60_000)
        picture = page.screenshot(site.directory / "prefect-run.png", whole=False)
    assert picture.stat().st_size > 20_000
    assert site.processes() == []


def test_a_changed_submission_warns_and_a_rerun_is_another_job(site: FlowSite) -> None:
    """A late file makes no second job but a warning that can be seen; running the inbox with `rerun` makes another."""
    prefect = site.prefect
    site.drop("late/a.parquet", rows(6, 20))
    site.bucket.put("inbox/late/_READY", b"")
    inbox_run(site)
    (first,) = submissions(site, "late")
    prefect.until(first["id"], ENDED)
    site.drop("late/z.parquet", [{**row, "request_id": f"z-{row['request_id']}"} for row in rows(6, 20)])

    inbox_run(site, quiet_s=0.1)
    warning = prefect.artifacts("shuntserve-inbox-warnings")
    rerun = inbox_run(site, rerun="late")
    (_, second) = submissions(site, "late")
    ended = prefect.until(second["id"], ENDED)

    assert "came later: late/z.parquet" in warning["shuntserve-inbox-warnings"]["data"]
    assert "1 started" in rerun["state"]["message"]
    assert ended["state_name"] == "Completed"
    assert len(site.jobs("late")) == 2
    assert len(submissions(site, "late")) == 2


def inbox_run(site: FlowSite, **parameters: Any) -> dict[str, Any]:
    """One look now, beside the scheduled ones."""
    run = site.prefect.run("shuntserve-inbox/inbox", **{"quiet_s": UPLOAD_QUIET_S, **parameters})
    return site.prefect.until(run, ENDED)


@pytest.mark.parametrize("name", ["budget-80-percent", "no-progress"])
def test_automations_are_files_that_prefect_takes_as_they_are(site: FlowSite, name: str) -> None:
    """`prefect automation create --from-file` accepts them; all of them are also created by `apply.py`, each once."""
    path = CHECKOUT / f"infra/prefect/automations/{name}.yaml"
    wanted = yaml.safe_load(path.read_text())["name"]

    site.prefect.command("automation", "create", "--from-file", str(path))

    names = [one["name"] for one in site.prefect.post("/automations/filter", {"limit": 100})]
    assert names.count(wanted) == 2, "one from the file itself, one from the site's set-up"
    assert len(set(names)) == len(list(path.parent.glob("*.yaml")))


# Soak: on a busy machine Prefect's SQLite stalls for a minute under six runs at once, and a pause is lost on the way.
@pytest.mark.soak
def test_ends_pauses_and_questions(site: FlowSite) -> None:
    """Each in its own run, all at once: all rows rejected is not green; a job over its limit pauses the run, which
    resumed with another limit finishes it; a plan waits for a person, whose yes lets it run and whose no cancels it;
    cancelling a run cancels its job, and what is committed stays."""
    prefect = site.prefect
    bad = [{"request_id": f"bad-{index}", "prompt": ""} for index in range(4)]
    rejected = site.batch("rejected", bad, max_reject_fraction=1)
    limited = site.batch("limited", [*rows(8, 20), *bad])
    approved = site.batch("approved", rows(8, 20), given={"approval": "always"})
    denied = site.batch("denied", rows(9, 20), given={"approval": "always"})

    assert prefect.until(rejected, ENDED)["state_name"] == "Failed"
    cancelled = site.batch("cancelled", rows(400, 200))
    for run in (limited, approved, denied):
        assert prefect.until(run, ("Paused", *ENDED))["state_name"] == "Paused"
    prefect.post(f"/flow_runs/{limited}/resume", {"run_input": {"max_reject_fraction": 1}})
    prefect.post(f"/flow_runs/{approved}/resume", {"run_input": {"approve": True, "by": "alice"}})
    prefect.post(f"/flow_runs/{denied}/resume", {"run_input": {"approve": False}})
    long_job = site.job("cancelled")
    until("output under way", lambda: site.generating(long_job))
    prefect.post(f"/flow_runs/{cancelled}/set_state", {"state": {"type": "CANCELLING"}})

    assert prefect.until(limited, ENDED)["state_name"] == "CompletedWithRejects"
    assert prefect.until(approved, ENDED)["state_name"] == "Completed"
    assert prefect.until(denied, ENDED)["state_type"] == "CANCELLED"
    assert prefect.until(cancelled, ENDED)["state_type"] == "CANCELLED"
    assert site.status(site.job("approved"))["approval"]["given_by"] == "alice"
    assert {row["code"] for row in site.rows(site.job("denied"), "rejects")} == {"cancelled"}
    assert len(site.texts(site.job("limited"))) == 8
    until("the cancelled job's output", lambda: site.status(long_job)["state"] == "PARTIAL")
    assert len(site.rows(long_job)) + len(site.rows(long_job, "rejects")) == 400
    assert until("no process left", lambda: not site.processes())

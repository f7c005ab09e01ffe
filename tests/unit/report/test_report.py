"""The report as a value and as a page: of jobs that ended, are under way, cost money, or went through a great deal."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuntserve.core.desired import Desired, Pipeline, StagePlace
from shuntserve.errors import Corrupt
from shuntserve.job import fleet_records, report_page
from shuntserve.job.carried import carried_type
from shuntserve.job.final import Final
from shuntserve.job.finalize import finalize
from shuntserve.job.fleet_records import LaunchRecord
from shuntserve.job.report import MOST_LISTED, Costs, PoolCost, build_report, costs_of, load_report, write_report
from shuntserve.job.timeline import History, Sample, TimelineEvent
from shuntserve.store import keys
from shuntserve.store.faults import Fault, FaultyBucket, Lost
from shuntserve.store.open import open_bucket
from shuntserve.store.port import Bucket
from tests.unit.outputs.builders import Job, Row, place_in

HOUR_S = 3600.0


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return open_bucket(tmp_path / "store")


@pytest.fixture
def job(bucket: Bucket) -> Job:
    return Job(bucket, [[Row(0, ["hello"]), Row(1, [""], code="cancelled")], [Row(2, ["there"], resumed=1)]])


def ended(job: Job, tmp_path: Path) -> Final:
    place = place_in(tmp_path / "out")
    place.reserve(job.spec.job_id, job.bucket.url, overwrite=False)
    return finalize(job.bucket, job.spec, job.sealed, carried_type(job.spec), place, "w")


def launch(name: str, hours: float, usd_per_h: float, on_demand: float | None, offer: str = "g6/spot") -> LaunchRecord:
    return LaunchRecord(
        id=name,
        pool="g6",
        offer=offer,
        instance_type="g6",
        zone="",
        market="spot",
        usd_per_h=usd_per_h,
        on_demand_usd_per_h=on_demand,
        slot=0,
        launched_unix_s=0.0,
        ended_unix_s=hours * HOUR_S,
    )


def history_of(events: int) -> History:
    told = [TimelineEvent(float(at), "node_lost", f"n{at}", {}, "w") for at in range(events)]
    phase = [TimelineEvent(0.0, "phase_started", None, {"phase": "run"}, "w")]
    phase.append(TimelineEvent(5000.0, "phase_ended", None, {"phase": "run"}, "w"))
    samples = tuple((float(at), Sample(at // 100, 0, 10 * at, 10 * at, 3)) for at in range(0, 5000, 50))
    return History(samples, tuple(sorted((*phase, *told), key=lambda one: one.unix_s)))


def test_a_job_under_way_is_reported_as_of_now(job: Job) -> None:
    """One of two chunks is committed: what is known is told, what only the end tells is null, and it can be drawn."""
    job.commit(only=[0])

    report = build_report(job.bucket, job.spec, job.sealed, None, history_of(0), None, now_unix_s=6000.0)

    assert report["job"]["state"] == "UNDER_WAY"
    assert report["rows"] == {"total": 3, "ended": 2, "ok": 2, "rejected": 0, "stopped": None, "by_code": None}
    assert (report["time"]["ended"], report["time"]["elapsed_s"]) == (None, 6000.0)
    assert report["tokens"]["completion"] is None
    assert "Under way" in report_page.render(report)
    assert json.loads(json.dumps(report)) == report


def test_the_end_of_a_job_is_in_its_report(job: Job, tmp_path: Path) -> None:
    """State, rows by code and parts are those of final.json."""
    final = ended(job.commit(), tmp_path)

    report = write_report(job.bucket, job.spec, job.sealed, final, None, now_unix_s=9.0, output_url="file:///out")

    assert report is not None
    assert (report["job"]["state"], report["job"]["stopped_by"]) == ("PARTIAL", "cancelled")
    assert report["rows"]["by_code"] == [{"code": "cancelled", "rows": 1}]
    assert report["tokens"]["kept"] == 2
    assert [part["path"] for part in report["outputs"]["data"]] == ["data/part-000000.parquet"]
    assert load_report(job.bucket, "job-1") == report
    assert "Partial (cancelled)" in job.bucket.get(keys.report("job-1", "html")).decode()


def test_costs_are_sums_over_machines() -> None:
    """Hours times prices, for each way of buying; on demand only when every machine's price is known."""
    known = [launch("a", 2.0, 0.5, 1.5), launch("b", 1.0, 0.5, 1.5), launch("c", 1.0, 2.0, 2.0, "g6/on-demand")]

    costs = costs_of(known, 0.0)
    partly = costs_of([*known, launch("d", 1.0, 0.1, None)], 0.0)

    assert costs == Costs(3.5, 6.5, None, (PoolCost("g6/on-demand", 1.0, 2.0), PoolCost("g6/spot", 3.0, 1.5)))
    assert partly is not None
    assert partly.on_demand_usd is None
    assert costs_of([], 0.0) is None


def test_savings_are_against_on_demand(job: Job, tmp_path: Path) -> None:
    """Spent, predicted and on-demand are told apart; a job that cost more than on demand says so."""
    final = ended(job.commit(), tmp_path)
    told = [
        build_report(job.bucket, job.spec, job.sealed, final, history_of(0), costs, now_unix_s=9.0)["cost"]
        for costs in (Costs(2.0, 5.0, 1.8), Costs(7.0, 5.0), Costs(1.0))
    ]

    assert [one["saved_usd"] for one in told] == [3.0, -2.0, None]
    assert [one["predicted_usd"] for one in told] == [1.8, None, None]
    assert told[0]["usd_per_million_tokens"] == pytest.approx(2.0 / (10 / 1e6))


def test_thousands_of_interruptions_stay_a_page(job: Job, tmp_path: Path) -> None:
    """All are counted, the first and the last are listed, and the page stays below a megabyte."""
    final = ended(job.commit(), tmp_path)

    report = build_report(job.bucket, job.spec, job.sealed, final, history_of(4999), None, now_unix_s=9.0)
    page = report_page.render(report)

    listed = [one["node"] for one in report["interruptions"]["listed"]]
    assert report["interruptions"]["count"] == 4999
    assert report["interruptions"]["total"] == report["interruptions"]["by_kind"]["node_lost"] == 4999
    assert len(listed) == MOST_LISTED
    assert (listed[0], listed[-1]) == ("n0", "n4998")
    assert "4,999" in page
    assert len(page) < 1_000_000


def test_the_plan_is_the_newest_that_ran_anything(job: Job, tmp_path: Path) -> None:
    """Of three entries of the plan log the last takes everything away: the one before it is shown, stage by stage."""
    stages = (StagePlace("n1", 2, 2, (0, 10)), StagePlace("n2", 1, 1, (10, 16)))
    entries = (
        Desired((Pipeline("p0", 1, (StagePlace("n0"),)),)),
        Desired((Pipeline("p0", 2, stages),)),
        Desired((), ("n1", "n2")),
    )
    for number, desired in enumerate(entries):
        body = fleet_records.body("w", epoch=0, desired=desired.to_json(), reason="r", created_unix_s=0.0)
        assert job.bucket.create(keys.plan("job-1", number), body)
    final = ended(job.commit(), tmp_path)

    report = build_report(job.bucket, job.spec, job.sealed, final, history_of(0), None, now_unix_s=9.0)

    assert (report["plan"]["number"], report["plan"]["plans"]) == (1, 3)
    page = report_page.render(json.loads(json.dumps(report)))
    assert "<code>n1</code> (layers 0–9, TP 2) → <code>n2</code> (layers 10–15)" in page


def test_a_machine_that_is_announced_and_lost_is_one_interruption(job: Job, tmp_path: Path) -> None:
    """Notice and loss of one machine count once, a recommendation not at all, what dies by itself each time."""
    told: list[tuple[str, str | None, dict[str, Any]]] = [
        *((kind, "n1", {}) for kind in ("rebalance", "notice", "node_lost")),
        ("node_lost", "n2", {}),
        ("worker_killed", None, {"worker": "w"}),
        ("engine_lost", None, {"worker": "w", "loss": "hung", "n": 0}),
    ]
    events = tuple(TimelineEvent(float(at), kind, node, fields) for at, (kind, node, fields) in enumerate(told))
    final = ended(job.commit(), tmp_path)

    found = build_report(job.bucket, job.spec, job.sealed, final, History((), events), None, now_unix_s=9.0)

    assert (found["interruptions"]["count"], found["interruptions"]["total"]) == (4, 6)


def test_a_report_that_cannot_be_written_ends_no_job(
    job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bucket refuses every write: nothing is raised, and the log says so."""
    final = ended(job.commit(), tmp_path)
    broken = FaultyBucket(job.bucket, lambda call: Fault(Lost.REQUEST) if call.verb.writes else Fault())
    monkeypatch.setattr(logging.getLogger("shuntserve"), "propagate", True)

    with caplog.at_level(logging.INFO, logger="shuntserve"):
        assert write_report(broken, job.spec, job.sealed, final, None, now_unix_s=9.0) is None

    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("report")]
    assert told == ["report_failed"]


def test_only_reports_of_this_form_are_read(bucket: Bucket) -> None:
    """None when there is none or it is of another schema; what is not JSON is named as damaged."""
    seen = [load_report(bucket, "j")]
    bucket.put(keys.report("j", "json"), b'{"schema": "shuntserve.report/9"}')
    seen.append(load_report(bucket, "j"))
    bucket.put(keys.report("j", "json"), b"{")

    assert seen == [None, None]
    with pytest.raises(Corrupt, match=r"report\.json"):
        load_report(bucket, "j")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A report with something in every section."""
    directory = tmp_path_factory.mktemp("drawn")
    job = Job(open_bucket(directory / "store"), [[Row(0, ["hello"]), Row(1, [""], code="cancelled")]]).commit()
    costs = Costs(2.0, 5.0, 1.8, (PoolCost("g6/spot", 3.0, 2.0),))
    final = ended(job, directory)
    report = build_report(job.bucket, job.spec, job.sealed, final, history_of(3), costs, now_unix_s=9.0)
    report["machines"] = {
        "total": 1,
        "lanes": [
            {"id": "n1", "kind": "node", "place": "g6/spot", "market": "spot", "usd_per_h": 0.5, "begin_s": 0.0,
             "end_s": None, "state": "running", "rows": 1, "tokens": 2},
        ],
    }  # fmt: skip
    report["outputs"]["url"] = "file:///out"
    stages = [{"node": "n1", "gpus": 1, "tp": 1, "layers": None}]
    report["plan"] = {"number": 1, "plans": 2, "pipelines": [{"id": "p", "generation": 1, "stages": stages}]}
    return report


@given(st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), min_size=1) | st.just('"><script>x</script>&'))
def test_no_name_can_become_markup(drawn: dict[str, Any], name: str) -> None:
    """Whatever a job, a code, a machine, a pool, a model or an output is called: the page keeps its elements."""
    hostile = copy.deepcopy(drawn)
    hostile["job"].update(name=name, id=name, model=name, revision=name, parent=name)
    hostile["rows"]["by_code"] = [{"code": name, "rows": 1}]
    hostile["interruptions"]["listed"][0].update(node=name, detail=name, worker=name)
    hostile["interruptions"]["by_kind"] = {name: 3}
    hostile["machines"]["lanes"][0].update(id=name, place=name, state=name)
    hostile["cost"]["by_pool"][0]["pool"] = name
    hostile["plan"]["pipelines"][0]["id"] = hostile["plan"]["pipelines"][0]["stages"][0]["node"] = name
    hostile["outputs"]["data"] = [{"path": name, "rows": 1, "bytes": 1}]

    tags = [element.tag for element in _elements(hostile)]
    usual = {**drawn, "job": {**drawn["job"], "parent": "p"}, "outputs": hostile["outputs"]}
    usual["interruptions"] = {**drawn["interruptions"], "by_kind": {"node_lost": 3}}

    assert tags == [element.tag for element in _elements(usual)]
    assert any(name.split() == (element.text or "").split() for element in _elements(hostile) if element.tag == "h1")


def _elements(report: dict[str, Any]) -> list[ElementTree.Element]:
    """The page as a well-formed tree."""
    page = report_page.render(report)
    return list(ElementTree.fromstring(page.replace("<!doctype html>", "")).iter())

"""What a flow makes of a job's status: events, artifacts' contents, when a controller is started."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prefect.client.schemas.objects import StateType

from flows import _tables
from flows._events import News, news
from flows._run import lost
from flows._watch import Starts, Watch, wants_controller
from shuntserve.errors import Unavailable

NOON = datetime(2030, 1, 31, 12, 0, tzinfo=UTC)


def status(state: str = "RUNNING", **changes: Any) -> dict[str, Any]:
    """A job's status as `status --json` gives it."""
    whole: dict[str, Any] = {
        "schema": "shuntserve.status/1",
        "id": "reviews-0123456789abcdef",
        "name": "Reviews, 2030",
        "state": state,
        "output": "s3://b/outbox/reviews",
        "rows": {"total": 200, "ok": 49, "rejected": 1, "ended": 50},
        "chunks": {"total": 8, "committed": 2},
        "tokens": {"prompt": 10, "generated": 12345, "durable": 12000, "kept": 7, "regenerated": 345},
        "cost": {"spent_usd": 1.5, "cap_usd": 10.0, "forecast_usd": 6.0, "on_demand_usd": 4.25, "usd_per_h": 3.0},
        "finish": {"started": None, "eta": None, "ended": None, "deadline": None},
        "approval": {"needed": False, "given_by": None, "proposal": None},
        "controller": {"state": "running", "epoch": 0, "host": "h", "pid": 1, "alive": True},
        "nodes": [],
        "interruptions": [],
        "pause": None,
        "stopped_by": None,
        "failure": None,
        "exit_code": None,
        "next_step": "wait",
    }
    return {**whole, **changes}


def names(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    return [one.event for one in news(before, now)]


def cost(spent_usd: float, cap_usd: float | None = 10.0) -> dict[str, Any]:
    return {**status()["cost"], "spent_usd": spent_usd, "cap_usd": cap_usd}


def node(state: str, name: str = "n0001") -> dict[str, Any]:
    return {"id": name, "pool": "g6/a/spot", "market": "spot", "state": state, "usd_per_h": 0.3, "failure": None}


# -- events ------------------------------------------------------------------------------------------------------------


def test_a_first_look_tells_the_state_and_rows_so_far() -> None:
    """Somebody who begins to watch in the middle sees where the job stands."""
    assert names(None, status()) == ["shuntserve.job.running", "shuntserve.job.progress"]


def test_nothing_new_is_no_news() -> None:
    """The same status twice emits nothing."""
    assert news(status(), status()) == []


@pytest.mark.parametrize(
    ("state", "event"),
    [
        ("AWAITING_APPROVAL", "shuntserve.job.awaiting-approval"),
        ("PAUSED", "shuntserve.job.paused"),
        ("COMPLETED", "shuntserve.job.ended"),
        ("FAILED", "shuntserve.job.ended"),
        ("PARTIAL", "shuntserve.job.ended"),
    ],
)
def test_a_state_that_changes_is_an_event(state: str, event: str) -> None:
    """All ends are one event that carries the state; a pause says why in its payload."""
    (one,) = news(status(), status(state, pause="rejects"))

    assert (one.event, one.payload["state"], one.payload["pause"]) == (event, state, "rejects")


def test_the_budget_warning_comes_once_at_80_percent() -> None:
    """When the share is passed, not before, not again, and never without a cap."""
    below, at, above = (status(cost=cost(spent)) for spent in (7.99, 8.0, 9.0))

    assert names(below, at) == ["shuntserve.job.budget-warning"]
    assert names(at, above) == names(status(), below) == []
    assert names(status(), status(cost=cost(1000.0, None))) == []


def test_a_deadline_at_risk_is_told_once_while_the_job_goes_on() -> None:
    """At risk: expected to end after it. A job that has ended is at no risk."""
    on_time = {"eta": NOON.isoformat(), "deadline": NOON.isoformat()}
    late = {"eta": (NOON + timedelta(seconds=1)).isoformat(), "deadline": NOON.isoformat()}

    assert names(status(finish=on_time), status(finish=late)) == ["shuntserve.job.deadline-at-risk"]
    assert names(status(finish=late), status(finish=late)) == []
    assert "shuntserve.job.deadline-at-risk" not in names(status(), status("PARTIAL", finish=late))


def test_nodes_tell_each_of_their_states() -> None:
    """One event for a node's new state, with the node as its resource."""
    before = status(nodes=[node("launching"), node("ready", "n0002")])
    after = status(nodes=[node("ready"), node("ready", "n0002"), node("launching", "n0003")])

    assert [(one.event, one.node) for one in news(before, after)] == [
        ("shuntserve.node.ready", "n0001"),
        ("shuntserve.node.launching", "n0003"),
    ]


def test_interruptions_are_capacity_events_each_once() -> None:
    """Notices, rebalance recommendations and lost nodes are capacity's; a killed worker is the job's."""
    one = {"time": "t1", "kind": "notice", "node": "n0001", "detail": ""}
    two = {"time": "t2", "kind": "worker_killed", "node": None, "detail": ""}

    assert names(status(interruptions=[one]), status(interruptions=[one, two])) == ["shuntserve.job.worker-killed"]
    assert names(status(), status(interruptions=[one])) == ["shuntserve.capacity.interruption-notice"]


# -- artifacts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Reviews, 2030", "shuntserve-reviews-2030-plan"),
        ("daily_emails", "shuntserve-daily-emails-plan"),
        ("Größe/ß", "shuntserve-gr-e-plan"),
        ("日本", "shuntserve-job-plan"),
    ],
)
def test_keys_are_legal_and_the_same_for_a_name(name: str, key: str) -> None:
    """Prefect takes lower-case letters, digits and dashes."""
    assert _tables.artifact_key(name, "plan") == key


def test_progress() -> None:
    """Share and words; before ingest there is no share to tell."""
    nothing = status("INGESTING", rows=dict.fromkeys(("total", "ok", "rejected", "ended")))

    assert _tables.percent(status()) == 25.0
    assert _tables.percent(nothing) == 0.0
    assert _tables.progress_text(nothing) == "INGESTING: ? of ? rows, $1.50 spent"
    assert _tables.progress_text(status()) == "RUNNING: 50 of 200 rows, 1 rejected, $1.50 spent"


def test_the_question_shows_plan_and_cap() -> None:
    """Who is asked to approve sees the proposal as a table and whether a cap holds."""
    proposal = {"predicted_usd": 12.345, "pools": [{"pool": "g6", "count": 2}], "writer": "x", "eta": None}
    asked = status("AWAITING_APPROVAL", approval={"needed": True, "given_by": None, "proposal": proposal})

    text = _tables.proposal_text(asked)

    assert "Cost cap: $10.00." in text
    assert "| predicted usd | 12.35 |" in text
    assert "| pools | pool g6, count 2 |" in text
    assert "writer" not in text
    assert "No cost cap is set." in _tables.proposal_text({**asked, "cost": cost(0.0, None)})


def test_costs_that_are_not_known_have_no_row() -> None:
    """A number that nobody knows is not shown as nothing."""
    rows = _tables.cost_rows(status(cost={**cost(1.5, None), "forecast_usd": None}))

    assert rows == [
        {"what": "spent", "usd": 1.5},
        {"what": "the same on-demand", "usd": 4.25},
        {"what": "now, per hour", "usd": 3.0},
    ]


def test_rejects_are_counted_by_code_with_the_first_place() -> None:
    """The commonest first, whatever batches they come in; no row's content is among them."""
    one = {"code": "too_long", "source_file": "a", "source_row": 3}
    two = {"code": "empty", "source_file": "a", "source_row": 1}

    rows = _tables.reject_rows([[two], [one, {**one, "source_row": 4}], []])

    assert rows == [
        {"code": "too_long", "rows": 2, "first": "a, row 3"},
        {"code": "empty", "rows": 1, "first": "a, row 1"},
    ]


def test_the_report_says_what_is_not_known() -> None:
    """Numbers with thousands, and `unknown` where there is none."""
    text = _tables.report_text(status("COMPLETED", cost={**cost(1.5), "on_demand_usd": None}), {"schema": "x"})

    assert "12,345 tokens generated, 7 kept across interruptions, 345 generated again." in text
    assert "$1.50 spent; on-demand machines: unknown." in text
    assert "jobs/reviews-0123456789abcdef/report.html" in text


# -- the controller ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "controller", "wanted"),
    [
        ("RUNNING", {"alive": True}, False),
        ("RUNNING", {"alive": False}, True),
        ("SUBMITTED", None, True),
        ("STOPPING", {"alive": False}, True),
        ("PAUSED", {"alive": False}, False),
        ("COMPLETED", {"alive": False}, False),
        ("FAILED", None, False),
    ],
)
def test_who_needs_a_controller(state: str, controller: dict[str, Any] | None, wanted: bool) -> None:
    """Every job that has not ended and is not paused."""
    assert wants_controller(status(state, controller=controller)) is wanted


def test_controllers_that_do_not_stay_are_started_ever_later_and_then_no_more() -> None:
    """At once, after 5, 10, 20, 40 s; then the failure is raised. One that stays alive resets this."""
    starts = Starts()
    due_s: list[int] = []
    now_s = 0.0
    while len(due_s) < 5:
        if starts.due(now_s):
            due_s.append(int(now_s))
        now_s += 1.0

    assert due_s == [0, 5, 15, 35, 75]
    with pytest.raises(Unavailable, match="no engine"):
        starts.due(200.0, "no engine")
    starts.seen_alive()
    assert starts.due(201.0)


class FakeJob:
    """A job whose looks are given."""

    job_id = "a-1"
    output_url = "s3://b/out"

    def __init__(self, looks: list[dict[str, Any] | Exception]) -> None:
        self._looks = looks
        self.started = 0

    def status(self) -> Any:
        look = self._looks.pop(0)
        if isinstance(look, Exception):
            raise look
        return type("Status", (), {"to_json": lambda self: look})()

    def start(self) -> None:
        self.started += 1


class Heard:
    """Artifacts and events as they are told, without Prefect."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.shown: list[str] = []

    def emit(self, one: News) -> None:
        self.events.append(one.event)

    def watched(self, now: Mapping[str, Any]) -> None:
        self.shown.append(f"{now['state']} {now['output']}")


def watch(looks: list[dict[str, Any] | Exception]) -> tuple[Watch, FakeJob, Heard]:
    job, heard, clock = FakeJob(looks), Heard(), [0.0]

    def pause(delay_s: float) -> None:
        clock[0] += delay_s

    return Watch(job, heard, heard, clock=lambda: clock[0], pause=pause), job, heard  # type: ignore[arg-type]


def test_a_store_that_does_not_answer_and_a_lost_controller_stop_no_watch() -> None:
    """The watch goes on through both, and starts another controller for the second."""
    gone = {"alive": False, "epoch": 0, "state": "running"}
    watching, job, heard = watch(
        [status(), Unavailable("store", "is away", ""), status(controller=gone), status(), status("COMPLETED")]
    )

    ended = watching.until(lambda _: False)

    assert ended["state"] == "COMPLETED"
    assert job.started == 1
    assert heard.events == ["shuntserve.job.running", "shuntserve.job.progress", "shuntserve.job.ended"]
    assert heard.shown[0] == "RUNNING s3://b/out"


def test_progress_is_an_event_once_a_minute_at_most() -> None:
    """A look every three seconds does not flood the event feed; artifacts are kept up to date at each."""
    looks: list[dict[str, Any] | Exception] = [
        status(rows={"total": 200, "ok": n, "rejected": 0, "ended": n}) for n in range(1, 42)
    ]
    watching, _, heard = watch([*looks, status("COMPLETED")])

    watching.until(lambda _: False)

    assert heard.events.count("shuntserve.job.progress") == 3, "after 0, 60 and 120 seconds"
    assert len(heard.shown) == 42


def test_a_pause_ends_the_watch_and_starts_nothing() -> None:
    """A paused job's controller has left on purpose."""
    watching, job, _ = watch([status("PAUSED", controller={"alive": False, "epoch": 0, "state": "gone"})])

    assert watching.until(lambda _: False)["state"] == "PAUSED"
    assert job.started == 0


@pytest.mark.parametrize(
    ("states", "crashed"),
    [
        ("SCHEDULED PENDING RUNNING", False),
        ("SCHEDULED PENDING RUNNING CRASHED SCHEDULED PENDING RUNNING", True),
        ("RUNNING CRASHED SCHEDULED RUNNING PAUSED SCHEDULED RUNNING", False),
        ("RUNNING PAUSED SCHEDULED RUNNING CRASHED SCHEDULED RUNNING", True),
        ("RUNNING FAILED SCHEDULED RUNNING", False),
    ],
)
def test_a_run_that_was_lost_does_not_take_back_a_pause(states: str, crashed: bool) -> None:
    """A run that a person resumes or repeats resumes the job; one that is only taken up again after a crash does
    not."""
    assert lost([StateType(state) for state in states.split()]) is crashed

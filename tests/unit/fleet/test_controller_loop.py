"""The controller from spec to report, over machines and agents under one clock: every phase, every end, every kill."""

from __future__ import annotations

import json

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from shuntserve.core.reconcile import MOST_FAILURES_IN_A_ROW
from shuntserve.core.states import JobState, StopCode
from shuntserve.errors import InvalidInput
from shuntserve.job import claims, control, fleet_records
from shuntserve.job.final import load_final
from shuntserve.job.timeline import read_timeline
from shuntserve.store import keys
from tests.support.fleet_world import Controller, World

IN_ALL = 320
"""More requests than a controller makes for the undisturbed job."""


def pause(world: World) -> None:
    control.pause(world.bucket, world.job.job_id, "user", "requested")


def resume(world: World) -> None:
    control.resume(world.bucket, world.job.job_id, "user")


def finish(world: World, controller: Controller) -> None:
    """Run until it has ended in order, with all rows and no machine."""
    world.run(lambda: not controller.alive)
    assert controller.loop.failure is None
    assert controller.loop.exit_code == 0
    assert all(name.startswith("n0") for name in world.results())
    nothing_left(world)


def nothing_left(world: World) -> None:
    """No machine runs, and every launch is noted as ended."""
    assert not world.provider.running
    assert all(launch.ended_unix_s is not None for launch in world.launches().values())


def events(world: World) -> list[str]:
    return [event.kind for event in read_timeline(world.bucket, world.job.job_id).events]


def phases(world: World) -> list[tuple[str, object]]:
    told = read_timeline(world.bucket, world.job.job_id).events
    return [(event.kind.removeprefix("phase_"), event.fields["phase"]) for event in told if "phase" in event.kind]


# -- an undisturbed job ------------------------------------------------------------------------------------------------


def test_a_job_runs_from_its_spec_to_its_report() -> None:
    """Ingest, two machines, all chunks, finalize, machines gone, one report, exit code 0; the timeline tells it."""
    world = World()
    controller = world.controller()
    finish(world, controller)

    assert len(world.launches()) == 2
    assert world.reports == 1
    assert phases(world) == [
        ("started", "ingest"),
        ("ended", "ingest"),
        ("started", "run"),
        ("ended", "run"),
        ("started", "finalize"),
        ("ended", "finalize"),
    ]
    assert events(world).count("launch") == events(world).count("node_ready") == 2
    end = load_final(world.bucket, world.job.job_id)
    assert end is not None
    assert end.state is JobState.COMPLETED


def test_no_more_machines_than_chunks() -> None:
    """Ten are allowed, three can be of use."""
    world = World(("local=10@1",), chunks=3)
    finish(world, world.controller())

    assert len(world.launches()) == 3


def test_a_job_that_has_ended_is_not_run_again() -> None:
    """A controller started for nothing reports what was, launches nothing and leaves with the same exit code."""
    world = World()
    finish(world, world.controller())
    finish(world, world.controller())

    assert len(world.launches()) == 2


def test_whoever_sees_the_proposal_sees_prices() -> None:
    """What would be launched and what it costs an hour is there before anything is launched."""
    world = World(("local=2@1.5", "local/zone-b=1@3"), operations={"approval": "always"})
    world.controller()
    world.run(lambda: world.controllers[0].loop.state == "awaiting_approval")
    proposal = fleet_records.read(world.bucket, keys.proposal(world.job.job_id))

    assert proposal is not None
    assert (proposal["usd_per_h"], proposal["approval_needed"]) == (6.0, True)
    assert world.launches() == {}


# -- killed anywhere ---------------------------------------------------------------------------------------------------


@settings(max_examples=30, phases=(Phase.generate,))
@given(st.integers(0, IN_ALL), st.booleans(), st.integers(0, 20))
def test_a_controller_killed_at_any_request_is_replaced(requests: int, die_after: bool, later: int) -> None:
    """Before a request or right after it, in any phase: another one finishes the job, with no machine too many, none
    forgotten, and every row."""
    world = World()
    first = world.controller(requests=requests, die_after=die_after)
    for _ in range(later):
        world.step()
    second = world.controller()
    world.run(lambda: not second.alive)
    if first.alive:
        world.run(lambda: not first.alive)

    assert second.loop.failure is None
    assert second.loop.exit_code == 0
    assert all(name.startswith("n0") for name in world.results())
    assert len(world.provider.rooms) <= 2 + 1, "one more at most: the intent of a launch nobody could ask for"
    nothing_left(world)


@settings(max_examples=30, phases=(Phase.generate,))
@given(st.integers(0, IN_ALL), st.floats(3.0, 40.0))
def test_a_controller_that_was_stopped_inside_a_tick_does_no_harm_when_it_wakes(requests: int, asleep_s: float) -> None:
    """SIGSTOP between any two requests, for as long as another controller needs to take over, or the lease almost runs
    out: what it does when it goes on changes no row and forgets no machine, and once another has taken over it does
    nothing at all, but for the one request that was on its way."""
    world = World()
    first = world.controller()
    second = world.controller()
    left = requests

    def sleep() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            first.stalled = True
            end_s = world.now_s + asleep_s
            while world.now_s < end_s:
                world.step()
            first.stalled = False

    def check(key: str, body: bytes) -> None:
        deed = any(part in key for part in ("/spending", "/launches/", "/plans/", "/control/"))
        newest = fleet_records.newest_controller(world.bucket, world.job.job_id)
        if deed and left != 0:
            assert newest is not None
            assert json.loads(body)["writer"] == newest.incarnation, f"{key} by one that was taken over"

    first.door.on_request = sleep
    first.door.on_write = check
    world.run(lambda: world.ended)

    assert [one.loop.failure for one in (first, second)] == [None, None]
    assert {one.loop.exit_code for one in (first, second)} == {0}
    assert all(name.startswith("n0") for name in world.results())
    assert len(world.provider.rooms) <= 2 + 2
    nothing_left(world)


def test_a_late_plan_of_a_controller_that_was_replaced_moves_nobody() -> None:
    """Stopped on its way to telling the fleet to leave; the pause is taken back and another takes over, for whom
    nothing changes: the late plan is of no account, and the same machines go on."""
    world = World(chunks=60)
    first = world.controller()
    world.run(lambda: len(world.open_chunks()) < 56)

    def sleep(key: str, body: bytes) -> None:
        if "/plans/" in key and not first.stalled:
            first.stalled = True
            resume(world)
            second = world.controller()
            world.run(lambda: second.loop.state == "running")
            for _ in range(10):
                world.step()
            first.door.on_write = lambda key, body: None
            first.stalled = False

    first.door.on_write = sleep
    pause(world)
    world.run(lambda: len(world.controllers) == 2)
    finish(world, world.controllers[1])

    assert len(world.launches()) == 2


def test_of_two_controllers_one_acts_and_the_other_takes_over() -> None:
    """Started together; the first is killed: the second acts after the lease, without a machine more."""
    world = World(chunks=40)
    first, second = world.controller(), world.controller()
    world.run(lambda: len(world.open_chunks()) < 36)
    assert (first.loop.state, second.loop.state) == ("running", "standby")
    first.alive = False
    killed_s = world.now_s
    world.run(lambda: second.loop.state == "running")
    assert world.now_s - killed_s < 2 * world.job.operations.lease_s
    finish(world, second)
    assert len(world.launches()) == 2


def test_a_controller_that_is_asked_to_leave_drains_nothing() -> None:
    """SIGTERM: machines go on under the next one, who need not wait for a lease."""
    world = World(chunks=40)
    first = world.controller()
    world.run(lambda: len(world.open_chunks()) < 36)
    first.loop.leave()
    world.run(lambda: not first.alive, 5)
    assert first.loop.exit_code is None
    assert len(world.provider.running) == 2
    second = world.controller()
    world.run(lambda: second.loop.state == "running", 5)
    finish(world, second)


def test_machines_nobody_looks_after_end_by_themselves_and_are_paid_for_no_longer() -> None:
    """All controllers dead: after the spending lease nothing runs. The next one, a day later, charges that lease and
    not the day, and goes on."""
    world = World(("local=2@100",), chunks=200, operations={"max_cost_usd": 20.0})
    first = world.controller()
    world.run(lambda: len(world.open_chunks()) < 196)
    first.alive = False
    world.run(lambda: not world.provider.running, 60)
    world.now_s += 86400.0
    second = world.controller()
    world.run(lambda: second.loop.state == "running")

    assert second.loop.spent_usd < 2 * 100 * 200 / 3600
    assert control.standing(world.bucket, world.job.job_id).stopped is None


# -- machines come and go ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["power", "hang", "agent silent"])
def test_a_lost_machine_is_replaced(how: str) -> None:
    """Its power is cut, its agent hangs, or cannot reach the bucket: a new one comes, the old one is ended."""
    world = World(chunks=40)
    controller = world.controller()
    world.run(lambda: len(world.open_chunks()) < 36)
    victim = world.machine(1)
    if how == "power":
        victim.end()
    elif how == "hang":
        victim.hung = True
    else:
        victim.door.out = True
    world.run(lambda: not victim.running and len(world.provider.running) == 2, 60)
    finish(world, controller)
    assert len(world.launches()) == 3
    assert "node_lost" in events(world) or how == "agent silent"


def test_a_machine_that_will_be_taken_is_replaced_before() -> None:
    """The replacement is bought at the notice, not after the loss; the noticed one drains."""
    world = World(chunks=60)
    controller = world.controller()
    world.run(lambda: len(world.open_chunks()) < 56)
    world.machine(1).notice(in_s=20.0)
    world.run(lambda: "n0003" in world.provider.rooms, 6)
    assert world.machine(1).running
    finish(world, controller)
    assert world.launches()["n0001"].ended_why == "drained"
    assert "notice" in events(world)


def test_a_machine_at_risk_works_until_its_replacement_does() -> None:
    """Rebalance: bought ahead, replaced without a gap, then told to leave."""
    world = World(chunks=60)
    controller = world.controller()
    world.run(lambda: len(world.open_chunks()) < 56)
    world.machine(1).recommend_rebalance()
    world.run(lambda: not world.machine(1).running, 40)
    assert world.machine(3).workers is not None
    finish(world, controller)
    assert len(world.launches()) == 3


@pytest.mark.parametrize("lost", ["request", "reply"])
def test_a_launch_without_an_answer_is_looked_for(lost: str) -> None:
    """The machine came though nobody heard: it is used. It did not: another is bought after a while. Neither twice."""
    world = World(chunks=30)
    world.provider.loses = lost
    controller = world.controller()
    finish(world, controller)

    assert len(world.launches()) == (3 if lost == "request" else 2)
    assert len(world.provider.rooms) == 2


def test_a_list_that_lags_behind_loses_no_machine() -> None:
    """Machines show in the provider's list only seconds after their launch."""
    world = World(chunks=30)
    world.provider.lists_late_s = 6.0
    finish(world, world.controller())

    assert len(world.launches()) == 2


def test_a_pause_right_after_a_launch_forgets_no_machine() -> None:
    """The provider does not list the machines yet, so ending them does nothing: they are looked for until they show, or
    have not for long."""
    world = World(chunks=30, boot_s=30.0)
    world.provider.lists_late_s = 6.0
    controller = world.controller()
    world.run(lambda: len(world.provider.rooms) == 2)
    pause(world)
    world.run(lambda: not controller.alive, 60)

    nothing_left(world)
    assert all(machine.starts == 0 for machine in world.provider.rooms.values())


def test_a_provider_that_does_not_answer_forgets_no_machine() -> None:
    """It falls silent as a machine hangs: the machine is ended once it answers again, and not written off before."""
    world = World(chunks=60)
    controller = world.controller()
    world.run(lambda: len(world.open_chunks()) < 56)
    world.machine(1).hung = True
    world.provider.silent = True
    for _ in range(60):
        world.step()
        assert world.launches()["n0001"].ended_unix_s is None
    world.provider.silent = False
    finish(world, controller)


def test_what_cannot_be_had_is_bought_elsewhere() -> None:
    """No spot in the first pool: its machines do not come, those of the second do; the reason is told."""
    world = World(("local=1@1", "local/zone-b=1@1"), chunks=20)
    world.provider.refuses = {"local/spot"}
    controller = world.controller()
    world.run(lambda: len(world.open_chunks()) < 18)
    failure = str(controller.loop.facts()["failure"])
    finish(world, controller)

    assert "local/spot" in failure
    assert {launch.offer for launch in world.launches().values() if launch.ended_why == "drained"} == {
        "local/zone-b/spot"
    }


def test_without_any_capacity_a_job_waits() -> None:
    """It asks again now and then, not all the time, and goes on when there is some."""
    world = World(("local=2@1",), chunks=10)
    world.provider.refuses = {"local/spot"}
    controller = world.controller()
    for _ in range(600):
        world.step()
    assert controller.alive
    assert 2 <= len(world.launches()) <= 6
    world.provider.refuses = set()
    finish(world, controller)


def test_a_bucket_outage_shorter_than_the_lease_costs_no_machine() -> None:
    """Agents are silent for more than a lease, in the middle of which the controller was deaf itself: for all it knows
    they were cut off by the same outage. The same machines go on."""
    world = World(chunks=60, operations={"lease_s": 15.0, "spending_lease_s": 60.0})
    controller = world.controller()
    world.run(lambda: len(world.open_chunks()) < 56)
    for agents, deaf, seconds in ((True, False, 4), (True, True, 7), (True, False, 6), (False, False, 1)):
        for machine in world.provider.rooms.values():
            machine.door.out = agents
        controller.door.out = deaf
        for _ in range(2 * seconds):
            world.step()
    assert controller.lease.epoch == 0, "it never lost its lease"
    finish(world, controller)

    assert len(world.launches()) == 2


# -- ends that are no completion ---------------------------------------------------------------------------------------


def test_out_of_money() -> None:
    """The cap is kept: machines are told to leave before it is reached, the rest is rejected with that reason, exit
    code 4."""
    world = World(("local=2@360",), chunks=400, operations={"max_cost_usd": 20.0})
    controller = world.controller()
    world.run(lambda: not controller.alive)

    assert controller.loop.exit_code == 4
    assert set(world.results()) > {str(StopCode.BUDGET)}
    assert 10.0 < world.provider.usd(360.0) <= 20.0
    charged_usd = sum(launch.usd(0.0) for launch in world.launches().values())
    assert world.provider.usd(360.0) <= charged_usd <= world.provider.usd(360.0) + 2.0
    nothing_left(world)


def test_past_its_deadline() -> None:
    """What is committed by then stays, the rest is rejected with that reason, exit code 5."""
    world = World(chunks=400)
    control.adjust(
        world.bucket, world.job.job_id, "user", {"deadline_unix_s": world.now_unix_s + 60.0}, submitted=False
    )
    controller = world.controller()
    world.run(lambda: not controller.alive)

    assert controller.loop.exit_code == 5
    assert set(world.results()) == {"n0001", "n0002", str(StopCode.DEADLINE)}
    nothing_left(world)


@pytest.mark.parametrize("after_s", [0.0, 1.0, 2.5, 4.0, 6.0, 12.0])
def test_cancelled_in_any_phase(after_s: float) -> None:
    """Before ingest, while machines boot, while they work: partial output, exit code 1, no machine left."""
    world = World(chunks=40)
    controller = world.controller()
    for _ in range(int(2 * after_s)):
        world.step()
    control.stop(world.bucket, world.job.job_id, "user", StopCode.CANCELLED)
    world.run(lambda: not controller.alive)
    end = load_final(world.bucket, world.job.job_id)

    assert controller.loop.exit_code == 1
    assert end is not None
    assert (end.state, end.counts.stopped_by) == (JobState.PARTIAL, StopCode.CANCELLED)
    assert str(StopCode.CANCELLED) in world.results()
    nothing_left(world)


@pytest.mark.parametrize("after_s", [0.0, 1.0, 2.5, 4.0, 6.0, 12.0])
def test_paused_and_resumed_in_any_phase(after_s: float) -> None:
    """It drains to nothing and leaves with 130; another controller goes on where it was, losing no chunk."""
    world = World(chunks=16)
    first = world.controller()
    for _ in range(int(2 * after_s)):
        world.step()
    pause(world)
    world.run(lambda: not first.alive)
    assert first.loop.exit_code == 130
    nothing_left(world)
    done = set(world.all_chunks) - set(world.open_chunks())
    resume(world)
    finish(world, world.controller())
    assert done <= set(world.all_chunks)


def test_a_pause_taken_back_at_once_stops_nothing_for_long() -> None:
    """Workers may have left because of it: they are started again on the same machines."""
    world = World(chunks=60)
    controller = world.controller()
    world.run(lambda: len(world.open_chunks()) < 56)
    pause(world)
    for machine in world.provider.running:
        machine.tick()  # they see it before the controller does
    resume(world)
    finish(world, controller)

    assert len(world.launches()) == 2


def test_machines_on_which_nothing_works_pause_the_job() -> None:
    """After a few of them it is the job, not the machine: exit code 1, the reason told, and no more money spent. Once
    it is mended and resumed, another controller goes on."""
    world = World(("local=1@1",), chunks=6)
    world.broken = {f"n{number:04d}" for number in range(1, 50)}
    first = world.controller()
    world.run(lambda: not first.alive)
    assert first.loop.exit_code == 1
    assert len(world.launches()) == MOST_FAILURES_IN_A_ROW
    assert "does not start" in str(first.loop.facts()["failure"])
    assert control.standing(world.bucket, world.job.job_id).paused == "engine"
    nothing_left(world)
    world.broken.clear()
    resume(world)
    finish(world, world.controller())


def test_failures_of_before_a_resume_do_not_count() -> None:
    """Mended and resumed while the controller still drains: it does not pause the job again for what was."""
    world = World(("local=2@1",), chunks=12)
    world.broken = {f"n{number:04d}" for number in range(1, 50)}
    controller = world.controller()
    world.run(lambda: control.standing(world.bucket, world.job.job_id).paused is not None)
    world.broken.clear()
    for _ in range(3):
        world.step()
    if controller.alive:
        resume(world)
        finish(world, controller)
    else:
        resume(world)
        finish(world, world.controller())


def test_too_many_rejects_pause_the_job() -> None:
    """Exit code 3; resumed with a larger limit it goes on, resumed with the same it pauses again."""
    world = World(chunks=30)
    first = world.controller()
    world.run(lambda: len(world.open_chunks()) < 28)
    facts = {"rows_rejected": 30, "state": "working"}
    world.bucket.put(keys.worker(world.job.job_id, "w"), claims.worker_body("w", 1, gone=True, facts=facts))
    world.run(lambda: not first.alive)
    assert first.loop.exit_code == 3
    nothing_left(world)
    resume(world)
    again = world.controller()
    world.run(lambda: not again.alive)
    assert again.loop.exit_code == 3
    control.adjust(world.bucket, world.job.job_id, "user", {"max_reject_fraction": 1.0}, submitted=False)
    resume(world)
    finish(world, world.controller())


# -- asking first ------------------------------------------------------------------------------------------------------


def approve(world: World) -> None:
    proposal = fleet_records.read(world.bucket, keys.proposal(world.job.job_id))
    assert proposal is not None
    key = keys.approval(world.job.job_id, fleet_records.digest(proposal))
    world.bucket.create(key, fleet_records.body("user", by="somebody"))


def test_nothing_is_launched_before_somebody_agrees() -> None:
    """However long it takes; then the job runs."""
    world = World(operations={"approval": "always"})
    controller = world.controller()
    for _ in range(200):
        world.step()
    assert (controller.loop.state, world.launches()) == ("awaiting_approval", {})
    approve(world)
    finish(world, controller)


@pytest.mark.parametrize(
    ("rule", "cap_usd", "price", "asks"),
    [
        ("never", None, 5.0, False),
        ("over_budget", None, 5.0, True),
        ("over_budget", 100.0, 5.0, False),
        ("always", 100.0, 5.0, True),
        ("always", None, 5.0, True),
    ],
)
def test_when_somebody_has_to_agree(rule: str, cap_usd: float | None, price: float, asks: bool) -> None:
    """A job that costs and that nothing bounds asks, unless told never to; one that shall always ask does."""
    world = World((f"local=1@{price}",), chunks=1, operations={"approval": rule, "max_cost_usd": cap_usd})
    controller = world.controller()
    for _ in range(20):
        world.step()

    assert (controller.loop.state == "awaiting_approval") is asks
    assert bool(world.launches()) is not asks


def test_an_agreement_is_to_what_was_proposed() -> None:
    """More machines are another proposal: what runs leaves in order, and waits for the next agreement."""
    world = World(("local=1@1",), chunks=60, operations={"approval": "always"})
    controller = world.controller()
    world.run(lambda: controller.loop.state == "awaiting_approval")
    approve(world)
    world.run(lambda: len(world.open_chunks()) < 56)
    control.adjust(world.bucket, world.job.job_id, "user", {"pools": ["local=3@1"]}, submitted=False)
    world.run(lambda: controller.loop.state == "awaiting_approval" and not world.provider.running, 60)
    assert len(world.launches()) == 1
    approve(world)
    finish(world, controller)
    assert len(world.launches()) == 4


def test_a_job_may_be_paused_or_cancelled_while_it_asks() -> None:
    """It leaves at once with 130; cancelled, everything is rejected without a machine."""
    world = World(operations={"approval": "always"})
    first = world.controller()
    world.run(lambda: first.loop.state == "awaiting_approval")
    pause(world)
    world.run(lambda: not first.alive, 10)
    assert first.loop.exit_code == 130
    control.stop(world.bucket, world.job.job_id, "user", StopCode.CANCELLED)
    second = world.controller()
    world.run(lambda: not second.alive, 60)
    assert (second.loop.exit_code, world.launches()) == (1, {})


# -- what cannot be run ------------------------------------------------------------------------------------------------


def test_input_that_cannot_be_read_is_told() -> None:
    """The controller ends with the reason, and says it where status reads it; mended, another goes on."""
    world = World()
    world.ingest_fails = InvalidInput("input", "is gone", "put it back")
    first = world.controller()
    world.run(lambda: not first.alive, 30)
    assert first.loop.failure is world.ingest_fails
    told = fleet_records.newest_controller(world.bucket, world.job.job_id)
    assert told is not None
    assert (told.gone, told.facts["failure"]) == (True, str(world.ingest_fails))
    world.ingest_fails = None
    finish(world, world.controller())


def test_pools_that_cannot_be_had_at_all_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine type nobody sells: the reason is told though nothing of the job was looked at yet."""
    world = World()
    error = InvalidInput("pool local", "has no price", "name another")

    def price(offer: object) -> None:
        raise error

    monkeypatch.setattr(world.provider, "price", price)
    controller = world.controller()
    world.run(lambda: not controller.alive, 30)
    told = fleet_records.newest_controller(world.bucket, world.job.job_id)

    assert controller.loop.failure is error
    assert told is not None
    assert told.facts["failure"] == str(error)


# -- changed on the way ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pools", "machines"), [(["local=3@1"], 3), (["local=1@1"], 1)])
def test_a_fleet_follows_its_pools(pools: list[str], machines: int) -> None:
    """More are bought, fewer stay: without a new controller."""
    world = World(("local=2@1",), chunks=100)
    controller = world.controller()
    world.run(lambda: len(world.open_chunks()) < 96)
    control.adjust(world.bucket, world.job.job_id, "user", {"pools": pools}, submitted=False)
    world.run(lambda: len(world.provider.running) == machines, 30)
    finish(world, controller)

"""Whole fleets under any sequence of misfortunes: nothing is forgotten, nothing costs more than allowed, all gets done.

Real controllers and node agents over a bucket in memory (`tests.support.fleet_world`)."""

from __future__ import annotations

import json
from collections.abc import Callable

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from shuntserve.core.reconcile import MOST_MACHINES_EACH
from shuntserve.job import control, fleet_records
from shuntserve.store import keys
from tests.support.fleet_world import Controller, PretendMachine, World

USD_PER_H = 60.0
CAP_USD = 200.0
POOLS = ("local=2@60", "local/zone-b=1@60")
WANTED = 3


def _some_machine(world: World, number: int) -> PretendMachine | None:
    running = world.provider.running
    return running[number % len(running)] if running else None


def _some_controller(world: World, number: int) -> Controller | None:
    alive = [one for one in world.controllers if one.alive]
    return alive[number % len(alive)] if alive else None


def notice(world: World, number: int) -> None:
    """A machine will be taken soon."""
    machine = _some_machine(world, number)
    if machine is not None and machine.told.interruption_unix_s is None:
        machine.notice(in_s=8.0)


def rebalance(world: World, number: int) -> None:
    """A machine is at risk."""
    machine = _some_machine(world, number)
    if machine is not None:
        machine.recommend_rebalance()


def power_cut(world: World, number: int) -> None:
    """A machine is gone without a word."""
    machine = _some_machine(world, number)
    if machine is not None:
        machine.end()


def hang(world: World, number: int) -> None:
    """A machine's agent does nothing any more, and the machine runs on."""
    machine = _some_machine(world, number)
    if machine is not None:
        machine.hung = True


def break_engine(world: World, number: int) -> None:
    """No engine starts on a machine."""
    machine = _some_machine(world, number)
    if machine is not None:
        world.broken.add(machine.launch.id)


def agent_dies(world: World, number: int) -> None:
    """An agent is killed; whoever keeps it running starts it again."""
    machine = _some_machine(world, number)
    if machine is not None:
        machine.agent = None


def cut_off_machine(world: World, number: int) -> None:
    """A machine cannot reach the bucket; or can again."""
    machine = _some_machine(world, number)
    if machine is not None:
        machine.door.out = not machine.door.out


def kill_controller(world: World, number: int) -> None:
    """A controller is killed at its next request, or the one after it …"""
    controller = _some_controller(world, number)
    if controller is not None:
        controller.door.requests_left = number
        controller.door.die_after = number % 2 == 0


def cut_off_controller(world: World, number: int) -> None:
    """A controller cannot reach the bucket; or can again."""
    controller = _some_controller(world, number)
    if controller is not None:
        controller.door.out = not controller.door.out


def stall_controller(world: World, number: int) -> None:
    """A controller's process is stopped, in between requests, for longer than its lease; or goes on."""
    controller = _some_controller(world, number)
    if controller is not None:
        controller.stalled = not controller.stalled


def another_controller(world: World, number: int) -> None:
    """Somebody starts one more."""
    if sum(one.alive for one in world.controllers) < 4:
        world.controller().door.on_write = _only_who_acts_renews(world)


def provider_silent(world: World, number: int) -> None:
    """The provider does not answer; or does again."""
    world.provider.silent = not world.provider.silent


def lose_request(world: World, number: int) -> None:
    """The next launch is lost on the way."""
    world.provider.loses = "request"


def lose_reply(world: World, number: int) -> None:
    """Of the next launch nobody hears, but the machine comes."""
    world.provider.loses = "reply"


def no_capacity(world: World, number: int) -> None:
    """One of the pools has no machines; or has again."""
    world.provider.refuses ^= {"local/spot"}


def pause(world: World, number: int) -> None:
    control.pause(world.bucket, world.job.job_id, f"user-{number}", "requested")


def resume(world: World, number: int) -> None:
    control.resume(world.bucket, world.job.job_id, f"user-{number}")
    another_controller(world, number)


EVENTS: tuple[Callable[[World, int], None], ...] = (
    notice,
    rebalance,
    power_cut,
    hang,
    break_engine,
    agent_dies,
    cut_off_machine,
    kill_controller,
    cut_off_controller,
    stall_controller,
    another_controller,
    provider_silent,
    lose_request,
    lose_reply,
    no_capacity,
    pause,
    resume,
)

fates = st.lists(st.tuples(st.integers(0, 24), st.sampled_from(EVENTS), st.integers(0, 40)), min_size=1, max_size=14)


def _only_who_acts_renews(world: World) -> Callable[[str, bytes], None]:
    spending = keys.spending(world.job.job_id)

    def check(key: str, body: bytes) -> None:
        if key == spending:
            newest = fleet_records.newest_controller(world.bucket, world.job.job_id)
            assert newest is not None
            assert json.loads(body)["writer"] == newest.incarnation, "renewed by one that was taken over"

    return check


def _safe(world: World) -> None:
    """What must hold at every moment."""
    running = world.provider.running
    assert len(running) <= MOST_MACHINES_EACH * WANTED + world.forsaken, world.words()
    for launch in world.launches().values():
        if launch.ended_unix_s is not None:
            room = world.provider.rooms.get(launch.id)
            assert room is None or not room.running, f"{launch.id} was written off and runs; {world.words()}"
    shutdown_s = 40.0
    allowed_usd = CAP_USD + (len(running) + 1) * USD_PER_H * (30.0 + shutdown_s) / 3600
    assert world.provider.usd(USD_PER_H) <= allowed_usd


def _calm(world: World) -> None:
    """No more misfortune, and somebody who looks after the job."""
    world.provider.silent, world.provider.loses = False, None
    world.provider.refuses.clear()
    world.broken.clear()
    for one in world.controllers:
        one.door.out, one.stalled = False, False
    for machine in world.provider.rooms.values():
        machine.door.out = False
    control.resume(world.bucket, world.job.job_id, "the end")


@settings(max_examples=40, phases=(Phase.generate,))  # a fate of fourteen events is read more quickly than shrunk
@given(fates)
def test_whatever_happens_nothing_is_forgotten_and_all_gets_done(
    fate: list[tuple[int, Callable[[World, int], None], int]],
) -> None:
    """After any misfortunes every chunk is committed, every machine has ended, and all of them are paid for.

    At every moment: no more machines than allowed, none written off that runs, no dollar beyond the cap and the lease,
    the spending lease renewed by the acting controller alone."""
    world = World(POOLS, chunks=30, operations={"max_cost_usd": CAP_USD})
    another_controller(world, 0)

    for steps, event, number in fate:
        for _ in range(steps):
            world.step()
            _safe(world)
        event(world, number)
    _calm(world)
    tries = 0
    while not world.completed or any(launch.ended_unix_s is None for launch in world.launches().values()):
        if world.ended:  # also one killed between the job's end and its machines' is started again (`Job.start`)
            assert tries < 6, world.words()
            tries += 1
            control.resume(world.bucket, world.job.job_id, f"again-{tries}")
            another_controller(world, 0)
        world.run(lambda: world.ended, limit_s=900.0)
        _safe(world)

    assert world.results().count("closer") == 0
    assert not world.provider.running
    launches = world.launches().values()
    assert all(launch.ended_unix_s is not None for launch in launches)
    charged_usd = sum(launch.usd(0.0) for launch in launches)
    assert charged_usd >= world.provider.usd(USD_PER_H) - 0.001

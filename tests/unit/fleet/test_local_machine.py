"""A machine of the local fleet behaves as an instance does: restarts its agent, ends when told, leaves nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shuntserve.core.offers import Offer
from shuntserve.fleet import local_machine
from shuntserve.fleet.local_machine import LocalMachine
from shuntserve.fleet.local_provider import AgentCommand, LocalProvider
from shuntserve.fleet.provider import Launch
from tests.support.scripted_machines import Room, eventually

Rooms = Callable[..., Room]
UNIX_S = 1_800_000_000.0


@pytest.fixture
def start() -> Iterator[Callable[[Room], subprocess.Popen[bytes]]]:
    """Starts machines as processes."""
    started: list[subprocess.Popen[bytes]] = []

    def run(one: Room) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-m", "shuntserve.fleet.local_machine", str(one.directory)]))
        return started[-1]

    yield run
    for process in started:
        with contextlib.suppress(OSError):
            process.kill()
        process.wait()


# -- its life, by the clock of the test -----------------------------------------------------------------------------


def ended_agent(machine: LocalMachine) -> Callable[[], bool]:
    """Whether the newest agent has ended."""
    return lambda: machine._agent is not None and machine._agent.poll() is not None


def test_an_agent_that_dies_is_started_again_after_a_moment(room: Rooms) -> None:
    """Not at once, so that one that cannot start does not spin."""
    one = room("crash")
    machine = LocalMachine(one.directory, "http://127.0.0.1:1")
    assert machine.tick(100.0, UNIX_S)
    eventually(ended_agent(machine))

    assert machine.tick(100.5, UNIX_S)
    assert one.diary() == ["began"]
    assert machine.tick(101.0, UNIX_S)
    eventually(lambda: len(one.diary()) == 2)


def test_an_agent_that_keeps_dying_ends_the_machine(room: Rooms) -> None:
    """Five quick deaths: what does not start five times costs no more money. Deaths far apart are forgiven."""
    one = room("crash")
    machine = LocalMachine(one.directory, "http://127.0.0.1:1")
    now_s, deaths = 100.0, 0
    while machine.tick(now_s, UNIX_S):
        if machine._agent is not None:
            eventually(ended_agent(machine))
            deaths += 1
            now_s += 60.0 if deaths == 4 else 1.5
        else:
            now_s += 1.5

    assert deaths == 4 + 5
    assert len(one.diary()) == deaths


def test_a_machine_ends_with_an_agent_that_left_in_order(room: Rooms) -> None:
    """Shutdown terminates."""
    one = room("leave")
    machine = LocalMachine(one.directory, "http://127.0.0.1:1")
    machine.tick(100.0, UNIX_S)
    eventually(ended_agent(machine))

    assert not machine.tick(100.1, UNIX_S)


def test_power_off_between_two_agents_starts_no_other(room: Rooms) -> None:
    """The button is pressed while the next agent is awaited: the machine is off at once."""
    one = room("crash")
    machine = LocalMachine(one.directory, "http://127.0.0.1:1")
    machine.tick(100.0, UNIX_S)
    eventually(ended_agent(machine))
    machine.tick(100.1, UNIX_S)
    machine.power_off(100.2)

    assert not machine.tick(105.0, UNIX_S)
    assert one.diary() == ["began"]


def test_a_machine_whose_agent_does_not_drain_is_switched_off(room: Rooms) -> None:
    """Its agent ignores the button: it has some time, then it is over."""
    one = room("stubborn")
    machine = LocalMachine(one.directory, "http://127.0.0.1:1")
    machine.tick(100.0, UNIX_S)
    eventually(lambda: one.diary() == ["began"])
    machine.power_off(101.0)

    assert machine.tick(140.0, UNIX_S)
    assert not machine.tick(146.0, UNIX_S)


def test_an_announced_interruption_comes(room: Rooms) -> None:
    """Until its time the machine goes on, then the power is off."""
    one = room("stay")
    machine = LocalMachine(one.directory, "http://127.0.0.1:1")
    now_unix_s = time.time()
    local_machine.interrupt(one.directory, in_s=60.0)

    assert machine.tick(100.0, now_unix_s + 59.0)
    assert not machine.tick(100.1, now_unix_s + 61.0)


# -- its process ----------------------------------------------------------------------------------------------------


def test_sigterm_lets_the_agent_drain(room: Rooms, start: Callable[[Room], subprocess.Popen[bytes]]) -> None:
    """As an instance that is stopped: the agent gets its signal, the machine ends with it, nothing stays."""
    one = room("stay")
    process = start(one)
    eventually(lambda: one.diary() == ["began"])
    assert local_machine.is_running(one.directory)
    process.send_signal(signal.SIGTERM)
    process.wait(30)

    assert one.diary() == ["began", "drained"]
    assert not local_machine.is_running(one.directory)
    assert one.processes() == []


def test_an_interruption_leaves_nothing(room: Rooms, start: Callable[[Room], subprocess.Popen[bytes]]) -> None:
    """Not even an agent that heeds no signal, and the machine never starts again."""
    one = room("stubborn")
    process = start(one)
    eventually(lambda: one.diary() == ["began"])
    local_machine.interrupt(one.directory, in_s=0.3)
    process.wait(30)
    eventually(lambda: one.processes() == [])

    assert start(one).wait(30) == 0
    assert one.diary() == ["began"]


def test_a_machine_told_to_end_before_it_could_be_found_ends(
    room: Rooms, start: Callable[[Room], subprocess.Popen[bytes]]
) -> None:
    """Whoever terminates it does not know its process yet and can only leave a mark: that is enough."""
    one = room("stay")
    process = start(one)
    eventually(lambda: one.diary() == ["began"])
    (one.directory / "ended").touch()
    process.wait(30)

    assert one.diary() == ["began", "drained"]


# -- its provider ---------------------------------------------------------------------------------------------------


def fleet(tmp_path: Path) -> LocalProvider:
    return LocalProvider(AgentCommand("file:///nowhere", tmp_path / "data"))


def wanted(name: str = "n0001") -> Launch:
    return Launch(name, "job", "local", Offer("local", "", "spot", 0.0))


def test_one_launch_is_one_machine_however_often_it_is_asked_for(tmp_path: Path, room: Rooms) -> None:
    """By several controllers, at once, and again later."""
    providers = [fleet(tmp_path), fleet(tmp_path)]
    one = room("stay", providers[0].directory("job", "n0001"))
    threads = [threading.Thread(target=provider.launch, args=(wanted(),)) for provider in providers for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: one.diary())
    providers[0].launch(wanted())
    eventually(lambda: len(one.processes()) == 2)  # the machine and its agent

    for provider in providers:
        assert [machine.id for machine in provider.machines("job")] == ["n0001"]
    assert one.diary() == ["began"]
    providers[1].terminate("job", "n0001", at_once=True)
    eventually(lambda: not providers[0].machines("job"))


def test_a_machine_terminated_before_it_began_never_does(tmp_path: Path, room: Rooms) -> None:
    """The launch of a controller that died in between is ended by the next one: a late process finds its mark."""
    provider = fleet(tmp_path)
    one = room("stay", provider.directory("job", "n0001"))
    provider.terminate("job", "n0001")
    provider.launch(wanted())
    eventually(lambda: all(child.poll() is not None for child in provider._children))

    assert one.diary() == []
    assert provider.machines("job") == ()


@pytest.mark.parametrize(("behaviour", "diary"), [("stay", ["began", "drained"]), ("stubborn", ["began"])])
def test_terminate_drains_or_cuts_the_power(tmp_path: Path, room: Rooms, behaviour: str, diary: list[str]) -> None:
    """A machine that ends in order lets its agent drain; at once, it waits for nobody."""
    provider = fleet(tmp_path)
    one = room(behaviour, provider.directory("job", "n0001"))
    provider.launch(wanted())
    eventually(lambda: one.diary() == ["began"])
    provider.terminate("job", "n0001", at_once=behaviour == "stubborn")
    eventually(lambda: not one.processes() and not provider.machines("job"))

    assert one.diary() == diary
    provider.terminate("job", "n0001")  # one that has ended is fine


def test_a_fleet_has_no_machines_it_never_launched(tmp_path: Path) -> None:
    """Nothing there yet, and nothing to terminate: no error."""
    provider = fleet(tmp_path)

    assert provider.machines("job") == ()
    provider.terminate("job", "n0009", at_once=True)


def test_a_machine_outlives_whoever_launched_it(tmp_path: Path, room: Rooms) -> None:
    """It has a session of its own: what ends a controller's process group does not reach it."""
    provider = fleet(tmp_path)
    one = room("stay", provider.directory("job", "n0001"))
    provider.launch(wanted())
    eventually(lambda: one.diary() == ["began"])

    assert os.getsid(0) not in {os.getsid(process.pid) for process in one.processes()}
    provider.terminate("job", "n0001", at_once=True)
    eventually(lambda: not one.processes())

"""Small decisions of a local run: restarts, shares of the machine, who is dead."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuntserve.core.restarts import Lives, RestartPolicy
from shuntserve.core.shares import default_workers, shares
from shuntserve.errors import InvalidInput
from shuntserve.job import machine
from shuntserve.settings import Settings

POLICY = RestartPolicy()


@given(st.lists(st.booleans(), max_size=60))
def test_a_worker_that_achieves_something_is_always_started_again(lives: list[bool]) -> None:
    """Whatever came before: after a fruitful life the next start is immediate, however often it died."""
    slot = Lives()
    for fruitful in lives:
        slot = slot.ended(fruitful=fruitful)

    assert POLICY.delay_s(slot.ended(fruitful=True)) == 0.0


def test_fruitless_lives_come_slower_and_then_no_more() -> None:
    """Delays grow up to a bound, and after enough fruitless lives the slot is given up."""
    slot, delays = Lives(), []
    while (delay_s := POLICY.delay_s(slot)) is not None:
        delays.append(delay_s)
        slot = slot.ended(fruitful=False)

    assert delays == sorted(delays)
    assert len(delays) == POLICY.most_fruitless_lives
    assert max(delays) <= POLICY.longest_delay_s


@given(st.integers(1, 4), st.integers(1, 4))
def test_no_gpu_is_given_twice(workers: int, gpus_each: int) -> None:
    """Each worker sees as many GPUs as it needs, and none that another one sees."""
    given_out = shares(workers, 8, 1 << 30, [str(gpu) for gpu in range(16)], gpus_each)

    seen = [gpu for share in given_out for gpu in share.environment["CUDA_VISIBLE_DEVICES"].split(",")]
    assert len(given_out) == workers
    assert len(seen) == len(set(seen)) == workers * gpus_each


def test_more_workers_than_gpus_is_refused() -> None:
    """The message says how many are possible."""
    with pytest.raises(InvalidInput, match="need 6, this machine has 4"):
        shares(3, 8, 1 << 30, ["0", "1", "2", "3"], 2)


@pytest.mark.parametrize(("workers", "cores", "threads"), [(1, 8, 8), (2, 8, 4), (3, 8, 2), (4, 2, 1)])
def test_without_gpus_cores_and_memory_are_shared(workers: int, cores: int, threads: int) -> None:
    """Threads of all workers together are not more than the cores, but each has one; their caches fit together."""
    given_out = shares(workers, cores, 16 << 30, [], 1)

    assert [share.cpu_threads for share in given_out] == [threads] * workers
    assert sum(share.kv_cache_bytes or 0 for share in given_out) <= 8 << 30
    assert all((share.kv_cache_bytes or 0) > 1 << 30 for share in given_out)


@pytest.mark.parametrize(("gpus", "each", "workers"), [(0, 1, 1), (8, 1, 8), (8, 4, 2), (2, 4, 1)])
def test_by_default_every_gpu_has_work(gpus: int, each: int, workers: int) -> None:
    """One worker for each group of GPUs that a model needs; one where there is no GPU."""
    assert default_workers(gpus, each) == workers


def test_visible_devices_are_the_users_choice() -> None:
    """CUDA_VISIBLE_DEVICES decides, also that there is none."""
    assert machine.gpus("2,3") == ("2", "3")
    assert machine.gpus("") == machine.gpus("-1") == ()


def test_a_process_that_ended_is_gone_and_one_that_runs_is_not() -> None:
    """A dead process of this machine is known as such; one that lives, or lives elsewhere, never is."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    facts = {"place": machine.place(), "pid": child.pid, "started_unix_s": time.time()}
    alive = machine.is_gone(facts)
    child.communicate(b"\n")

    assert not alive
    assert machine.is_gone(facts)
    assert not machine.is_gone({**facts, "place": "another machine"})
    assert not machine.is_gone({})


def test_a_reused_process_id_is_not_mistaken_for_the_dead_one() -> None:
    """Our own process was created long after the one that is said to have had its id."""
    facts = {"place": machine.place(), "pid": os.getpid(), "started_unix_s": 1.0}

    assert machine.is_gone(facts)


def test_settings_come_from_the_environment_once() -> None:
    """The store and the data directory follow XDG unless SHUNTSERVE_STORE says otherwise; a wrong level is an error."""
    plain = Settings.from_environment({"HOME": "/home/me"})
    named = Settings.from_environment({"HOME": "/home/me", "SHUNTSERVE_STORE": "s3://b/p", "XDG_DATA_HOME": "/d"})

    assert plain.store_url == "file:///home/me/.local/share/shuntserve/store"
    assert (named.store_url, str(named.data_dir)) == ("s3://b/p", "/d/shuntserve")
    with pytest.raises(InvalidInput, match="loud"):
        Settings.from_environment({"HOME": "/home/me", "SHUNTSERVE_LOG": "loud"})

"""SIGKILL of worker, engine, command and everything, at seeded random moments, and a row that crashes every engine:
real processes, a real store.

`tests/soak.py` runs the same trial for as long as wanted.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.kills import STANDIN, VLLM, KillTrial

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> KillTrial:
    """A job on real vLLM, greedy and sampled rows, and what an undisturbed run makes of it."""
    return KillTrial(tmp_path_factory.mktemp("vllm"), VLLM, seed=5)


def test_a_hundred_kills_lose_double_and_alter_nothing(tmp_path: Path) -> None:
    """Over a hundred kills of a job on the stand-in engine: ids, rejects and texts are an undisturbed run's."""
    trial = KillTrial(tmp_path, STANDIN, seed=20, workers=3)

    rounds = 0
    while trial.kills.total < 100:
        rounds += 1
        trial.round(f"r{rounds}", 100 - trial.kills.total)
        trial.check(f"r{rounds}")

    assert all(trial.kills.by_victim.values()), "every kind of victim was killed"
    assert trial.resumed_rows > 0
    assert trial.survivors() == []


@pytest.mark.vllm
def test_rows_of_a_real_engine_survive_kills_with_the_same_text(real: KillTrial) -> None:
    """Real vLLM, at least four kills: every text equals an undisturbed run's."""
    rounds = 0
    while real.kills.total < 4:
        rounds += 1
        real.round(f"r{rounds}", 5)
        real.check(f"r{rounds}")

    assert real.resumed_rows > 0
    assert real.survivors() == []


@pytest.mark.vllm
def test_a_row_that_crashes_a_real_engine_is_the_only_reject_of_the_engine(real: KillTrial) -> None:
    """Real vLLM, aborted from inside whenever it computes one row: that row is rejected as such, rows refused by ingest
    are as before, and every other text equals an undisturbed run's."""
    summary = real.round_of_crashes("crashes")

    real.check("crashes", crashed=True)
    assert summary["interruptions"] >= 3, "once among others, twice alone"
    assert real.survivors() == []

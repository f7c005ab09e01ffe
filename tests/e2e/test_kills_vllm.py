"""Real vLLM in whole jobs: SIGKILL at seeded random moments, and a row that crashes every engine it is given to."""

from __future__ import annotations

import pytest

from tests.support.kills import VLLM, KillTrial

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> KillTrial:
    """A job on real vLLM, greedy and sampled rows, and what an undisturbed run makes of it."""
    return KillTrial(tmp_path_factory.mktemp("vllm"), VLLM, seed=5)


def test_rows_of_a_real_engine_survive_kills_with_the_same_text(trial: KillTrial) -> None:
    """Real vLLM, at least four kills: every text equals an undisturbed run's."""
    rounds = 0
    while trial.kills.total < 4:
        rounds += 1
        trial.round(f"r{rounds}", 4 - trial.kills.total)
        trial.check(f"r{rounds}")

    assert all(trial.kills.by_victim.values()), "every kind of victim was killed"
    assert trial.resumed_rows > 0
    assert trial.survivors() == []


def test_a_row_that_crashes_a_real_engine_is_the_only_reject_of_the_engine(trial: KillTrial) -> None:
    """Real vLLM, aborted from inside whenever it computes one row: that row is rejected as such, rows refused by ingest
    are as before, and every other text equals an undisturbed run's."""
    summary = trial.round_of_crashes("crashes")

    trial.check("crashes", crashed=True)
    assert summary["interruptions"] >= 3, "once among others, twice alone"
    assert trial.survivors() == []

"""SIGKILL of worker, engine, command and everything, at seeded random moments: real processes, a real store, the
stand-in engine. (The same with real vLLM: test_kills_vllm.)

`tests/soak.py` runs the same trial for as long as wanted.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.kills import STANDIN, KillTrial

pytestmark = pytest.mark.timeout(900)


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

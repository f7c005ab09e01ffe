"""What a job would take and cost at most, before a machine is launched."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shuntserve.catalog import load_catalog
from shuntserve.core.offers import Offer, Want
from shuntserve.core.specs import JobSpec
from shuntserve.fleet.prediction import Prediction, predict
from shuntserve.fleet.proposal import propose
from shuntserve.job.ingest import ingest
from shuntserve.job.submission import submit_spec
from shuntserve.sim.tiny_model import TinyModel, write_tiny_model
from shuntserve.store.open import open_bucket


def prediction_of(tmp_path: Path, wants: list[Want], *, rows: int = 40, max_tokens: int = 100) -> Prediction | None:
    """The prediction for a small job of known lengths."""
    model = write_tiny_model(tmp_path / "model", TinyModel())
    path = tmp_path / "p.parquet"
    pq.write_table(
        pa.Table.from_pylist([{"prompt": f"the river {n}", "max_tokens": max_tokens} for n in range(rows)]), path
    )
    bucket = open_bucket((tmp_path / "store").as_uri())
    spec = JobSpec(input=str(path), model=str(model), fleet="ec2", pools=("g6.xlarge=1",), max_cost_usd=1)
    job = submit_spec(bucket, spec)
    return predict(bucket, job, ingest(bucket, job), wants, load_catalog())


def want(instance_type: str, count: int, usd_per_h: float) -> Want:
    """Spot machines of one type."""
    return Want(instance_type, count, (Offer(instance_type, "", "spot", usd_per_h),))


def test_twice_the_machines_take_half_the_time_for_the_same_money(tmp_path: Path) -> None:
    """Throughput grows with machines; dollars do not change."""
    one = prediction_of(tmp_path / "one", [want("g6.xlarge", 1, 0.3)])
    two = prediction_of(tmp_path / "two", [want("g6.xlarge", 2, 0.3)])

    assert one is not None
    assert one.hours_at_most is not None
    assert one.usd_at_most is not None
    assert two is not None
    assert two.hours_at_most is not None
    assert two.hours_at_most == pytest.approx(one.hours_at_most / 2)
    assert two.usd_at_most == pytest.approx(one.usd_at_most)
    assert one.usd_at_most == pytest.approx(0.3 * one.hours_at_most)


def test_rows_are_taken_to_use_up_their_max_tokens(tmp_path: Path) -> None:
    """The mean of what rows may generate is read from the chunks, not guessed."""
    short = prediction_of(tmp_path / "short", [want("g6.xlarge", 1, 0.3)], max_tokens=10)
    long = prediction_of(tmp_path / "long", [want("g6.xlarge", 1, 0.3)], max_tokens=300)

    assert short is not None
    assert long is not None
    assert (short.max_tokens_mean, long.max_tokens_mean) == (10, 300)
    assert short.usd_at_most is not None
    assert long.usd_at_most is not None
    assert long.usd_at_most > 5 * short.usd_at_most


def test_a_type_nobody_knows_is_a_problem_with_a_name(tmp_path: Path) -> None:
    """No number is made up for a machine that is not in the catalogue."""
    found = prediction_of(tmp_path, [want("x9.huge", 1, 0.3)])

    assert found is not None
    assert found.usd_at_most is None
    assert "x9.huge" in str(found.problem)


@pytest.mark.parametrize(
    ("approval", "cap", "at_most", "needed"),
    [
        ("always", 10.0, 1.0, True),
        ("never", None, None, False),
        ("over_budget", None, 1.0, True),
        ("over_budget", 10.0, 1.0, False),
        ("over_budget", 10.0, 11.0, True),
        ("over_budget", 10.0, None, False),
    ],
)
def test_when_somebody_has_to_agree(
    tmp_path: Path, approval: str, cap: float | None, at_most: float | None, needed: bool
) -> None:
    """Always, never, or when the upper end of the cost exceeds the budget, or nothing bounds it."""
    model = write_tiny_model(tmp_path / "model", TinyModel())
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": ["the river"]}), path)
    spec = JobSpec(
        input=str(path), model=str(model), fleet="ec2", pools=("g6.xlarge=2",), approval=approval, max_cost_usd=cap
    )
    job = submit_spec(open_bucket((tmp_path / "store").as_uri()), spec)

    proposal = propose(job, (want("g6.xlarge", 2, 0.3),), Prediction(usd_at_most=at_most))

    assert proposal["approval_needed"] is needed
    assert proposal["usd_per_h"] == pytest.approx(0.6)

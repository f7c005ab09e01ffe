"""A flow run's parameters as a job's settings."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from flows._spec import capped, dated, job_spec
from flows.stop import stop
from shuntserve.errors import InvalidInput

DAY = datetime(2030, 1, 31, 18, 0, tzinfo=UTC)


def spec(given: dict[str, Any], more: dict[str, Any] | None = None, cap: float | None = None) -> Any:
    return job_spec({"input": "in.parquet", "model": "m", **given}, more or {}, DAY, cap, "run-1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://b/dt={as_of:%Y-%m-%d}/x", "s3://b/dt=2030-01-31/x"),
        ("{as_of:%Y}/{as_of:%m}", "2030/01"),
        ("{as_of}", "2030-01-31T18:00:00+00:00"),
        ("s3://b/{name}/part-{0}.parquet", "s3://b/{name}/part-{0}.parquet"),
        ("no braces", "no braces"),
        ("{as_of:%Y-{x}}", "{as_of:%Y-{x}}"),
    ],
)
def test_dates_in_paths(text: str, expected: str) -> None:
    """Only `as_of` means anything in braces; the rest of a path is left as it is."""
    assert dated(text, DAY) == expected


def test_input_and_output_are_dated() -> None:
    """One input or several, and the output."""
    one = spec({"input": "in/{as_of:%d}.parquet", "output": "out/{as_of:%d}"})
    two = spec({"input": ["a/{as_of:%d}", "b/{as_of:%d}"]})

    assert (one.input, one.output) == (("in/31.parquet",), "out/31")
    assert two.input == ("a/31", "b/31")


def test_settings_are_any_of_a_job_and_clash_with_no_parameter() -> None:
    """`settings` reaches every field; naming one thing twice is refused, as is a name that is none."""
    assert spec({}, {"max_tokens": 9, "pools": ["local=2"]}).pools == ("local=2",)
    with pytest.raises(InvalidInput, match="a parameter of its own"):
        spec({}, {"model": "other"})
    with pytest.raises(InvalidInput, match="did you mean 'max_tokens'"):
        spec({}, {"max_tokenz": 9})


def test_without_input_or_model_the_error_names_what_is_missing() -> None:
    """A run of the deployment with nothing filled in."""
    with pytest.raises(InvalidInput, match=r"'input'.*is missing"):
        job_spec({"model": "m"}, {}, DAY, None, "run-1")


@pytest.mark.parametrize(
    ("asked", "cap", "allowed"), [(None, None, None), (5.0, None, 5.0), (None, 9.0, 9.0), (5.0, 9.0, 5.0)]
)
def test_the_installation_s_cap(asked: float | None, cap: float | None, allowed: float | None) -> None:
    """What is asked for, at most the cap; the cap where nothing is asked for."""
    assert capped(asked, cap) == allowed


def test_more_than_the_cap_is_refused_not_lowered() -> None:
    """Nobody is surprised by a job that stops halfway."""
    with pytest.raises(InvalidInput, match="above the cap of 9"):
        spec({"max_cost_usd": 10.0}, cap=9.0)
    with pytest.raises(InvalidInput, match="above the cap of 9"):
        spec({}, {"max_cost_usd": 10.0}, cap=9.0)


def test_a_rerun_is_one_for_each_flow_run() -> None:
    """`rerun: true` of a run whose process is started again is the same job; a text stays the text."""
    assert spec({"rerun": True}).rerun == "run-1"
    assert spec({"rerun": "monday"}).rerun == "monday"
    assert spec({"rerun": False}).rerun is False


@pytest.mark.parametrize("given", [{}, {"job": "a-1", "all_jobs": True}])
def test_stop_must_be_told_what_to_stop(given: dict[str, Any]) -> None:
    """Neither by default everything, nor both."""
    with pytest.raises(InvalidInput, match="set either job or all_jobs"):
        stop.fn(**given)

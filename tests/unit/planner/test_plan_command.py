"""`shuntserve plan`: what it prints, and that nothing impossible gets a plan."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shuntserve.cli.app import build_app
from shuntserve.errors import ShuntServeError

PAPER = [
    "--pool", "g5.12xlarge=2@2.29", "--pool", "g6.12xlarge=3@1.9", "--pool", "g6e.xlarge=4@0.76",
    "--workload", "763:232",
]  # fmt: skip
SMALL = ["--model", "Qwen3-32B", "--pool", "g6e.xlarge=4@0.76", "--workload", "763:232"]


def run(*arguments: str) -> str:
    """Standard output; errors come as they are raised."""
    result = CliRunner().invoke(build_app(), ["plan", *arguments], catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def plan(*arguments: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(run(*arguments, "--json"))
    return answer


@pytest.mark.parametrize("model", ["Llama-3.1-70B", "Qwen3-32B"])
@pytest.mark.parametrize("objective", ["throughput", "cost"])
def test_the_paper_s_cluster_is_planned_within_one_per_cent(model: str, objective: str) -> None:
    """The gap is closed to 1 %, and the numbers agree with each other."""
    answer = plan("--model", model, *PAPER, "--objective", objective)
    assert 0 <= answer["gap"] <= 0.01
    assert answer["throughput_rps"] <= answer["upper_bound_rps"] * (1 + 1e-9)
    assert answer["throughput_rps"] == pytest.approx(sum(p["throughput_rps"] for p in answer["pipelines"]))
    usd = sum(pool["used"] * pool["usd_per_hour"] for pool in answer["pools"])
    assert answer["usd_per_hour"] == pytest.approx(usd)
    tokens_per_h = answer["throughput_rps"] * (763 + 232) * 3600
    assert answer["usd_per_million_tokens"] == pytest.approx(usd / tokens_per_h * 1e6)
    for pipeline in answer["pipelines"]:
        assert sum(stage["layers"] for stage in pipeline["stages"]) == {"Llama-3.1-70B": 80, "Qwen3-32B": 64}[model]
        assert all(stage["prefill_s"] > 0 and stage["decode_s"] > 0 for stage in pipeline["stages"])


def test_a_deadline_is_met_with_ramp_and_drain_at_the_least_cost() -> None:
    """finish_s includes start-up and drain, keeps the deadline, and a later deadline never costs more."""
    early = plan(*SMALL, "--objective", "deadline", "--deadline", "3h", "--requests", "20000")
    late = plan(*SMALL, "--objective", "deadline", "--deadline", "9h", "--requests", "20000")
    assert early["finish_s"] <= 3 * 3600
    assert early["finish_s"] > 180 + 20000 / early["throughput_rps"]
    assert early["total_usd"] == pytest.approx(early["finish_s"] / 3600 * early["usd_per_hour"])
    assert late["total_usd"] <= early["total_usd"] * 1.01


def test_budgets_and_quotas_hold() -> None:
    """The hourly budget, the budget of the job and the vCPU quota are never exceeded."""
    answer = plan(*SMALL, "--hourly-budget", "2.3")
    assert answer["usd_per_hour"] <= 2.3
    answer = plan(*SMALL, "--quota", "L-3819A6DF=8")  # a g6e.xlarge has 4 vCPUs
    assert answer["pools"][0]["used"] <= 2
    answer = plan(*SMALL, "--requests", "50000", "--budget", "12")
    assert answer["total_usd"] <= 12


def test_without_json_it_says_what_to_rent_and_why() -> None:
    """The table names machines and layers; the lines below name what binds and the proven gap."""
    shown = run("--model", "Qwen3-32B", *PAPER, "--requests", "1000")
    assert "requests/s" in shown
    assert "an hour" in shown
    assert "g6e.xlarge/spot #0" in shown
    assert "one more adds" in shown
    assert "no plan is more than" in shown


def test_the_page_draws_every_stage_and_loads_nothing(tmp_path: Path) -> None:
    """One bar per stage, well-formed, without any address."""
    page = tmp_path / "plan.html"
    answer = plan("--model", "Qwen3-32B", *PAPER, "--plot", str(page))
    html = page.read_text(encoding="utf-8")
    bars: list[str] = []

    class Bars(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "rect":
                bars.append(tag)

    Bars().feed(html)
    assert len(bars) == sum(len(pipeline["stages"]) for pipeline in answer["pipelines"])
    assert "http" not in html
    assert "src=" not in html


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "Qwen3-32X"], "did you mean"),
        (["--pool", "g6e.xlage=4"], "did you mean"),
        (["--pool", "g6e.xlarge=0"], "not positive"),
        (["--pool", "g6e.xlarge=-2"], "not positive"),
        (["--pool", "g6e.xlarge=2.5"], "not a whole number"),
        (["--pool", "g6e.xlarge"], "TYPE"),
        (["--pool", "g6e.xlarge=2@0"], "not a positive"),
        (["--pool", "g6e.xlarge=2@nan"], "not a positive"),
        (["--pool", "g6e.xlarge=2@-1"], "not a positive"),
        (["--pool", "g6e.xlarge/a/flex=2"], "TYPE"),
        (["--workload", "0:10"], "not a positive"),
        (["--workload", "nan:10"], "not a positive"),
        (["--workload", "nowhere.csv"], "neither"),
        (["--objective", "fastest"], "throughput, cost, deadline"),
        (["--objective", "deadline"], "give both"),
        (["--deadline", "6h"], "number of requests"),
        (["--objective", "deadline", "--deadline", "soon", "--requests", "10"], "90m, 6h"),
        (["--objective", "deadline", "--deadline", "2m", "--requests", "10"], "need 180 s to start"),
        (["--requests", "0"], "not positive"),
        (["--budget", "-5", "--requests", "10"], "not a positive"),
        (["--hourly-budget", "nan"], "not a positive"),
        (["--hourly-budget", "0.1"], "an hour"),
        (["--requests", "200000", "--budget", "1"], "at least about"),
        (["--objective", "deadline", "--deadline", "10m", "--requests", "200000"], "with every machine"),
        (["--quota", "L-3819A6DF"], "CODE=VCPUS"),
        (["--quota", "L-0=5"], "counts none"),
        (["--quota", "L-3819A6DF=2"], "no pipeline fits"),
        (["--max-pool-share", "0"], "not above 0"),
        (["--max-pool-share", "1.5"], "at most 1"),
        (["--max-pool-share", "0.5"], "keeps to it"),
        (["--gap", "nan"], "tolerance"),
        (["--time-limit", "0"], "not above 0"),
        (["--dtype", "int3"], "int3"),
        (["--engine", "sglangg"], "not in the catalogue"),
        (["--model", "Llama-3.1-405B"], "of its 126 layers"),
        (["--dtype", "fp4"], "fp4"),
        (["--plot", "/nowhere/plan.html"], "does not exist"),
    ],
)
def test_bad_requests_are_told_what_to_change(arguments: list[str], said: str) -> None:
    """Each gets an error that names the thing and the way out, and never a plan."""
    merged = dict(zip(SMALL[::2], SMALL[1::2], strict=True)) | dict(zip(arguments[::2], arguments[1::2], strict=True))
    with pytest.raises(ShuntServeError) as error:
        run(*(part for pair in merged.items() for part in pair))
    assert said in str(error.value)
    assert error.value.next_step

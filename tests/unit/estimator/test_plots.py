"""The page of plots: made by its command, complete in itself, and well formed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

PROGRAM = Path(__file__).parents[2] / "bench" / "plots.py"
SCORE = {"rows": 3, "mape": 0.1, "bias": 0.0, "worst": 0.2, "kendall_tau": 1.0}
REPORT = {
    "targets": {"vLLM sweeps": 0.07, "leave one GPU out": 0.2},
    "by_source": {"vLLM sweeps": SCORE, "layer profiles": SCORE},
    "by_source_and_gpu": {"layer profiles / T4": SCORE},
    "by_gpu": {"L4 <&>": SCORE},
    "leave_one_gpu_out": {"L4 <&>": {**SCORE, "mape": 0.3}, "T4": SCORE, "all rows": SCORE},
    "points": [
        {"source": "vLLM sweeps", "gpu": "L4", "quantity": "requests/s", "measured": 1.0, "predicted": 1.1},
        {"source": "layer profiles", "gpu": "T4", "quantity": "s/layer", "measured": 0.01, "predicted": 0.02},
    ],
    "whole_runs": {
        "kendall_tau": 0.8,
        "runs": [{"run": "Llama A", "measured_s": 800.0, "predicted_s": 900.0, "ratio": 1.125}],
    },
}
PLANNED = [
    {"kind": "quality", "model": "M", "objective": "throughput", "name": "ShuntServe", "throughput_rps": 4.2,
     "usd_per_million_tokens": 0.8, "gap": 0.001, "solve_s": 2.0},
    {"kind": "quality", "model": "M", "objective": "throughput", "name": "beam", "throughput_rps": 3.0,
     "usd_per_million_tokens": 1.1, "gap": None, "solve_s": None},
    {"kind": "growth", "pools": 15, "nodes": 480, "solve_s": 12.5, "gap": 0.01, "rss_mib": 300.0},
    {"kind": "growth", "pools": 100, "nodes": 5000, "error": "too late"},
]  # fmt: skip


def run(tmp_path: Path, report: str, planned: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command as a user starts it, on these files."""
    (tmp_path / "est.json").write_text(report)
    more: list[str] = []
    if planned is not None:
        (tmp_path / "plan.json").write_text(planned)
        more = ["--planner", str(tmp_path / "plan.json")]
    command = [sys.executable, str(PROGRAM), "--estimator", str(tmp_path / "est.json"), *more]
    command += ["--output", str(tmp_path / "page.html")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def drawings(tmp_path: Path) -> list[ElementTree.Element]:
    """Every drawing of the page; the page as a whole must be well-formed XML too."""
    text = (tmp_path / "page.html").read_text()
    assert "http" not in text
    assert "<script" not in text
    return list(ElementTree.fromstring(re.sub("<!doctype html>", "", text)).iter("svg"))


def words(drawing: ElementTree.Element) -> str:
    return " ".join(element.text or "" for element in drawing.iter("text"))


def test_the_estimators_errors_are_drawn_without_a_planner(tmp_path: Path) -> None:
    """Sources, GPUs seen and left out, both scatters, whole runs: with their numbers, and names taken literally."""
    done = run(tmp_path, json.dumps(REPORT))

    assert done.returncode == 0, done.stderr
    found = drawings(tmp_path)
    assert len(found) == 5
    assert "10.0%" in words(found[0])
    assert "L4 <&> (3)" in words(found[1])
    assert "30.0%" in words(found[1])
    assert "900 s, +12%" in words(found[4])
    assert "No planner results" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("as_lines", [True, False])
def test_the_planners_records_are_drawn_from_lines_or_an_array(tmp_path: Path, as_lines: bool) -> None:
    """Quality as a multiple of the best that is not ours; time by size, without the cluster that had no answer."""
    planned = "\n".join(map(json.dumps, PLANNED)) if as_lines else json.dumps(PLANNED)

    done = run(tmp_path, json.dumps(REPORT), planned)

    assert done.returncode == 0, done.stderr
    quality, growth = drawings(tmp_path)[5:]
    assert "1.40×" in words(quality)
    assert "gap 0.10%" in words(quality)
    assert "15 pools, gap 1.00%, 300 MiB" in words(growth)
    assert len(list(growth.iter("circle"))) == 1


@pytest.mark.parametrize("report", ["", "[]", "{}", '{"by_source": 3}'])
def test_json_that_is_no_report_is_refused(tmp_path: Path, report: str) -> None:
    """Exit code 2 and a line on standard error, and no page."""
    done = run(tmp_path, report)

    assert done.returncode == 2
    assert "cannot be used" in done.stderr
    assert not (tmp_path / "page.html").exists()

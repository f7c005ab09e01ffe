"""One page of plots from the benchmarks' JSON: the estimator's errors, the planner's quality and time.

    python tests/bench/estimator.py --data DIR --json > est.json
    python tests/bench/planner.py --json > plan.json
    python tests/bench/plots.py --estimator est.json [--planner plan.json] --output page.html

The page is one file: HTML with inline SVG, no script and nothing from the network.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from plots_svg import Bar, Point, bars, dumbbells, scatter

from shuntserve import drawing

KERNEL_TIMES = ("s/layer", "s/kernel")
OURS = "ShuntServe"
LEFT_OUT_SUMS = ("all rows", "all rows but layer profiles", "mean over GPUs")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimator", type=Path, required=True, help="JSON of tests/bench/estimator.py")
    parser.add_argument("--planner", type=Path, help="JSON of tests/bench/planner.py: an array, or an object per line")
    parser.add_argument("--output", type=Path, required=True, help="the page to write")
    arguments = parser.parse_args()
    try:
        report = json.loads(arguments.estimator.read_text(encoding="utf-8"))
        records = read_records(arguments.planner) if arguments.planner else []
        text = page(report, records)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"error: a benchmark's JSON cannot be used: {error!r}", file=sys.stderr)
        return 2
    arguments.output.write_text(text, encoding="utf-8")
    return 0


def read_records(path: Path) -> list[dict[str, Any]]:
    """The planner's records, whether they stand in one array or one to a line."""
    text = path.read_text(encoding="utf-8").strip()
    found = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines() if line]
    return [record for record in found if isinstance(record, dict)]


def page(report: dict[str, Any], records: Sequence[dict[str, Any]]) -> str:
    """The whole page."""
    parts = [*estimator_parts(report), *planner_parts(records)]
    body = "\n".join(
        f'<h2>{escape(title)}</h2>\n<p class="note">{escape(note)}</p>\n{svg}' for title, note, svg in parts
    )
    missing = "" if records else "<p>No planner results were given.</p>\n"
    title = "Estimator and planner against measurements and baselines"
    return drawing.page(f"ShuntServe: {title.lower()}", f"<h1>{title}</h1>\n{missing}{body}")


# --- estimator ---


def estimator_parts(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    targets = report.get("targets", {})
    by_source = [
        Bar(f"{name} ({row['rows']})", row["mape"], f"{row['mape']:.1%}", goal=targets.get(name))
        for name, row in report["by_source"].items()
    ]
    parts = [
        (
            "Error by source",
            "Mean absolute error of predicted against measured, one set of parameters for all rows. Red: the target.",
            bars(by_source, "mean absolute error", percent=True),
        )
    ]
    left_out = report.get("leave_one_gpu_out", {})
    if left_out:
        seen = {**report["by_gpu"], **_profiles(report)}
        pairs = [
            (f"{gpu} ({row['rows']})", seen[gpu]["mape"], row["mape"]) for gpu, row in left_out.items() if gpu in seen
        ]
        parts.append(
            (
                "Error by GPU, seen and left out",
                "Left out: every row of the GPU is dropped, all parameters are fitted again, its rows are predicted. "
                + "; ".join(f"{name} {left_out[name]['mape']:.1%}" for name in LEFT_OUT_SUMS if name in left_out)
                + ". Red: the target.",
                dumbbells(pairs, ("seen", "left out"), goal=targets.get("leave one GPU out")),
            )
        )
    for title, served in (("Throughput", True), ("Time of single layers and kernels", False)):
        points = [
            Point(p["measured"], p["predicted"], p["source"])
            for p in report.get("points", [])
            if (p["quantity"] not in KERNEL_TIMES) is served
        ]
        if points:
            unit = "requests/s" if served else "seconds"
            note = "Every measurement of the data pack that states its load. Lines: equal, and 20 % off either way."
            parts.append((f"{title}, predicted against measured", note, scatter(points, unit)))
    runs = report.get("whole_runs")
    if runs:
        pairs = [
            (run["run"].split(" ", 1)[-1][:34], run["measured_s"], run["predicted_s"])
            for run in runs["runs"]
            if "ratio" in run
        ]
        note = f"Durations of the ShuntServe authors' offline runs, simulated. Kendall's tau {runs['kendall_tau']:.2f}."
        parts.append(("Whole runs", note, dumbbells(pairs, ("measured", "predicted"), percent=False, unit="s")))
    return parts


def _profiles(report: dict[str, Any]) -> dict[str, Any]:
    """Errors of GPUs that only the layer profiles know."""
    prefix = "layer profiles / "
    return {n.removeprefix(prefix): row for n, row in report["by_source_and_gpu"].items() if n.startswith(prefix)}


# --- planner ---


def planner_parts(records: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    parts = []
    quality = [r for r in records if r.get("kind") == "quality" and r.get("throughput_rps")]
    for model, objective in dict.fromkeys((r["model"], r["objective"]) for r in quality):
        rows = [r for r in quality if (r["model"], r["objective"]) == (model, objective)]
        merits = [_merit(r, objective) for r in rows]
        best = max((m for r, m in zip(rows, merits, strict=True) if r["name"] != OURS), default=max(merits))
        drawn = [
            Bar(r["name"], merit / best, _quality_label(r, merit / best), strong=r["name"] == OURS)
            for r, merit in sorted(zip(rows, merits, strict=True), key=lambda pair: -pair[1])
        ]
        what = "tokens per dollar" if objective == "cost" else "requests/s"
        note = f"{what}, as a multiple of the best that is not ours; all valued by the same estimator."
        parts.append((f"Plan quality: {model}, {objective}", note, bars(drawn, "of the best baseline")))
    growth = [r for r in records if r.get("kind") == "growth" and r.get("solve_s")]
    if growth:
        points = [Point(r["nodes"], r["solve_s"], "planner", _growth_label(r)) for r in growth]
        note = "Seconds to a plan with a proven gap, by machines in the pools."
        parts.append(("Planning time by size", note, scatter(points, "seconds", x_unit="machines", diagonal=False)))
    return parts


def _growth_label(row: dict[str, Any]) -> str:
    gap = f"{row['gap']:.2%}" if row.get("gap") is not None else "unknown"
    return f"{row['pools']} pools, gap {gap}, {row['rss_mib']:.0f} MiB"


def _merit(row: dict[str, Any], objective: str) -> float:
    return 1 / float(row["usd_per_million_tokens"]) if objective == "cost" else float(row["throughput_rps"])


def _quality_label(row: dict[str, Any], ratio: float) -> str:
    parts = [f"{ratio:.2f}×", f"{row['throughput_rps']:.2f} req/s", f"${row['usd_per_million_tokens']:.2f}/Mtok"]
    if row.get("gap") is not None:
        parts.append(f"gap {row['gap']:.2%}")
    if row.get("solve_s") is not None:
        parts.append(f"{row['solve_s']:.1f} s")
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())

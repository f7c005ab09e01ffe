"""Planner against baselines, and how its time and memory grow with the cluster.

    python tests/bench/planner.py [--json] [--data DIR] [--quick] [--only quality|growth]

Quality: the ShuntServe authors' cluster at their prices; every plan and placement is valued by the same estimator.
`ratio_over_best_baseline` is a row's merit (requests/s, or requests per dollar) over that of the best row that is not
ours; `plan_over_this` is ours over the row's. `--data` adds the authors' published placements. A million tokens counts
prompts and outputs. Growth: each cluster is planned in a process of its own, whose peak memory is reported. Ends with
status 1 when a baseline beats the planner's bound, or the planner overstays its limit, which would be bugs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from planner_clusters import PAPER, growth, published

from shuntserve.catalog import load_catalog
from shuntserve.core.catalog import Catalog
from shuntserve.core.engine_profile import Precision
from shuntserve.core.planning.baselines import Placement, validate
from shuntserve.core.planning.baselines.alpaserve import alpaserve
from shuntserve.core.planning.baselines.beam import beam
from shuntserve.core.planning.baselines.hexgen import hexgen
from shuntserve.core.planning.baselines.homogeneous import homogeneous
from shuntserve.core.planning.baselines.placement import best_subset
from shuntserve.core.planning.estimator_times import EstimatorTimes, estimator_times
from shuntserve.core.planning.objectives import Objective
from shuntserve.core.planning.plan import PlanRequest, plan_fleet
from shuntserve.core.workload import Workload

PROMPT, OUTPUT = 763, 232
MODELS = ("Llama-3.1-70B", "Qwen3-32B")
OBJECTIVES = (Objective("throughput"), Objective("cost"))
OURS = "ShuntServe"
QUICK_GROWTH = ("3x9", "15x15", "15x60")
HEXGEN_SEEDS = (0, 1)
ROUNDING = 1e-6
PATIENCE, START_S = 2.0, 30.0
"""A planner that takes more than so many times its limit, and time to start, is stopped."""

Row = dict[str, Any]


def main() -> int:
    arguments = _arguments()
    catalog = load_catalog()
    if arguments.cluster:
        print(json.dumps(grown(catalog, arguments.cluster)))
        return 0
    rows = []
    for row in _rows(arguments, catalog):
        rows.append(row)
        print(json.dumps(row) if arguments.json else as_text(row, first=_is_first(rows)), flush=True)
    return 1 if any(row.get("above_bound") or "error" in row for row in rows) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--data", type=Path, help="directory of the data pack, for the authors' placements")
    parser.add_argument("--quick", action="store_true", help="small clusters and a short genetic search only")
    parser.add_argument("--only", choices=("quality", "growth"), help="one half of the benchmark")
    parser.add_argument("--cluster", help="plan this one cluster of the growth half in this process")
    return parser.parse_args()


def _rows(arguments: argparse.Namespace, catalog: Catalog) -> Iterator[Row]:
    if arguments.only != "growth":
        for model in MODELS:
            for objective in OBJECTIVES:
                yield from quality(catalog, model, objective, arguments.data, arguments.quick)
    if arguments.only != "quality":
        for name in QUICK_GROWTH if arguments.quick else growth(catalog):
            yield _in_own_process(catalog, name)


# --- quality ---


def quality(catalog: Catalog, model: str, objective: Objective, data: Path | None, quick: bool) -> list[Row]:
    """One row for our plan, one per baseline."""
    began = time.monotonic()
    times = _times(catalog, model, [pool.instance_type for pool in PAPER])
    prepare_s = time.monotonic() - began
    plan = plan_fleet(PlanRequest(times, PAPER, objective), time.monotonic)
    bound = plan.merit * (1 + plan.gap)
    ours = _row(model, objective, OURS, plan.throughput_rps, plan.usd_per_hour, plan.merit, plan.solve_s)
    rows = [{**ours, "gap": plan.gap, "prepare_s": prepare_s}]
    for solve in _baselines(times, objective, quick):
        began = time.monotonic()
        placement = solve()
        rows.append(_placed(model, objective, placement, times, time.monotonic() - began))
    for placement in published(data, model, times, PAPER) if data else []:
        kept = best_subset(placement, times, PAPER, objective)
        rows.append(_placed(model, objective, kept, times, None))
    best = max(row["merit"] for row in rows[1:])
    for row in rows:
        row["ratio_over_best_baseline"] = row["merit"] / best
        row["plan_over_this"] = plan.merit / row["merit"] if row["merit"] else None
        row["above_bound"] = row["merit"] > bound * (1 + ROUNDING)
    return rows


def _baselines(times: EstimatorTimes, objective: Objective, quick: bool) -> list[Callable[[], Placement]]:
    seeds = HEXGEN_SEEDS[:1] if quick else HEXGEN_SEEDS
    size = {"population": 24, "generations": 20} if quick else {"population": 48, "generations": 100}
    return [
        lambda: homogeneous(times, PAPER, objective),
        lambda: alpaserve(times, PAPER, objective),
        lambda: max(
            (hexgen(times, PAPER, Random(seed), objective=objective, **size) for seed in seeds),
            key=lambda placement: placement.merit(PAPER, objective),
        ),
        lambda: beam(times, PAPER, width=8, objective=objective),
    ]


def _times(catalog: Catalog, model: str, types: list[str]) -> EstimatorTimes:
    return estimator_times(
        catalog, catalog.model(model), Workload.fixed(PROMPT, OUTPUT), catalog.engine("vllm"), Precision(),
        list(dict.fromkeys(types)),
    )  # fmt: skip


def _placed(
    model: str, objective: Objective, placement: Placement, times: EstimatorTimes, solve_s: float | None
) -> Row:
    validate(placement, times, PAPER)
    usd = placement.usd_per_h(PAPER)
    return _row(model, objective, placement.name, placement.rps, usd, placement.merit(PAPER, objective), solve_s)


def _row(
    model: str, objective: Objective, name: str, rps: float, usd_per_h: float, merit: float, solve_s: float | None
) -> Row:
    return {
        "kind": "quality",
        "model": model,
        "objective": objective.name,
        "name": name,
        "throughput_rps": rps,
        "usd_per_hour": usd_per_h,
        "usd_per_million_tokens": usd_per_h / 3600 / (rps * (PROMPT + OUTPUT)) * 1e6 if rps else None,
        "merit": merit,
        "gap": None,
        "solve_s": solve_s,
    }


# --- growth ---


def grown(catalog: Catalog, name: str) -> Row:
    """Plan one cluster here and now."""
    cluster = growth(catalog)[name]
    began = time.monotonic()
    times = _times(catalog, MODELS[0], [pool.instance_type for pool in cluster.pools])
    request = PlanRequest(
        times, cluster.pools, OBJECTIVES[0], tolerance=cluster.tolerance, time_limit_s=cluster.time_limit_s
    )
    plan = plan_fleet(request, time.monotonic)
    return {
        "kind": "growth",
        "name": name,
        "types": len({pool.instance_type for pool in cluster.pools}),
        "pools": len(cluster.pools),
        "nodes": cluster.nodes,
        "gpus": sum(pool.count * catalog.instance(pool.instance_type).usable_gpus for pool in cluster.pools),
        "model": MODELS[0],
        "tolerance": cluster.tolerance,
        "solve_s": plan.solve_s,
        "whole_s": time.monotonic() - began,
        "cpu_s": time.process_time(),
        "gap": plan.gap,
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "throughput_rps": plan.throughput_rps,
        "pipelines": len(plan.pipelines),
    }


def _in_own_process(catalog: Catalog, name: str) -> Row:
    """The row of a cluster, or one with an `error` when the planner overstays its time limit by far."""
    cluster = growth(catalog)[name]
    command = [sys.executable, __file__, "--cluster", name]
    patience_s = PATIENCE * cluster.time_limit_s + START_S
    try:
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=patience_s)
    except subprocess.TimeoutExpired:
        late = f"not done in {patience_s:.0f} s, its limit is {cluster.time_limit_s:.0f} s"
        return {"kind": "growth", "name": name, "pools": len(cluster.pools), "nodes": cluster.nodes, "error": late}
    row: Row = json.loads(answer.stdout)
    return row


# --- text ---


def _is_first(rows: list[Row]) -> bool:
    key = ("kind", "model", "objective")
    return len(rows) == 1 or [rows[-1].get(k) for k in key] != [rows[-2].get(k) for k in key]


def as_text(row: Row, first: bool) -> str:
    """One line of a table, after its heading where a new table begins."""
    if row["kind"] == "growth":
        head = f"\ngrowth, {MODELS[0]}\n{'types':>6}{'pools':>6}{'nodes':>6}{'GPUs':>7}{'req/s':>11}{'gap':>9}"
        head += f"{'solve s':>9}{'MiB':>7}\n"
        if "error" in row:
            return (head if first else "") + f"{row['name']:>12}  {row['error']}"
        line = f"{row['types']:>6}{row['pools']:>6}{row['nodes']:>6}{row['gpus']:>7}{row['throughput_rps']:>11.3f}"
        line += f"{row['gap']:>9.3%}{row['solve_s']:>9.2f}{row['rss_mib']:>7.0f}"
        return (head if first else "") + line
    head = f"\n{row['model']}, {row['objective']}\n{'':28}{'req/s':>9}{'$/h':>9}{'$/Mtok':>9}{'gap':>9}{'solve s':>9}"
    head += f"{'of best':>9}{'ours is':>9}\n"
    line = f"{row['name']:28}{row['throughput_rps']:>9.3f}{row['usd_per_hour']:>9.3f}"
    line += _cell(row["usd_per_million_tokens"], "9.4f") + _cell(row["gap"], "9.3%") + _cell(row["solve_s"], "9.2f")
    line += _cell(row["ratio_over_best_baseline"], "9.3f") + _cell(row["plan_over_this"], "8.3f") + "x"
    return (head if first else "") + line + ("  ABOVE THE BOUND" if row["above_bound"] else "")


def _cell(value: float | None, form: str) -> str:
    return f"{'–':>{form.split('.')[0]}}" if value is None else f"{value:{form}}"


if __name__ == "__main__":
    sys.exit(main())

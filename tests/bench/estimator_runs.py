"""Whole offline runs of the ShuntServe authors: their placements, their requests, weighted round robin, durations.

The placements state the share of GPU memory and how many sequences each pipeline was planned for (`max_batch`); the
weights are taken to be the predicted rates. The client kept a limited number of requests in flight: completed requests
times their mean latency over the duration is 0.8 to 1.0 times the sum of `max_batch` in every run (the published
latencies are doubled, see the pack's notes), so that sum is taken as the limit. The engine is `vllm-0.8`: the memory,
admission and scheduling rules of that release, the times of the sweeps, and one factor on the host times,
`version_factor`, which `fit_version_factor` chooses.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from estimator_data import rows

from shuntserve.catalog import Tables, catalog_from
from shuntserve.core.catalog import Catalog
from shuntserve.core.finite_job import PipelineSpec, job_estimate
from shuntserve.core.stage_text import StageText, build_pipeline
from shuntserve.errors import ShuntServeError

ENGINE = "vllm-0.8"
# Their cluster had 12xlarge machines only; the placements write one or two of their GPUs as xlarge or "half".
CLUSTER = {"g5.xlarge": "g5.12xlarge", "g6.xlarge": "g6.12xlarge"}
LATENCIES_ARE_TIMES = 2  # end-to-end latencies of these runs are published doubled
_STAGE = re.compile(r"(?P<type>[\w.]+?)(?:\(half\))? L=(?P<layers>\d+) TP=(?P<tp>\d+)")


def placement(text: str, catalog: Catalog, layers: int) -> PipelineSpec:
    """`g6.12xlarge L=14 TP=4 | g6e.xlarge L=13 TP=1 | …` as a pipeline on the machines that carried it."""
    stages = []
    for part in text.split("|"):
        match = _STAGE.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"stage {part!r} is not understood")
        place = CLUSTER.get(match["type"], match["type"])
        stages.append(StageText(place, False, int(match["tp"]), int(match["layers"])))
    return build_pipeline(catalog, stages, layers)


def fit_version_factor(data: Path, tables: Tables) -> float:
    """The factor on the engine's host times under which the worst of the runs is predicted best."""

    def error(factor: float) -> float:
        report = whole_runs(data, catalog_from(tables.with_values({("engines", ENGINE, "version_factor"): factor})))
        runs = report["runs"] if report else []
        return max(abs(math.log(run["ratio"])) for run in runs if "ratio" in run)

    return min((0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0), key=error)


def whole_runs(data: Path, catalog: Catalog) -> dict[str, Any] | None:
    """Predicted and measured duration of every offline run whose placement is known; None when the pack has none."""
    measured = [row for row in rows(data / "paper" / "measured_offline.csv") if row["mode"] == "offline"]
    placed = rows(data / "paper" / "measured_pipelines.csv")
    trace = [
        (int(row["ContextTokens"]), max(1, int(row["GeneratedTokens"])))
        for row in rows(data / "traces" / "azure_conv_2023_in2048.csv")
    ]
    runs = []
    for row in measured:
        group = _placement_rows(row, placed)
        if group and trace:
            runs.append(_run(row, group, trace, catalog))
    if not runs:
        return None
    order = [(run["predicted_s"], run["measured_s"]) for run in runs if "ratio" in run]
    pairs = [(a, b) for i, a in enumerate(order) for b in order[i + 1 :]]
    agree = sum(1 if (a[0] - b[0]) * (a[1] - b[1]) > 0 else -1 for a, b in pairs)
    return {"engine": ENGINE, "runs": runs, "kendall_tau": agree / len(pairs) if pairs else 1.0}


def _placement_rows(row: dict[str, str], placed: list[dict[str, str]]) -> list[dict[str, str]]:
    """The placement of a run: same system and model, as many pipelines, predicted total nearest to the run's."""
    groups: dict[str, list[dict[str, str]]] = {}
    for candidate in placed:
        if (candidate["system"], candidate["model"]) == (row["system"], row["model"]):
            groups.setdefault(candidate["config_version"], []).append(candidate)
    fitting = [group for group in groups.values() if len(group) == int(row["num_pipelines"] or 0)]
    total = float(row["predicted_total_rps"] or "nan")
    return min(fitting, key=lambda g: abs(sum(float(p["predicted_rps"]) for p in g) - total), default=[])


def _run(
    row: dict[str, str], group: list[dict[str, str]], trace: list[tuple[int, int]], catalog: Catalog
) -> dict[str, Any]:
    model = catalog.model(row["model"])
    name = f"{row['model']} {row['system']} {row['variant']}".strip()
    engine = replace(catalog.engine(ENGINE), memory_utilization=float(group[0]["gpu_mem_util"]))
    requests = trace[: int(row["completed"])]
    measured_s = float(row["duration_s"])
    try:
        pipelines = [placement(pipe["stages"], catalog, model.num_layers) for pipe in group]
        weights = [float(pipe["predicted_rps"]) for pipe in group]
        limit = sum(int(pipe["max_batch"]) for pipe in group)
        job = job_estimate(model, pipelines, requests, engine, dispatch="wrr", weights=weights, in_flight=limit)
    except ShuntServeError as error:
        return {"run": name, "measured_s": measured_s, "predicted_s": float("inf"), "error": str(error)}
    return {
        "run": name,
        "requests": len(requests),
        "requests_match_the_trace": sum(i for i, _ in requests) == int(row["total_input_tok"]),
        "predicted_s": job.makespan_s,
        "measured_s": measured_s,
        "ratio": job.makespan_s / measured_s,
        "in_flight_limit": limit,
        "in_flight_measured": float(row["e2el_mean_ms"]) / LATENCIES_ARE_TIMES / 1e3 * len(requests) / measured_s,
        "pipelines": [
            {"pipeline": p["pipeline"], "requests": r.requests, "finish_s": r.finish_s, "preemptions": r.preemptions}
            for p, r in zip(group, job.pipelines, strict=True)
        ],
    }

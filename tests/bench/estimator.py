"""Estimator against published measurements: error by source, GPU, model and engine, GPUs left out, whole runs.

    python tests/bench/estimator.py --data DIR [--json] [--fit] [--write]

`--fit` fits the parameters anew from their priors, in memory; `--write` puts the result into datasets/. Leaving a GPU
out means: all its rows are dropped, all parameters are fitted again (those that only it spoke about stay at their
priors), and its rows are predicted. Cards that carry the same chip are also left out together.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from estimator_data import KERNELS, LAYERS, MAX_LOAD, OTHER, STATIC, SWEEP, TGI, Pack, read_pack
from estimator_runs import ENGINE, fit_version_factor, whole_runs

from shuntserve.calibrate import fit_tables, log_error
from shuntserve.catalog import Tables, catalog_from, load_parameters, load_tables, tables_dir
from shuntserve.core.catalog import Catalog
from shuntserve.core.finite_job import job_estimate
from shuntserve.core.measurement import Measurement, even_layers
from shuntserve.core.parameters import Parameter, cell_values
from shuntserve.core.stage_text import build_pipeline

# What each source counts in the fit. Two vLLM sweeps and the tables matter most; no source counts by its row number.
WEIGHTS = {
    SWEEP["vllm"]: 2.0,
    SWEEP["trtllm"]: 1.0,
    OTHER: 0.5,
    MAX_LOAD: 3.0,
    STATIC: 0.7,
    LAYERS: 1.5,
    KERNELS: 0.7,
    TGI: 0.3,
}
TARGETS = {SWEEP["vllm"]: 0.07, SWEEP["trtllm"]: 0.06, "tables, grade A": 0.18, LAYERS: 0.12, "leave one GPU out": 0.20}
SAME_CHIP = {"A100": ("A100",), "H100": ("H100", "H200")}  # cards of one chip, by the beginnings of their names
VERSION_FACTOR = ("engines", ENGINE, "version_factor")
THIN = 4  # the layer profiles are smooth and many: every fourth row says as much to a fit
# Requests queued for each (prompt, output) length in the TensorRT-LLM tables: their documentation, section on method.
PUBLISHED_REQUESTS = {
    (128, 128): 30000, (128, 2048): 3000, (128, 4096): 1500, (500, 2000): 3000, (1000, 1000): 3000, (1000, 2000): 1500,
    (2048, 128): 3000, (2048, 2048): 1500, (5000, 500): 1500, (20000, 2000): 1000,
}  # fmt: skip
COMMAND = "fitted: python tests/bench/estimator.py --data DIR --fit --write"


def main() -> int:
    arguments = _arguments()
    tables, parameters = load_tables(), load_parameters()
    catalog = catalog_from(tables)
    pack = read_pack(arguments.data, catalog)
    if not pack.measurements:
        print(f"no measurements in {arguments.data}", file=sys.stderr)
        return 2
    if arguments.fit:
        tables = tables.with_values(cell_values(parameters, fit_to(tables, parameters, pack.measurements)))
        factor = fit_version_factor(arguments.data, tables)
        tables = tables.with_values({VERSION_FACTOR: factor})
        catalog = catalog_from(tables)
    if arguments.write:
        write_tables(tables, parameters)
    report = build_report(arguments.data, tables, parameters, catalog, pack, arguments.leave_out)
    print(json.dumps(report, indent=1) if arguments.json else as_text(report))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory of the data pack")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--fit", action="store_true", help="fit the parameters anew")
    parser.add_argument("--write", action="store_true", help="write the parameters into datasets/")
    parser.add_argument("--no-leave-out", dest="leave_out", action="store_false", help="skip leaving GPUs out")
    return parser.parse_args()


def fit_to(
    tables: Tables,
    parameters: Sequence[Parameter],
    measurements: Sequence[Measurement],
    start: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Parameters fitted to `measurements`."""
    used = [m for i, m in enumerate(measurements) if m.source != LAYERS or i % THIN == 0]
    return fit_tables(tables, parameters, used, WEIGHTS, start).values


def build_report(
    data: Path,
    tables: Tables,
    parameters: Sequence[Parameter],
    catalog: Catalog,
    pack: Pack,
    leave_out: bool,
) -> dict[str, object]:
    began = time.perf_counter()
    ratios = [math.exp(log_error(catalog, m)) for m in pack.measurements]
    each_s = (time.perf_counter() - began) / len(ratios)
    scored = list(zip(pack.measurements, ratios, strict=True))
    by_source = _by(scored, lambda m: m.source)
    tables_rows = [x for x in scored if x[0].source in (MAX_LOAD, STATIC)]
    report: dict[str, object] = {
        "rows": len(scored),
        "skipped": list(pack.skipped),
        "seconds_per_prediction": each_s,
        "by_source": {**by_source, "tables, grade A": _score(tables_rows)} if tables_rows else by_source,
        "by_source_and_gpu": _by(scored, lambda m: f"{m.source} / {m.gpu}"),
        "by_gpu": _by([x for x in scored if x[0].source != LAYERS], lambda m: m.gpu),
        "by_model": _by([x for x in scored if x[0].source != LAYERS], lambda m: m.model),
        "by_engine": _by(scored, lambda m: m.engine),
        "points": [
            {"source": m.source, "gpu": m.gpu, "quantity": m.quantity, "measured": m.value, "predicted": m.value * r}
            for m, r in scored
        ],
        "misses_above_40_percent": [
            {"row": m.label, "predicted_over_measured": round(r, 3), "why": explain(catalog, m)}
            for m, r in scored
            if abs(r - 1) > 0.4
        ],
        "parameters": {
            p.name: {"value": tables.value(p.cells[0]), "prior": p.prior, "meaning": p.meaning} for p in parameters
        },
        "targets": TARGETS,
    }
    if leave_out:
        report["leave_one_gpu_out"] = leave_gpus_out(tables, parameters, pack.measurements)
    runs = whole_runs(data, catalog)
    if runs:
        report["whole_runs"] = runs
    return report


def leave_gpus_out(
    tables: Tables, parameters: Sequence[Parameter], measurements: Sequence[Measurement]
) -> dict[str, dict[str, float]]:
    """Errors on each GPU's rows when none of them was seen, and over all."""
    result: dict[str, dict[str, float]] = {}
    everything: list[tuple[Measurement, float]] = []

    def leave_out(name: str, gpus: set[str]) -> list[tuple[Measurement, float]]:
        kept = [m for m in measurements if m.gpu not in gpus]
        left = [m for m in measurements if m.gpu in gpus]
        values = fit_to(tables, parameters, kept, {p.name: tables.value(p.cells[0]) for p in parameters})
        catalog = catalog_from(tables.with_values(cell_values(parameters, values)))
        scored = [(m, math.exp(log_error(catalog, m))) for m in left]
        by_source = {f"mape {s}": v["mape"] for s, v in _by(scored, lambda m: m.source).items()}
        result[name] = {**_score(scored), **by_source}
        return scored

    for gpu in sorted({m.gpu for m in measurements}):
        everything += leave_out(gpu, {gpu})
    by_gpu = [row["mape"] for row in result.values()]
    for chip, cards in SAME_CHIP.items():
        leave_out(f"chip {chip}, all cards", {m.gpu for m in measurements if m.gpu.startswith(cards)})
    result["all rows"] = _score(everything)
    result["all rows but layer profiles"] = _score([x for x in everything if x[0].source != LAYERS])
    result["mean over GPUs"] = {"rows": len(everything), "mape": sum(by_gpu) / len(by_gpu)}
    return result


def explain(catalog: Catalog, measurement: Measurement) -> str:
    """Why a large miss is large, as far as the estimate itself and the published method show."""
    if measurement.source == LAYERS:
        return "the profile is rounded to whole or tenths of milliseconds, or jumps from one kernel to another there"
    if measurement.source == TGI:
        return "closed loop at low load through an HTTP endpoint; how many requests ran at a time is not stated"
    if measurement.source == KERNELS:
        return "one kernel shape at the ridge, where the root of squares is slower than the kernel measured"
    stage = measurement.stages[0]
    model = catalog.model(measurement.model)
    gpu = catalog.gpu(stage.place) if stage.is_gpu else catalog.instance(stage.place).gpu
    share = model.params * measurement.precision.weight_bytes / len(measurement.stages) / stage.tp / gpu.memory_bytes
    if share > 0.75:
        return f"weights fill {share:.0%} of each GPU: a gigabyte of workspace more or less changes the seats by half"
    if model.layers[-1].is_moe and "1.0" in measurement.label:
        return (
            "a mixture of experts over 8 GPUs on PCIe: attention data and expert parallelism, which that engine has, "
            "would save most of the all-reduces modelled here"
        )
    if len(measurement.stages) >= 4:
        return "host time of that engine's deep pipelines: nothing else in the pack shows it, so it is not fitted"
    lengths = measurement.workload and (measurement.workload.input_tokens[0], measurement.workload.output_tokens[0])
    queued = PUBLISHED_REQUESTS.get(lengths or (0, 0))
    if queued:
        again = _simulated(catalog, measurement, queued)
        return f"only {queued:,} requests were queued, so that ramp and drain weigh; {again}"
    return "not explained"


def _simulated(catalog: Catalog, measurement: Measurement, requests: int) -> str:
    """The same row as a finite job of as many requests as the published method queued."""
    model = catalog.model(measurement.model)
    pipeline = build_pipeline(catalog, even_layers(measurement.stages, model.num_layers), model.num_layers)
    assert measurement.workload is not None
    job = job_estimate(
        model,
        [pipeline],
        measurement.workload.requests(requests),
        catalog.engine(measurement.engine),
        measurement.precision,
    )
    return f"simulated with so many, predicted / measured is {job.job_rps / measurement.value:.2f}"


def _by(scored: Sequence[tuple[Measurement, float]], key: Callable[[Measurement], str]) -> dict[str, dict[str, float]]:
    groups: dict[str, list[tuple[Measurement, float]]] = defaultdict(list)
    for measurement, ratio in scored:
        groups[key(measurement)].append((measurement, ratio))
    return {name: _score(group) for name, group in sorted(groups.items())}


def _score(scored: Sequence[tuple[Measurement, float]]) -> dict[str, float]:
    """MAPE and bias of predicted against measured, the worst row, and Kendall's tau of the order."""
    ratios = [ratio for _, ratio in scored]
    errors = [abs(r - 1) for r in ratios]
    return {
        "rows": len(ratios),
        "mape": sum(errors) / len(errors),
        "bias": sum(ratios) / len(ratios) - 1,
        "worst": max(errors),
        "kendall_tau": kendall_tau([(m.value * r, m.value) for m, r in scored]),
    }


def kendall_tau(pairs: Sequence[tuple[float, float]]) -> float:
    """Kendall's tau-a of (predicted, measured); 1 when the order is right throughout. NaN-free: 1 for one pair."""
    pairs = pairs[:400]
    total = score = 0
    for i, (p, m) in enumerate(pairs):
        for q, n in pairs[i + 1 :]:
            total += 1
            score += (p > q) * (m > n) + (p < q) * (m < n) - (p > q) * (m < n) - (p < q) * (m > n)
    return score / total if total else 1.0


def write_tables(tables: Tables, parameters: Sequence[Parameter]) -> None:
    """Put the fitted cells into datasets/, with the command that made them as their source."""
    cells = {cell: tables.value(cell) for p in parameters for cell in p.cells}
    cells[VERSION_FACTOR] = tables.value(VERSION_FACTOR)
    for table in sorted({cell[0] for cell in cells}):
        path = tables_dir() / f"{table}.csv"
        with path.open(newline="", encoding="utf-8") as handle:
            header, *body = list(csv.reader(handle))
        for row in body:
            value = cells.get((table, row[0], row[1]))
            if value is not None:
                row[2:] = [f"{value:.4g}", COMMAND]
        with path.open("w", newline="", encoding="utf-8") as handle:
            csv.writer(handle, lineterminator="\n").writerows([header, *body])


def as_text(report: Mapping[str, object]) -> str:
    lines = [f"{report['rows']} rows, {report['seconds_per_prediction']:.2e} s per prediction", ""]
    for title in ("by_source", "by_source_and_gpu", "by_model", "leave_one_gpu_out"):
        groups = report.get(title)
        if not isinstance(groups, Mapping):
            continue
        lines.append(f"{title.replace('_', ' '):54}{'rows':>6}{'MAPE':>8}{'bias':>8}{'worst':>8}{'tau':>7}")
        for name, row in groups.items():
            cells = [f"{row[k]:>8.1%}" if k in row else " " * 8 for k in ("mape", "bias", "worst")]
            lines.append(f"  {name:52}{row['rows']:>6}{''.join(cells)}{row.get('kendall_tau', float('nan')):>7.2f}")
        lines.append("")
    misses = report["misses_above_40_percent"]
    assert isinstance(misses, list)
    lines += [f"miss {m['predicted_over_measured']:.2f}  {m['row']}: {m['why']}" for m in misses]
    lines += ["", *(f"{k:20} {v['value']:>10.4g}  {v['meaning']}" for k, v in report["parameters"].items())]  # type: ignore[attr-defined]
    runs = report.get("whole_runs")
    if isinstance(runs, Mapping):
        lines += ["", f"whole runs, Kendall tau {runs['kendall_tau']:.2f}, engine {runs['engine']}"]
        lines += [
            f"  {r['run']:44} predicted {r['predicted_s']:6.0f} s  measured {r['measured_s']:6.0f} s"
            f"  {r['predicted_s'] / r['measured_s'] - 1:+.1%}"
            for r in runs["runs"]
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

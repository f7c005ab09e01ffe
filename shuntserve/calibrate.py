"""Fits the catalogue's parameters to measurements: what the benchmark and `shuntserve calibrate` share."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from shuntserve.catalog import CALIBRATION_FILE, Tables, catalog_from
from shuntserve.core.calibration import Fit, fit
from shuntserve.core.catalog import Catalog
from shuntserve.core.engine_profile import Precision
from shuntserve.core.measurement import Measurement, predict
from shuntserve.core.parameters import Cell, Parameter, cell_values
from shuntserve.core.roofline import stage_rates
from shuntserve.core.stage import stage_cost
from shuntserve.core.stage_text import StageText
from shuntserve.core.workload import Workload
from shuntserve.errors import InvalidInput, NotFound

REQUIRED = ("model", "place", "prompt_tokens", "output_tokens")
RATES = ("requests_per_s", "output_tok_s")
OPTIONAL = ("tp", "pp", "batch", "engine", "weights", "kv", "source")
_DOES_NOT_FIT = -math.log(2)


def log_error(catalog: Catalog, measurement: Measurement) -> float:
    """ln(predicted / measured); a model that does not fit counts as half the measured rate."""
    try:
        return math.log(predict(catalog, measurement) / measurement.value)
    except NotFound:
        raise
    except InvalidInput:
        return _DOES_NOT_FIT


def fit_tables(
    tables: Tables,
    parameters: Sequence[Parameter],
    measurements: Sequence[Measurement],
    weights: Mapping[str, float] | None = None,
    start: Mapping[str, float] | None = None,
) -> Fit:
    """Values of `parameters` under which the estimator is nearest to `measurements` and not far from their priors."""

    def residuals(values: Mapping[str, float], where: Sequence[int]) -> list[float]:
        catalog = catalog_from(tables.with_values(cell_values(parameters, values)))
        stage_cost.cache_clear()
        stage_rates.cache_clear()
        return [log_error(catalog, measurements[i]) for i in where]

    return fit(parameters, residuals, [m.source for m in measurements], weights, start=start)


def centred(tables: Tables, parameters: Sequence[Parameter]) -> list[Parameter]:
    """The same parameters with the tables' present values as priors: own measurements move what they speak about."""
    return [
        Parameter(p.name, min(max(tables.value(p.cells[0]), p.low), p.high), p.low, p.high, p.cells, p.meaning)
        for p in parameters
    ]


def read_measurements(path: Path) -> list[Measurement]:
    """A user's own measurements from CSV. Raises `InvalidInput` or `NotFound` naming the row and the column.

    Columns: model, place (instance type or GPU), prompt_tokens, output_tokens, one of requests_per_s and
    output_tok_s; optional tp, pp, batch (empty: requests always waiting), engine, weights, kv, source.
    """
    if not path.is_file():
        raise NotFound(f"measurements {path}", "there is no such file", "name a CSV")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"measurements {path}", "it is no text", "give a CSV in UTF-8") from error
    with io.StringIO(text, newline="") as handle:
        reader = csv.DictReader(handle)
        names = reader.fieldnames or []
        missing = [name for name in REQUIRED if name not in names]
        unknown = [name for name in names if name not in (*REQUIRED, *RATES, *OPTIONAL)]
        if missing or unknown or not any(name in names for name in RATES):
            cause = f"missing {missing or list(RATES)}" if not unknown else f"unknown column {unknown[0]!r}"
            columns = f"{', '.join(REQUIRED)}, one of {' and '.join(RATES)}, and optionally {', '.join(OPTIONAL)}"
            raise InvalidInput(f"measurements {path}", cause, f"columns are {columns}")
        found = [_measurement(path, number, row) for number, row in enumerate(reader, start=2)]
    if not found:
        raise InvalidInput(f"measurements {path}", "it has no rows", "give at least one measurement")
    return found


def _measurement(path: Path, line: int, row: Mapping[str, str]) -> Measurement:
    def number(name: str, default: float | None = None) -> float:
        text = (row.get(name) or "").strip()
        if not text and default is not None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            raise InvalidInput(f"measurements {path}, line {line}", f"{name} is {text!r}", "give a positive number")
        return value

    workload = Workload.fixed(number("prompt_tokens"), number("output_tokens"))
    rate = number("requests_per_s") if row.get("requests_per_s") else number("output_tok_s") / workload.mean_output
    place = row["place"].strip()
    stage = StageText(place, "." not in place, int(number("tp", 1)), None)
    weights = row.get("weights") or "bf16"
    return Measurement(
        source=row.get("engine") or "vllm",
        gpu=place,
        engine=row.get("engine") or "vllm",
        model=row["model"].strip(),
        stages=(stage,) * int(number("pp", 1)),
        precision=Precision(weights, row.get("kv") or "bf16"),
        value=rate,
        workload=workload,
        batch=int(number("batch")) if row.get("batch") else None,
        label=f"line {line}",
    )


def usable(catalog: Catalog, measurements: Sequence[Measurement]) -> tuple[list[Measurement], list[str]]:
    """Those the estimator has an answer to, and why not the others. Raises `NotFound` for a name nobody knows."""
    kept: list[Measurement] = []
    reasons: list[str] = []
    for measurement in measurements:
        try:
            predict(catalog, measurement)
        except NotFound:
            raise
        except InvalidInput as error:
            reasons.append(f"{measurement.label}: {error}")
        else:
            kept.append(measurement)
    return kept, reasons


def write_calibration(directory: Path, values: Mapping[Cell, float]) -> Path:
    """Keep fitted numbers where `load_catalog` finds them; replaces an earlier calibration as a whole."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / CALIBRATION_FILE
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["table", "row", "quantity", "value"])
        writer.writerows([*cell, f"{value:.6g}"] for cell, value in values.items())
    partial.replace(path)
    return path

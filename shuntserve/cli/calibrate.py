"""`shuntserve calibrate`: fits the estimator to the user's own measurements."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(calibrate)


def calibrate(
    measurements: Annotated[Path, typer.Argument(help="CSV: model, place, tp, pp, prompt_tokens, output_tokens, …")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report, but keep nothing.")] = False,
    reset: Annotated[
        bool, typer.Option("--reset", help="Start from the shipped numbers, not from an earlier fit.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Fit the estimator's parameters to your own measurements.

    Only the few physical parameters of the catalogue move (host times, link bandwidths, achieved rates), each only as
    far as the measurements say something about it. `estimate` and `plan` use the result from then on.
    """
    from shuntserve.calibrate import centred, fit_tables, log_error, read_measurements, usable, write_calibration
    from shuntserve.catalog import catalog_from, load_parameters, load_tables, user_directory, with_user_tables
    from shuntserve.core.parameters import cell_values
    from shuntserve.errors import InvalidInput

    tables = load_tables() if reset else with_user_tables(load_tables(), user_directory())
    rows, unusable = usable(catalog_from(tables), read_measurements(measurements))
    if not rows:
        raise InvalidInput(f"measurements {measurements}", f"none can be used; {unusable[0]}", "correct the rows")
    parameters = centred(tables, load_parameters())
    before = [log_error(catalog_from(tables), row) for row in rows]
    fitted = fit_tables(tables, parameters, rows)
    changed = {
        p.name: (p.prior, fitted.values[p.name], p.meaning)
        for p in parameters
        if abs(math.log(fitted.values[p.name] / p.prior)) > 1e-3
    }
    kept = {p.name: fitted.values[p.name] for p in parameters if p.name in changed}
    cells = cell_values(parameters, kept)
    after_catalog = catalog_from(tables.with_values(cells))
    after = [log_error(after_catalog, row) for row in rows]
    path = None if dry_run else write_calibration(user_directory(), cells)
    report = {
        "rows": len(rows),
        "unused": unusable,
        "mean_error_before": sum(map(abs, before)) / len(rows),
        "mean_error_after": sum(map(abs, after)) / len(rows),
        "parameters": {name: {"from": a, "to": b, "meaning": text} for name, (a, b, text) in changed.items()},
        "kept_in": str(path) if path else None,
    }
    for reason in unusable:
        print(f"not used: {reason}", file=sys.stderr)
    if as_json:
        print(json.dumps(report, indent=1))
        return
    print(f"{len(rows)} measurements: mean error {report['mean_error_before']:.1%} → {report['mean_error_after']:.1%}")
    for name, (old, new, text) in changed.items():
        print(f"  {name:20} {old:10.4g} → {new:10.4g}  {text}")
    print(f"kept in {path}" if path else "nothing kept (--dry-run)")

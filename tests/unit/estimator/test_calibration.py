"""The fit finds what it should, keeps to its bounds, and leaves alone what nothing measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from shuntserve.calibrate import fit_tables, read_measurements, write_calibration
from shuntserve.catalog import catalog_from, load_catalog, load_parameters, load_tables, tables_dir
from shuntserve.core.calibration import fit
from shuntserve.core.measurement import predict
from shuntserve.core.parameters import Parameter, cell_values
from shuntserve.errors import InvalidInput, NotFound


def parameter(name: str, prior: float, low: float = 1e-3, high: float = 1e3) -> Parameter:
    return Parameter(name, prior, low, high, (("engines", "vllm", name),), "")


def test_planted_values_are_recovered() -> None:
    """Times a + b·m measured without error give a and b back, from priors three times off."""
    sizes = [1, 4, 16, 64, 256]

    def residuals(values: Mapping[str, float], where: Sequence[int]) -> list[float]:
        return [math.log((values["a"] + values["b"] * sizes[i]) / (5.0 + 0.2 * sizes[i])) for i in where]

    found = fit([parameter("a", 15.0), parameter("b", 0.07)], residuals, ["x"] * len(sizes))

    assert found.values["a"] == pytest.approx(5.0, rel=0.02)
    assert found.values["b"] == pytest.approx(0.2, rel=0.02)
    assert found.error["x"] < 0.01


def test_what_nothing_measured_stays_at_its_prior() -> None:
    """A parameter without evidence is where physics put it, wherever the search began."""
    found = fit(
        [parameter("a", 2.0), parameter("idle", 7.0)],
        lambda values, where: [math.log(values["a"] / 3.0) for _ in where],
        ["x"],
        start={"idle": 70.0},
    )

    assert found.values["a"] == pytest.approx(3.0, rel=0.02)
    assert found.values["idle"] == pytest.approx(7.0)


def test_values_keep_to_their_bounds() -> None:
    """Evidence beyond what physics allows moves a parameter to the bound and no further."""
    found = fit(
        [parameter("a", 1.0, high=1.5)], lambda values, where: [math.log(values["a"] / 10.0) for _ in where], ["x"]
    )

    assert found.values["a"] == pytest.approx(1.5)


def test_a_source_counts_once_however_many_rows_it_has() -> None:
    """Three rows of one source against thirty of another that disagree: the weights decide, not the numbers."""

    def residuals(values: Mapping[str, float], where: Sequence[int]) -> list[float]:
        return [math.log(values["a"] / (1.0 if i < 3 else 4.0)) for i in where]

    sources = ["few"] * 3 + ["many"] * 30

    assert fit([parameter("a", 2.0)], residuals, sources, {"few": 3.0}).values["a"] == pytest.approx(1.0, rel=0.05)
    assert fit([parameter("a", 2.0)], residuals, sources, {"many": 3.0}).values["a"] == pytest.approx(4.0, rel=0.05)


def test_a_calibration_on_ones_own_measurements_halves_their_error(tmp_path: Path) -> None:
    """An engine whose host is three times slower than shipped: measured rows pull the estimate there, and it stays."""
    tables = load_tables()
    slow = catalog_from(
        tables.with_values({("engines", "vllm", "seq_us"): 3 * tables.value(("engines", "vllm", "seq_us"))})
    )
    lines = ["model,place,prompt_tokens,output_tokens,batch,requests_per_s"]
    csv = tmp_path / "mine.csv"
    for batch in (1, 8, 32, 64):
        csv.write_text("\n".join([lines[0], f"Qwen3-8B,g6e.xlarge,500,200,{batch},1"]))
        lines.append(f"Qwen3-8B,g6e.xlarge,500,200,{batch},{predict(slow, read_measurements(csv)[0]):.6f}")
    csv.write_text("\n".join(lines))
    rows = read_measurements(csv)
    parameters = [p for p in load_parameters() if p.name.startswith("vllm_")]

    fitted = fit_tables(tables, parameters, rows)
    write_calibration(tmp_path / "catalog", cell_values(parameters, fitted.values))

    def worst(catalog_directory: Path | None) -> float:
        return max(abs(math.log(predict(load_catalog(catalog_directory), row) / row.value)) for row in rows)

    assert worst(None) > 0.15
    assert worst(tmp_path / "catalog") < 0.5 * worst(None)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("model,place\nx,y\n", "missing"),
        ("model,place,prompt_tokens,output_tokens,requests_per_s,colour\n", "colour"),
        ("model,place,prompt_tokens,output_tokens,requests_per_s\n", "no rows"),
        ("model,place,prompt_tokens,output_tokens,requests_per_s\nQwen3-8B,g6.xlarge,10,10,-1\n", "line 2"),
        ("model,place,prompt_tokens,output_tokens,requests_per_s\nQwen3-8B,g6.xlarge,ten,10,1\n", "prompt_tokens"),
    ],
)
def test_measurements_that_cannot_be_read_are_refused(tmp_path: Path, content: str, says: str) -> None:
    """Missing or unknown columns, no rows, numbers that are none."""
    path = tmp_path / "mine.csv"
    path.write_text(content)

    with pytest.raises(InvalidInput, match=says):
        read_measurements(path)


def test_an_unknown_place_is_not_counted_as_a_miss(tmp_path: Path) -> None:
    """A misspelt instance type stops the calibration instead of bending it."""
    path = tmp_path / "mine.csv"
    path.write_text("model,place,prompt_tokens,output_tokens,requests_per_s\nQwen3-8B,g6.xlrage,10,10,1\n")

    with pytest.raises(NotFound, match=r"g6\.xlrage"):
        fit_tables(load_tables(), load_parameters()[:1], read_measurements(path))


def test_the_shipped_measurements_are_a_calibration_file() -> None:
    """The published sweeps come in the very form a user would write."""
    assert len(read_measurements(tables_dir() / "measurements.csv")) == 46

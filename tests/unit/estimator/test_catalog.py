"""The catalogue: complete, sourced, and found by the names people use."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from shuntserve.catalog import (
    ZONE_PRICES_FILE,
    catalog_from,
    load_catalog,
    load_parameters,
    load_tables,
    tables_dir,
)
from shuntserve.core.catalog import Catalog
from shuntserve.core.stage_text import parse_stage
from shuntserve.errors import Corrupt, NotFound


def _rows(name: str) -> list[dict[str, str]]:
    with (tables_dir() / name).open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


@pytest.mark.parametrize("row", _rows("models.csv"), ids=lambda row: str(row["model"]))
def test_parameters_of_every_model_are_the_published_number(catalog: Catalog, row: dict[str, str]) -> None:
    """What the layer shapes add up to equals the published parameter count, where one was published."""
    model = catalog.model(row["model"])

    if row["params_published"]:
        assert model.params == pytest.approx(float(row["params_published"]), rel=1e-5)
    assert 0 < model.active_params <= model.params


def test_the_catalogue_has_28_models_and_every_kind_of_attention(catalog: Catalog) -> None:
    """Dense, mixture of experts, latent attention and sliding windows are all there."""
    shapes = [shape for model in catalog.models.values() for shape, _ in model.kinds()]

    assert len(catalog.models) >= 28
    assert any(shape.is_moe for shape in shapes)
    assert any(shape.is_mla for shape in shapes)
    assert any(shape.window for shape in shapes)


@pytest.mark.parametrize(
    "table", ["gpus.csv", "links.csv", "engines.csv", "instances.csv", "models.csv", "spot_risk.csv"]
)
def test_every_number_has_a_source(table: str) -> None:
    """No row of a table lacks the column that says where its numbers come from."""
    for row in _rows(table):
        sources = [value for key, value in row.items() if key.endswith("source")]
        assert sources
        assert sources[0].strip(), row


def test_prices_have_a_source_of_their_own() -> None:
    """A row with a price says where the price is from; one without does not pretend."""
    for row in _rows("instances.csv"):
        assert bool(row["ondemand_usd_per_h"]) == bool(row["ondemand_source"]), row["instance_type"]
        assert bool(row["spot_usd_per_h"]) == bool(row["spot_source"]), row["instance_type"]


@pytest.mark.parametrize(
    ("kind", "name", "found"),
    [
        ("gpu", "H100-SXM-80", "H100-SXM5-80"),
        ("gpu", "A100-SXM-80", "A100-SXM4-80"),
        ("gpu", "A100-40", "A100-SXM4-40"),
        ("gpu", "H200-141", "H200-SXM-141"),
        ("gpu", "RTX-PRO-6000-SE", "RTX-PRO-6000"),
        ("gpu", "l4", "L4"),
        ("instance", "g6.12xlarge", "g6.12xlarge"),
        ("instance", "ml.g5.48xlarge", "g5.48xlarge"),
        ("model", "meta-llama/Llama-3.1-70B", "Llama-3.1-70B"),
        ("model", "llama-3.1-70b-instruct", "Llama-3.1-70B"),
        ("model", "Mixtral-8x7B", "Mixtral-8x7B-v0.1"),
        ("model", "Mistral-7B", "Mistral-7B-v0.3"),
        ("model", "deepseek-ai/DeepSeek-R1", "DeepSeek-V3"),
        ("model", "Llama-2-70b-hf", "Llama-2-70B"),
        ("model", "Qwen3-32B", "Qwen3-32B"),
    ],
)
def test_names_as_published_are_found(catalog: Catalog, kind: str, name: str, found: str) -> None:
    """Names of the data pack, of Hugging Face and of SageMaker all lead to the same entry."""
    assert getattr(catalog, kind)(name).name == found


def _published() -> list[tuple[str, str]]:
    with (Path(__file__).parent / "published_names.csv").open(newline="", encoding="utf-8") as handle:
        return [(row["kind"], row["name"]) for row in csv.DictReader(handle)]


def test_every_name_of_the_published_measurements_is_found(catalog: Catalog) -> None:
    """GPUs, instance types and models as vendors' tables, SageMaker, Helix and the ShuntServe authors write them."""
    names = _published()

    assert len(names) > 160
    for kind, name in names:
        if kind == "gpu":
            catalog.gpu(parse_stage(f"gpu={name}").place)
        else:
            getattr(catalog, kind)(name)


@pytest.mark.parametrize(
    ("kind", "name", "near"),
    [("model", "Lama-3.1-70B", "Llama-3.1-70B"), ("instance", "g6.12xlrge", "g6.12xlarge"), ("gpu", "H10", "H100")],
)
def test_an_unknown_name_is_refused_with_near_misses(catalog: Catalog, kind: str, name: str, near: str) -> None:
    """The error names what was asked for and the nearest entries."""
    with pytest.raises(NotFound) as caught:
        getattr(catalog, kind)(name)

    assert name in str(caught.value)
    assert near in caught.value.next_step


def test_no_bf16_on_t4_and_v100(catalog: Catalog) -> None:
    """The pinned vLLM runs no bf16 before compute capability 8.0."""
    for name in ("T4", "V100-SXM2-16", "V100-SXM2-32"):
        gpu = catalog.gpu(name)
        assert "bf16" not in gpu.weight_dtypes | gpu.kv_dtypes
        assert "fp16" in gpu.weight_dtypes
    assert "bf16" in catalog.gpu("A10G").weight_dtypes


def test_every_ec2_family_from_t4_to_b200_is_priced(catalog: Catalog) -> None:
    """Each GPU that EC2 offers has an instance type with an on-demand price."""
    priced = {i.gpu.name for i in catalog.instances.values() if i.ondemand_usd_per_h}

    assert {
        "T4", "V100-SXM2-16", "A10G", "L4", "L40S", "A100-SXM4-40", "A100-SXM4-80", "H100-SXM5-80", "H200-SXM-141",
        "B200-SXM", "RTX-PRO-6000",
    } <= priced  # fmt: skip


def test_fitted_cells_lie_within_their_bounds() -> None:
    """Every fitted number in the tables is inside what physics allows, and the same in all its cells."""
    tables = load_tables()

    for parameter in load_parameters():
        values = {tables.value(cell) for cell in parameter.cells}
        assert len(values) == 1, parameter.name
        assert parameter.low * 0.999 <= values.pop() <= parameter.high * 1.001, parameter.name


def test_a_users_tables_lie_on_top_of_the_shipped_ones(tmp_path: Path) -> None:
    """Refreshed types, zone prices and a calibration replace what is shipped and leave the rest alone."""
    (tmp_path / "instances.csv").write_text("instance_type,network_baseline_gbit_s\ng6.12xlarge,33\n")
    (tmp_path / ZONE_PRICES_FILE).write_text("instance_type,zone,usd_per_h\ng6.12xlarge,us-east-1a,1.25\n")
    (tmp_path / "calibration.csv").write_text("table,row,quantity,value\nengines,vllm,step_us,123\n")

    mine, shipped = load_catalog(tmp_path), load_catalog()

    assert mine.instance("g6.12xlarge").network_bytes_per_s == pytest.approx(33e9 / 8)
    assert mine.instance("g6.12xlarge").gpu == shipped.instance("g6.12xlarge").gpu
    assert mine.spot_usd_per_h("g6.12xlarge", "us-east-1a") == 1.25
    assert mine.spot_usd_per_h("g6.12xlarge", "us-east-1b") == shipped.instance("g6.12xlarge").spot_usd_per_h
    assert mine.engine("vllm").step_s == pytest.approx(123e-6)
    assert mine.instance("g5.12xlarge") == shipped.instance("g5.12xlarge")


def test_a_broken_table_is_corrupt() -> None:
    """A number that is none stops with the catalogue's name, not with a traceback of a parser."""
    tables = load_tables()
    broken = {**tables.gpus, "L4": {**tables.gpus["L4"], "memory_bytes": "much"}}

    with pytest.raises(Corrupt, match="catalogue"):
        catalog_from(type(tables)(broken, tables.links, tables.engines, tables.instances, tables.models))


def test_a_monthly_bucket_becomes_a_small_hourly_rate(catalog: Catalog) -> None:
    """Advisor buckets are shares of a month: even the worst is well under one loss in a hundred hours."""
    risky, calm = catalog.instance("g6.12xlarge"), catalog.instance("p4de.24xlarge")

    assert 0 < calm.losses_per_h < risky.losses_per_h < 0.01

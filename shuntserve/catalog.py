"""Loads the shipped tables into a `Catalog`: the one place where catalogue files are read."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path

from shuntserve.core.catalog import Catalog
from shuntserve.core.engine_profile import EngineProfile
from shuntserve.core.hardware import GBIT_PER_S, GIB, Gpu, Instance, Link
from shuntserve.core.model_shape import LayerShape, ModelShape
from shuntserve.core.parameters import Cell, Parameter
from shuntserve.errors import Corrupt

INSTANCES_FILE, ZONE_PRICES_FILE, CALIBRATION_FILE = "instances.csv", "zone_prices.csv", "calibration.csv"
"""What may lie in the user's own catalogue directory."""

_REPOSITORY_TABLES = Path(__file__).resolve().parent.parent / "datasets"


def tables_dir() -> Path:
    """Where the shipped tables lie: inside the installed package, or beside it in a checkout."""
    packaged = Path(str(resources.files("shuntserve"))) / "datasets"
    return packaged if packaged.is_dir() else _REPOSITORY_TABLES


@dataclass(frozen=True)
class Tables:
    """The catalogue's tables as read: GPUs, links and engines by quantity, the wide ones as rows."""

    gpus: Mapping[str, Mapping[str, str]]
    links: Mapping[str, Mapping[str, str]]
    engines: Mapping[str, Mapping[str, str]]
    instances: Sequence[Mapping[str, str]]
    models: Sequence[Mapping[str, str]]
    zone_prices: Sequence[Mapping[str, str]] = ()

    def value(self, cell: Cell) -> float:
        table, row, quantity = cell
        return float(getattr(self, table)[row][quantity])

    def with_values(self, values: Mapping[Cell, float]) -> Tables:
        """The same tables with some numbers replaced."""
        changed: dict[str, dict[str, dict[str, str]]] = {}
        for (table, row, quantity), value in values.items():
            rows = changed.setdefault(table, {name: dict(cells) for name, cells in getattr(self, table).items()})
            rows.setdefault(row, {})[quantity] = repr(float(value))
        return replace(self, **changed)  # type: ignore[arg-type]


def load_tables(directory: Path | None = None) -> Tables:
    """The tables in `directory` (default: the shipped ones)."""
    root = directory or tables_dir()
    gpus, links, engines = (_long(root / f"{name}s.csv", name) for name in ("gpu", "link", "engine"))
    return Tables(gpus, links, engines, _rows(root / "instances.csv"), _rows(root / "models.csv"))


def catalog_from(tables: Tables) -> Catalog:
    """Builds the catalogue; a number that cannot be read raises `Corrupt`."""
    try:
        links = {name: _link(name, row) for name, row in tables.links.items()}
        gpus = {name: _gpu(name, row) for name, row in tables.gpus.items()}
        return Catalog(
            gpus=gpus,
            instances={
                row["instance_type"]: _instance(row, gpus[row["gpu"]], links[row["link"]]) for row in tables.instances
            },
            models={row["model"]: _model(row) for row in tables.models},
            engines={name: _engine(name, row) for name, row in tables.engines.items()},
            links=links,
            zone_usd_per_h={(row["instance_type"], row["zone"]): float(row["usd_per_h"]) for row in tables.zone_prices},
            gpu_links={name: links[row["link"]] for name, row in tables.gpus.items()},
        )
    except (KeyError, ValueError) as error:
        raise Corrupt(
            "catalogue", f"a table cannot be read: {error!r}", "undo the edit, or reinstall shuntserve"
        ) from error


def user_directory() -> Path:
    """Where refreshed types and prices and the user's own calibration are kept."""
    from shuntserve.settings import settings

    return settings().data_dir / "catalog"


@lru_cache(maxsize=4)
def load_catalog(user: Path | None = None) -> Catalog:
    """The shipped catalogue, with what `catalog refresh` and `calibrate` left in directory `user` on top."""
    tables = load_tables()
    return catalog_from(tables if user is None else with_user_tables(tables, user))


def with_user_tables(tables: Tables, user: Path) -> Tables:
    """`tables` with the user's refreshed instance types and prices and own calibration, where there are any."""
    refreshed = {row["instance_type"]: row for row in _optional_rows(user / INSTANCES_FILE)}
    instances = [{**row, **refreshed.pop(row["instance_type"], {})} for row in tables.instances]
    zone_prices = _optional_rows(user / ZONE_PRICES_FILE) or tables.zone_prices
    merged = replace(tables, instances=[*instances, *refreshed.values()], zone_prices=zone_prices)
    cells = {
        (row["table"], row["row"], row["quantity"]): float(row["value"])
        for row in _optional_rows(user / CALIBRATION_FILE)
    }
    return merged.with_values(cells) if cells else merged


def _optional_rows(path: Path) -> list[dict[str, str]]:
    return _rows(path) if path.exists() else []


def load_parameters(directory: Path | None = None) -> list[Parameter]:
    """The fitted parameters: what they mean, where they are written, what physics expects of them."""
    return [
        Parameter(
            name=row["parameter"],
            prior=float(row["prior"]),
            low=float(row["low"]),
            high=float(row["high"]),
            cells=tuple(_cell(text) for text in row["cells"].split(";")),
            meaning=row["meaning"],
        )
        for row in _rows((directory or tables_dir()) / "parameters.csv")
    ]


def _cell(text: str) -> Cell:
    table, row, quantity = text.split("/")
    return table, row, quantity


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            return list(csv.DictReader(handle))
    except OSError as error:
        raise Corrupt(f"catalogue table {path.name}", str(error), "reinstall shuntserve") from error


def _long(path: Path, key: str) -> dict[str, dict[str, str]]:
    table: dict[str, dict[str, str]] = defaultdict(dict)
    for row in _rows(path):
        table[row[key]][row["quantity"]] = row["value"]
    return dict(table)


def _aliases(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(";") if part)


def _gpu(name: str, row: Mapping[str, str]) -> Gpu:
    major, minor = row["compute_capability"].split(".")
    flops = {
        dtype: float(row[f"{dtype}_tflops"]) * 1e12
        for dtype in ("fp16", "bf16", "fp8", "int8", "fp4")
        if f"{dtype}_tflops" in row
    }
    if "bf16" in flops:
        flops["fp16"] = flops["bf16"]
    return Gpu(
        name=name,
        memory_bytes=float(row["memory_bytes"]),
        bandwidth_bytes_per_s=float(row["bandwidth_gb_s"]) * 1e9,
        flops=flops,
        sms=int(row["sms"]),
        compute_capability=(int(major), int(minor)),
        bandwidth_efficiency=float(row["bandwidth_efficiency"]),
        gemm_efficiency=float(row["gemm_efficiency"]),
        weight_dtypes=frozenset(row["weight_dtypes"].split(";")),
        kv_dtypes=frozenset(row["kv_dtypes"].split(";")),
        tdp_w=float(row["tdp_w"]),
        aliases=_aliases(row.get("aliases", "")),
    )


def _link(name: str, row: Mapping[str, str]) -> Link:
    bus = {int(key.rsplit("_", 1)[1]): float(v) * 1e9 for key, v in row.items() if key.startswith("bus_gb_s_")}
    return Link(name, bus, float(row["hop_ll_us"]) * 1e-6, float(row["hop_simple_us"]) * 1e-6)


def _instance(row: Mapping[str, str], gpu: Gpu, link: Link) -> Instance:
    def optional(key: str) -> float | None:
        return float(row[key]) if row[key] else None

    gpus = float(row["gpus"])
    return Instance(
        name=row["instance_type"],
        gpu=gpu if gpus >= 1 else _part_of(gpu, gpus),
        gpus=gpus,
        link=link,
        vcpus=int(row["vcpus"]),
        memory_bytes=float(row["memory_gib"]) * GIB,
        network_bytes_per_s=float(row["network_baseline_gbit_s"]) * GBIT_PER_S,
        network_burst_bytes_per_s=float(row["network_burst_gbit_s"]) * GBIT_PER_S,
        ondemand_usd_per_h=optional("ondemand_usd_per_h"),
        spot_usd_per_h=optional("spot_usd_per_h"),
        interruption=row["interruption"] or None,
        quota_ondemand=row["quota_ondemand"] or None,
        quota_spot=row["quota_spot"] or None,
        sources={"spec": row["spec_source"], "ondemand": row["ondemand_source"], "spot": row["spot_source"]},
    )


def _part_of(gpu: Gpu, share: float) -> Gpu:
    """A fixed share of a GPU as a smaller one: its memory, and as much of its time as nobody can take away."""
    return replace(
        gpu,
        name=f"{gpu.name} 1/{round(1 / share)}",
        memory_bytes=gpu.memory_bytes * share,
        bandwidth_bytes_per_s=gpu.bandwidth_bytes_per_s * share,
        flops={dtype: rate * share for dtype, rate in gpu.flops.items()},
        sms=max(1, round(gpu.sms * share)),
        tdp_w=gpu.tdp_w * share,
        aliases=(),
    )


def _engine(name: str, row: Mapping[str, str]) -> EngineProfile:
    fields = EngineProfile.__dataclass_fields__
    values: dict[str, object] = {}
    for key, text in row.items():
        if key.endswith("_us"):
            values[key[:-3] + "_s"] = float(text) * 1e-6
        elif fields[key].type in ("int", "bool"):
            values[key] = bool(float(text)) if fields[key].type == "bool" else int(float(text))
        else:
            values[key] = float(text)
    return EngineProfile(name, **values)  # type: ignore[arg-type]


def _model(row: Mapping[str, str]) -> ModelShape:
    def number(key: str) -> int:
        return int(row[key]) if row[key] else 0

    base = {
        key: number(key)
        for key in (
            "hidden", "heads", "kv_heads", "head_dim", "intermediate", "kv_lora_rank", "q_lora_rank", "rope_dim",
            "nope_dim", "v_head_dim",
        )
    }  # fmt: skip
    small = number("small_params_per_layer")
    gated = row["gated"] == "true"
    layers = []
    every = number("moe_every") or 1
    pattern = row["window_pattern"] or ("S" if row["window"] else "F")
    for index in range(number("layers")):
        window = number("window") if pattern[index % len(pattern)] == "S" else None
        sparse = number("experts") and index >= number("dense_layers") and (index + 1) % every == 0
        experts = {
            "experts": number("experts"),
            "experts_per_token": number("experts_per_token"),
            "moe_intermediate": number("moe_intermediate"),
            "shared_experts": number("shared_experts"),
        }
        layers.append(LayerShape(**base, small_params=small, gated=gated, window=window, **(experts if sparse else {})))
    return ModelShape(
        name=row["model"],
        layers=tuple(layers),
        hidden=number("hidden"),
        vocab=number("vocab"),
        tied_embeddings=row["tied"] == "true",
        max_context=number("max_context"),
        weights=row["weights"],
        aliases=(row["hf_id"], *_aliases(row["aliases"])),
    )

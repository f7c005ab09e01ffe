"""Clusters to plan for: the ShuntServe authors' own with their published placements, and larger ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from estimator_data import rows

from shuntserve.core.catalog import Catalog
from shuntserve.core.planning.baselines import Placement
from shuntserve.core.planning.baselines.yard import Yard
from shuntserve.core.planning.columns import Place
from shuntserve.core.planning.stage_times import Seat, StageTimes
from shuntserve.core.pools import Market, Pool

# $/h as their placement optimizer reckoned: ddps-lab/HeteroSpotLLMServe, ArtifactEvaluation/SpotTolerance, 2026-03-18.
PAPER = (
    Pool("g5.12xlarge", 2, 2.2915),
    Pool("g6.12xlarge", 3, 1.9445),
    Pool("g6e.xlarge", 4, 0.7040),
)
# Their placements write one or two GPUs of a 12xlarge machine as xlarge or "half".
PART_OF = {"g5.xlarge": "g5.12xlarge", "g6.xlarge": "g6.12xlarge"}
_STAGE = re.compile(r"(?P<type>[\w.]+?)(?:\(half\))? L=(?P<layers>\d+) TP=(?P<tp>\d+)")

# 15 types with 76 GPUs, as many as the 15 types of the authors' growth runs (which they do not name) have.
FIFTEEN = (
    "g5.xlarge", "g5.4xlarge", "g5.12xlarge", "g5.48xlarge", "g6.xlarge", "g6.12xlarge", "g6.24xlarge", "g6.48xlarge",
    "g6e.xlarge", "g6e.12xlarge", "g6e.48xlarge", "p4d.24xlarge", "p4de.24xlarge", "p5.48xlarge", "p5en.48xlarge",
)  # fmt: skip
# With a spot price and an on-demand price each.
TWENTY_FIVE = (
    *(f"{family}.{size}" for family in ("g5", "g6", "g6e") for size in
      ("xlarge", "2xlarge", "4xlarge", "8xlarge", "12xlarge", "24xlarge", "48xlarge")),
    "p4d.24xlarge", "p4de.24xlarge", "p5.48xlarge", "p5en.48xlarge",
)  # fmt: skip
ZONES = {"a": 1.0, "b": 1.07}
"""Zones and what spot machines cost there, relative to the catalogue."""


@dataclass(frozen=True)
class Growth:
    """A cluster of equal pools."""

    name: str
    pools: tuple[Pool, ...]
    tolerance: float
    time_limit_s: float

    @property
    def nodes(self) -> int:
        return sum(pool.count for pool in self.pools)


def growth(catalog: Catalog) -> dict[str, Growth]:
    """Clusters by name, smallest first. The 46 types are all that run bf16 on at least half a GPU and have a price."""
    bf16 = [
        instance.name
        for instance in catalog.instances.values()
        if "bf16" in instance.gpu.weight_dtypes
        and instance.gpus >= 0.5
        and not instance.name.startswith("g6f.")
        and (instance.spot_usd_per_h or instance.ondemand_usd_per_h)
    ]
    clusters = [
        Growth("3x9", PAPER, 0.01, 60.0),
        *(Growth(f"15x{15 * n}", _one_each(catalog, FIFTEEN, n), 0.02, 60.0) for n in (1, 2, 4, 8, 16, 32)),
        *(Growth(f"{len(bf16)}x{len(bf16) * n}", _one_each(catalog, bf16, n), 0.02, 60.0) for n in (1, 3, 6)),
        Growth("100x1000", _zoned(catalog, TWENTY_FIVE, 10), 0.02, 270.0),
        Growth("100x5000", _zoned(catalog, TWENTY_FIVE, 50), 0.02, 270.0),
    ]
    return {cluster.name: cluster for cluster in clusters}


def _one_each(catalog: Catalog, names: Sequence[str], count: int) -> tuple[Pool, ...]:
    """One pool per type: spot where the catalogue has a spot price."""
    pools = []
    for name in names:
        spot = catalog.instance(name).spot_usd_per_h is not None
        pools.append(_pool(catalog, name, count, "", "spot" if spot else "on-demand"))
    return tuple(pools)


def _zoned(catalog: Catalog, names: Sequence[str], count: int) -> tuple[Pool, ...]:
    """Every type in every zone, spot and on demand."""
    markets: tuple[Market, ...] = ("spot", "on-demand")
    return tuple(_pool(catalog, name, count, zone, market) for name in names for zone in ZONES for market in markets)


def _pool(catalog: Catalog, name: str, count: int, zone: str, market: Market) -> Pool:
    instance = catalog.instance(name)
    usd_per_h = instance.spot_usd_per_h if market == "spot" else instance.ondemand_usd_per_h
    if usd_per_h is None:
        raise ValueError(f"{name} has no {market} price")
    spot = market == "spot"
    return Pool(
        name, count, usd_per_h * (ZONES.get(zone, 1.0) if spot else 1.0), zone, market,
        instance.losses_per_h if spot else 0.0,
    )  # fmt: skip


def published(data: Path, model: str, times: StageTimes, pools: Sequence[Pool]) -> list[Placement]:
    """The authors' placements of `model` that the pack has, on numbered machines; a stage stays with the one before it
    while their machine has GPUs left."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows(data / "paper" / "measured_pipelines.csv"):
        if row["model"] == model:
            groups.setdefault((row["system"], row["config_version"]), []).append(row["stages"])
    systems = [system for system, _ in groups]
    return [
        _published(
            f"authors' {system}" + (f", {len(texts)} pipelines" if systems.count(system) > 1 else ""),
            texts, times, pools,
        )
        for (system, _), texts in groups.items()
    ]  # fmt: skip


def _published(name: str, texts: Sequence[str], times: StageTimes, pools: Sequence[Pool]) -> Placement:
    yard = Yard(times, pools, range(len(pools)))
    kind_of = {(kind.instance_type, kind.tp): number for number, kind in enumerate(times.kinds)}
    pairs = []
    for text in texts:
        places: list[Place] = []
        held: list[tuple[int, int]] = []
        for part in text.split("|"):
            match = _STAGE.fullmatch(part.strip())
            if match is None:
                raise ValueError(f"{name}: stage {part!r} is not understood")
            instance_type, tp = PART_OF.get(match["type"], match["type"]), int(match["tp"])
            able = [p for p, left in yard.free.items() if pools[p.pool].instance_type == instance_type and left >= tp]
            if not able:
                raise ValueError(f"{name}: no {instance_type} has {tp} GPUs left")
            place = min(able, key=lambda p: (p not in places[-1:], yard.free[p], p.machine))
            yard.take([place], [tp])
            places.append(place)
            held.append((kind_of[instance_type, tp], int(match["layers"])))
        together = [a == b for a, b in pairwise(places)] + [False]
        seats = [Seat(kind, layers, joined) for (kind, layers), joined in zip(held, together, strict=True)]
        pairs.append((seats, places))
    return Placement.of(name, times, pairs)

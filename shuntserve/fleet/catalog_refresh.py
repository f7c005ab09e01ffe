"""Reads GPU instance types, spot prices and placement scores from EC2 for the user's own catalogue."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from shuntserve.catalog import INSTANCES_FILE, ZONE_PRICES_FILE
from shuntserve.core.catalog import Catalog
from shuntserve.core.hardware import Gpu
from shuntserve.errors import InvalidInput, Unavailable

GPU_FAMILIES = ("g*", "p*")
PRODUCT = "Linux/UNIX"
SCORED_TYPES = 3
"""Placement scores of fewer types than this are low whatever the capacity (EC2 user guide)."""
_MIB = 1024 * 1024
_LEAST_GBIT_S = 5.0
"""Taken where EC2 states no rate at all (old types say "High")."""


@dataclass(frozen=True)
class Refreshed:
    """Rows for the user's tables; `notes` say what was left out and why."""

    instances: tuple[dict[str, str], ...]
    zone_prices: tuple[dict[str, str], ...]
    notes: tuple[str, ...]


def read_ec2(
    regions: Sequence[str | None], catalog: Catalog, *, now: datetime, endpoint_url: str | None = None
) -> Refreshed:
    """What EC2 says now. A region None is the AWS configuration's own.

    Raises `InvalidInput` when there is no region or no credentials, `Unavailable` when EC2 does not answer.
    """
    instances: dict[str, dict[str, str]] = {}
    prices: list[dict[str, str]] = []
    notes: list[str] = []
    for region in regions:
        try:
            client = boto3.client("ec2", region_name=region, endpoint_url=endpoint_url)
            described = _describe(client)
            for item in described:
                row = _instance_row(item, catalog, now)
                if isinstance(row, str):
                    notes.append(row)
                else:
                    instances[row["instance_type"]] = row
            known = [name for name in instances if any(name == item["InstanceType"] for item in described)]
            scores = _scores(client, known, catalog, notes)
            prices += _zone_prices(client, known, scores, now)
        except ClientError as error:
            raise _translated(error, region) from error
        except BotoCoreError as error:
            where = f"EC2 {region or ''}".strip()
            raise InvalidInput(where, str(error), "set AWS_REGION and credentials, or pass --region") from error
    return Refreshed(tuple(instances.values()), tuple(prices), tuple(dict.fromkeys(notes)))


def _translated(error: ClientError, region: str | None) -> InvalidInput | Unavailable:
    code = str(error.response.get("Error", {}).get("Code", ""))
    where = f"EC2 {region or ''}".strip()
    if code in ("UnauthorizedOperation", "AuthFailure", "AccessDenied", "InvalidClientTokenId"):
        return InvalidInput(
            where, f"refused: {code}", "allow ec2:DescribeInstanceTypes and ec2:DescribeSpotPriceHistory"
        )
    return Unavailable(where, f"answered {code}", "try again later")


def _describe(client: Any) -> list[Mapping[str, Any]]:
    pages = client.get_paginator("describe_instance_types").paginate(
        Filters=[{"Name": "instance-type", "Values": list(GPU_FAMILIES)}]
    )
    found = [item for page in pages for item in page["InstanceTypes"]]
    return [
        item
        for item in found
        if any(g.get("Manufacturer", "").upper() == "NVIDIA" for g in item.get("GpuInfo", {}).get("Gpus", []))
    ]


def _instance_row(item: Mapping[str, Any], catalog: Catalog, now: datetime) -> dict[str, str] | str:
    """A row for the instance table, or why the type is left out."""
    name = item["InstanceType"]
    info = item["GpuInfo"]["Gpus"][0]
    gpu = _gpu(info, catalog)
    if gpu is None:
        return f"{name}: its GPU {info.get('Name')!r} is not in the catalogue"
    network = item.get("NetworkInfo", {})
    baseline, burst = _network_gbit_s(network)
    shipped = catalog.instances.get(name)
    ebs = item.get("EbsInfo", {}).get("EbsOptimizedInfo", {})
    stamp = f"EC2 DescribeInstanceTypes, {now:%Y-%m-%dT%H:%MZ}"
    row = {
        "instance_type": name,
        "gpu": gpu.name,
        "gpus": f"{info.get('Count') or (shipped.gpus if shipped else 1):g}",
        "link": shipped.link.name if shipped else _link(name, catalog, gpu),
        "vcpus": str(item["VCpuInfo"]["DefaultVCpus"]),
        "memory_gib": f"{item['MemoryInfo']['SizeInMiB'] / 1024:g}",
        "network_baseline_gbit_s": f"{baseline:g}",
        "network_burst_gbit_s": f"{burst:g}",
        "ebs_baseline_mb_s": f"{ebs.get('BaselineThroughputInMBps', '')}",
        "nvme_gb": f"{item.get('InstanceStorageInfo', {}).get('TotalSizeInGB', '')}",
        "efa": str(bool(network.get("EfaSupported"))),
        "spec_source": stamp,
        "spot": str("spot" in item.get("SupportedUsageClasses", [])).lower(),
    }
    if shipped is None:
        blank = ("ondemand_usd_per_h", "ondemand_source", "spot_usd_per_h", "interruption", "spot_source")
        row |= dict.fromkeys((*blank, "quota_ondemand", "quota_spot"), "")
    return row


def _network_gbit_s(network: Mapping[str, Any]) -> tuple[float, float]:
    """Baseline and burst of the machine: its label where that states a rate, else its network cards together.

    The label comes first since some types state every card at the whole machine's rate; "Up to …" is only a burst.
    """
    label = re.fullmatch(r"(?:(\d+)x\s*)?([\d.]+) Gigabit", str(network.get("NetworkPerformance", "")))
    if label:
        stated = int(label[1] or 1) * float(label[2])
        return stated, stated
    cards = network.get("NetworkCards", [])
    baseline = sum(float(card.get("BaselineBandwidthInGbps") or 0) for card in cards) or _LEAST_GBIT_S
    return baseline, max(baseline, sum(float(card.get("PeakBandwidthInGbps") or 0) for card in cards))


def _gpu(info: Mapping[str, Any], catalog: Catalog) -> Gpu | None:
    """The catalogue's GPU of this name whose memory is nearest (an A100 comes with 40 or with 80 GB)."""
    size = float(info.get("MemoryInfo", {}).get("SizeInMiB", 0)) * _MIB
    wanted = str(info.get("Name", "")).lower()
    named = [
        gpu
        for gpu in catalog.gpus.values()
        if wanted
        and any(alias.lower() == wanted or alias.lower().startswith(f"{wanted}-") for alias in (gpu.name, *gpu.aliases))
    ]
    return min(named, key=lambda gpu: abs(gpu.memory_bytes - size), default=None)


def _link(name: str, catalog: Catalog, gpu: Gpu) -> str:
    """How a new size of a known family is wired: as its sisters, else as its GPU usually is."""
    family = name.split(".")[0]
    sisters = [i.link.name for i in catalog.instances.values() if i.name.split(".")[0] == family]
    return sisters[0] if sisters else catalog.link_of(gpu).name


def _zone_prices(
    client: Any, names: Sequence[str], scores: Mapping[tuple[str, str], int], now: datetime
) -> Iterable[dict[str, str]]:
    newest: dict[tuple[str, str], tuple[datetime, str]] = {}
    pages = client.get_paginator("describe_spot_price_history").paginate(
        InstanceTypes=list(names),
        ProductDescriptions=[PRODUCT],
        StartTime=now,
    )
    for page in pages:
        for item in page["SpotPriceHistory"]:
            key = (item["InstanceType"], item["AvailabilityZone"])
            seen = item["Timestamp"]
            if key not in newest or seen > newest[key][0]:
                newest[key] = (seen, item["SpotPrice"])
    for (name, zone), (seen, price) in sorted(newest.items()):
        yield {
            "instance_type": name,
            "zone": zone,
            "usd_per_h": f"{float(price):g}",
            "placement_score": str(scores.get((name, zone), "")),
            "source": f"EC2 DescribeSpotPriceHistory, {seen:%Y-%m-%dT%H:%MZ}",
        }


def _scores(client: Any, names: Sequence[str], catalog: Catalog, notes: list[str]) -> dict[tuple[str, str], int]:
    """Spot placement scores (1–10) by type and zone, asked once per GPU; none where the account may not ask."""
    by_gpu: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if name in catalog.instances:
            by_gpu[catalog.instances[name].gpu.name].append(name)
    zones = {z["ZoneId"]: z["ZoneName"] for z in client.describe_availability_zones()["AvailabilityZones"]}
    scores: dict[tuple[str, str], int] = {}
    for gpu, types in by_gpu.items():
        if len(types) < SCORED_TYPES:
            continue
        try:
            answer = client.get_spot_placement_scores(
                InstanceTypes=types,
                TargetCapacity=1,
                SingleAvailabilityZone=True,
                RegionNames=[client.meta.region_name],
            )
        except (
            ClientError,
            BotoCoreError,
            ResponseParserError,
        ) as error:  # a nicety that many accounts may not ask for
            notes.append(f"no placement scores: {error}".splitlines()[0][:200])
            break
        for item in answer["SpotPlacementScores"]:
            for name in types:
                scores[(name, zones.get(item.get("AvailabilityZoneId", ""), ""))] = int(item["Score"])
        notes.append(f"placement scores of {gpu}: asked for {len(types)} types together")
    return scores


def write_refreshed(directory: Path, refreshed: Refreshed) -> list[Path]:
    """Replace the user's tables; each file appears whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, rows in ((INSTANCES_FILE, refreshed.instances), (ZONE_PRICES_FILE, refreshed.zone_prices)):
        if not rows:
            continue
        path = directory / name
        partial = path.with_suffix(".partial")
        header = list(dict.fromkeys(key for row in rows for key in row))
        with partial.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, header, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(path)
        paths.append(path)
    return paths

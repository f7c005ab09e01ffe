"""`shuntserve catalog`: what is known of GPUs, instance types, models and engines, and refreshing it from EC2."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

_PIPED_WIDTH = 200
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="GPUs, instance types, prices, models and engines.", no_args_is_help=True)
    for command in (gpus, instances, models, engines, refresh):
        group.command()(command)
    app.add_typer(group, name="catalog")


def gpus(as_json: AsJson = False) -> None:
    """GPUs: memory, peak and achieved rates, the weight types that the pinned vLLM runs."""
    from shuntserve.catalog import load_catalog, user_directory

    rows = [
        {
            "gpu": g.name,
            "memory_gb": round(g.memory_bytes / 1e9, 1),
            "bandwidth_gb_s": round(g.bandwidth_bytes_per_s / 1e9),
            "achieved_gb_s": round(g.achieved_bandwidth / 1e9),
            "peak_tflops": round(g.flops["fp16"] / 1e12),
            "achieved_tflops": round(g.flops["fp16"] * g.gemm_efficiency / 1e12),
            "weights": ", ".join(sorted(g.weight_dtypes)),
            "kv_cache": ", ".join(sorted(g.kv_dtypes)),
        }
        for g in load_catalog(user_directory()).gpus.values()
    ]
    _print(rows, as_json)


def instances(as_json: AsJson = False) -> None:
    """EC2 instance types with GPUs: network, prices, interruption."""
    from shuntserve.catalog import load_catalog, user_directory

    rows = [
        {
            "instance_type": i.name,
            "gpu": i.gpu.name,
            "gpus": i.gpus,
            "network_gbit_s": round(i.network_bytes_per_s * 8 / 1e9, 2),
            "ondemand_usd_per_h": i.ondemand_usd_per_h,
            "spot_usd_per_h": i.spot_usd_per_h,
            "interruption": i.interruption,
        }
        for i in load_catalog(user_directory()).instances.values()
    ]
    _print(rows, as_json)


def models(as_json: AsJson = False) -> None:
    """Models: layers, parameters, weights, bytes of KV cache per token."""
    from shuntserve.catalog import load_catalog, user_directory

    rows = [
        {
            "model": m.name,
            "layers": m.num_layers,
            "params_b": round(m.params / 1e9, 2),
            "active_b": round(m.active_params / 1e9, 2),
            "weights": m.weights,
            "kv_bytes_per_token": m.kv_values_per_token() * 2,
            "max_context": m.max_context,
        }
        for m in load_catalog(user_directory()).models.values()
    ]
    _print(rows, as_json)


def engines(as_json: AsJson = False) -> None:
    """Engine profiles: host times and limits."""
    from shuntserve.catalog import load_catalog, user_directory

    rows = [
        {
            "engine": e.name,
            "step_ms": round(e.step_s * e.version_factor * 1e3, 2),
            "per_sequence_ms": round(e.seq_s * e.version_factor * 1e3, 3),
            "per_micro_batch_ms": round(e.micro_batch_s * e.version_factor * 1e3, 2),
            "memory_utilization": e.memory_utilization,
            "max_seqs": e.max_seqs,
            "max_batched_tokens": e.max_batched_tokens,
        }
        for e in load_catalog(user_directory()).engines.values()
    ]
    _print(rows, as_json)


def refresh(
    region: Annotated[
        list[str] | None, typer.Option("--region", help="Region to read; repeatable. Default: the AWS configuration's.")
    ] = None,
    endpoint_url: Annotated[str | None, typer.Option("--endpoint-url", help="EC2 endpoint other than AWS's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read instance types, spot prices and placement scores from EC2 into your own catalogue."""
    from datetime import UTC, datetime

    from shuntserve.catalog import load_catalog, user_directory
    from shuntserve.errors import InvalidInput

    try:
        from shuntserve.fleet.catalog_refresh import read_ec2, write_refreshed
    except ModuleNotFoundError as error:
        raise InvalidInput(
            "catalog refresh", f"{error.name} is not installed", "pip install 'shuntserve[aws]'"
        ) from error

    directory = user_directory()
    refreshed = read_ec2(region or [None], load_catalog(), now=datetime.now(UTC), endpoint_url=endpoint_url)
    paths = write_refreshed(directory, refreshed)
    report = {
        "instance_types": len(refreshed.instances),
        "zone_prices": len(refreshed.zone_prices),
        "notes": list(refreshed.notes),
        "kept_in": [str(path) for path in paths],
    }
    if as_json:
        print(json.dumps(report, indent=1))
        return
    print(f"{report['instance_types']} instance types and {report['zone_prices']} spot prices kept in {directory}")
    for note in refreshed.notes:
        print(f"note: {note}")


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPED_WIDTH)
    table = Table(*rows[0], box=None)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    console.print(table)

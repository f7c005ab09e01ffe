"""`shuntserve plan`: the best fleet within pools of capacity, and a proven bound on how much better any could be."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from shuntserve.core.planning.plan import PlannedPipeline
    from shuntserve.fleet_plan import FleetPlan

_PIPED_WIDTH = 160


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(plan)


def plan(
    model: Annotated[str, typer.Option("--model", help="A model of the catalogue, or the path of a config.json.")],
    pool: Annotated[
        list[str],
        typer.Option("--pool", help="TYPE[/ZONE][/spot|on-demand]=COUNT[@USD_PER_HOUR]; repeat for each pool."),
    ],
    workload: Annotated[str, typer.Option("--workload", help="PROMPT:OUTPUT tokens, or a CSV or Parquet of lengths.")],
    objective: Annotated[
        str,
        typer.Option(
            "--objective", help="throughput, cost ($ per token), or deadline (least $ for all requests in time)."
        ),
    ] = "throughput",
    requests: Annotated[int | None, typer.Option("--requests", help="Requests of the job.")] = None,
    deadline: Annotated[str | None, typer.Option("--deadline", help="Time to finish, as 90m, 6h or 1.5d.")] = None,
    budget: Annotated[float | None, typer.Option("--budget", help="Most dollars for the whole job.")] = None,
    hourly_budget: Annotated[float | None, typer.Option("--hourly-budget", help="Most dollars an hour.")] = None,
    quota: Annotated[
        list[str] | None, typer.Option("--quota", help="EC2 vCPU quota as CODE=VCPUS, for instance L-3819A6DF=192.")
    ] = None,
    max_pool_share: Annotated[
        float, typer.Option("--max-pool-share", help="Largest share of throughput that one pool may carry, 0 to 1.")
    ] = 1.0,
    engine: Annotated[str, typer.Option("--engine", help="Engine profile; see `shuntserve catalog engines`.")] = "vllm",
    dtype: Annotated[str, typer.Option("--dtype", help="Weights: auto, bf16, fp16, fp8, int8, int4, fp4.")] = "auto",
    kv_dtype: Annotated[str, typer.Option("--kv-dtype", help="KV cache: auto, bf16, fp16, fp8.")] = "auto",
    startup: Annotated[str, typer.Option("--startup", help="Time from buying machines to the first token.")] = "180s",
    recovery: Annotated[
        str, typer.Option("--recovery", help="How long a pipeline is silent after losing a machine.")
    ] = "150s",
    gap: Annotated[
        float, typer.Option("--gap", help="Stop when no plan can be better by more than this share.")
    ] = 0.01,
    time_limit: Annotated[
        float, typer.Option("--time-limit", help="Seconds after which the best plan so far is shown with its gap.")
    ] = 60.0,
    plot: Annotated[str | None, typer.Option("--plot", help="Also draw the pipelines into this HTML file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Plan which machines to rent and how to split the model over them, GPU types mixed where that pays.

    Prices and interruption rates come from the catalogue where a pool names none. Nothing is rented.
    """
    import time
    from pathlib import Path

    from shuntserve.catalog import load_catalog, user_directory
    from shuntserve.cli.estimate import find_model
    from shuntserve.core.planning.objectives import Objective
    from shuntserve.errors import InvalidInput
    from shuntserve.fleet_plan import Wanted, precision_for, read_pools, read_quotas
    from shuntserve.fleet_plan import plan as plan_job
    from shuntserve.workload_file import read_workload

    if plot is not None and not Path(plot).absolute().parent.is_dir():
        raise InvalidInput(f"--plot {plot}", "its directory does not exist", "name a file in an existing directory")
    catalog = load_catalog(user_directory())
    shape = find_model(catalog, model)
    pools = read_pools(catalog, pool)
    profile = catalog.engine(engine).tuned_for(catalog.instance(p.instance_type).gpu for p in pools)
    if requests is not None and requests < 1:
        raise InvalidInput("--requests", f"{requests} is not positive", "give 1 or more")
    wanted = Wanted(
        model=shape,
        workload=read_workload(workload),
        engine=profile,
        precision=precision_for(catalog, pools, shape, profile, dtype, kv_dtype),
        pools=pools,
        objective=Objective(
            name=objective,  # type: ignore[arg-type] # checked by Objective itself
            requests=requests,
            deadline_s=None if deadline is None else seconds_of("--deadline", deadline),
            hourly_usd=hourly_budget,
            total_usd=budget,
            startup_s=seconds_of("--startup", startup),
        ),
        quotas=read_quotas(catalog, pools, quota or []),
        share=max_pool_share,
        tolerance=gap,
        time_limit_s=time_limit,
        recovery_s=seconds_of("--recovery", recovery),
    )
    answer = plan_job(catalog, wanted, time.monotonic)
    if plot is not None:
        from shuntserve.plan_page import plan_page

        Path(plot).write_text(plan_page(answer), encoding="utf-8")
    if as_json:
        print(json.dumps(to_json(answer), indent=1))
    else:
        _show(answer)
        if plot is not None:
            print(f"drawn in {plot}")


_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_of(option: str, text: str) -> float:
    """`90m`, `6h`, `1.5d`, `180s` or plain seconds."""
    from shuntserve.errors import InvalidInput

    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text)
    if match is None or match[2] not in _UNITS:
        raise InvalidInput(f"{option} {text!r}", "is not a length of time", "write 90m, 6h or 1.5d")
    return float(match[1]) * _UNITS[match[2]]


def to_json(answer: FleetPlan) -> dict[str, Any]:
    """The plan as one object; throughputs are expected goodput under the pools' interruption rates."""
    plan, wanted = answer.plan, answer.wanted
    rps, load = plan.throughput_rps, wanted.workload
    per_s = plan.usd_per_hour / 3600.0
    return {
        "model": wanted.model.name,
        "engine": wanted.engine.name,
        "weights": wanted.precision.weights,
        "kv_cache": wanted.precision.kv,
        "objective": wanted.objective.name,
        "throughput_rps": rps,
        "output_tok_s": rps * load.mean_output,
        "usd_per_hour": plan.usd_per_hour,
        "usd_per_million_tokens": per_s / (rps * (load.mean_input + load.mean_output)) * 1e6,
        "usd_per_million_output_tokens": per_s / (rps * load.mean_output) * 1e6,
        "finish_s": answer.finish_s,
        "total_usd": answer.total_usd,
        "upper_bound_rps": plan.upper_bound_rps,
        "gap": plan.gap,
        "solve_s": plan.solve_s,
        "method": plan.method,
        "pools": [
            {
                "pool": pool.name,
                "count": pool.count,
                "used": used,
                "usd_per_hour": pool.usd_per_h,
                "losses_per_hour": pool.losses_per_h,
                "throughput_share": share,
                "one_more_rps": more,
            }
            for pool, used, share, more in zip(
                wanted.pools, plan.machines, plan.pool_shares, plan.one_more_rps, strict=True
            )
        ],
        "pipelines": [_pipeline_json(answer, pipeline) for pipeline in plan.pipelines],
        "runners_up": [
            {
                "without_pipeline": other.without,
                "throughput_rps": other.throughput_rps,
                "usd_per_hour": other.usd_per_hour,
                "pipelines": [[_seat_text(answer, seat) for seat in seats] for seats in other.pipelines],
            }
            for other in plan.runners_up
        ],
        "why": why(answer),
    }


def _seat_text(answer: FleetPlan, seat: Any) -> str:
    kind = answer.times.kinds[seat.kind]
    return f"{kind.instance_type}:tp={kind.tp}:layers={seat.layers}"


def _pipeline_json(answer: FleetPlan, pipeline: PlannedPipeline) -> dict[str, Any]:
    estimate = answer.times.estimate(pipeline.seats)
    return {
        "throughput_rps": pipeline.throughput_rps,
        "steady_rps": pipeline.steady_rps,
        "max_concurrency": estimate.max_concurrency,
        "ttft_s": estimate.ttft_s,
        "tpot_s": estimate.tpot_s,
        "binds": estimate.binds,
        "stages": [
            {
                "instance_type": stage.kind.instance_type,
                "pool": answer.wanted.pools[stage.pool].name,
                "machine": stage.machine,
                "gpus": stage.kind.tp,
                "tp": stage.kind.tp,
                "layers": stage.layers,
                "prefill_s": cost.prefill_s,
                "decode_s": cost.decode_s,
                "step_s": cost.step_s,
                "transfer_s": cost.transfer_s,
                "utilisation": cost.utilisation,
            }
            for stage, cost in zip(pipeline.stages, estimate.stages, strict=True)
        ],
    }


def why(answer: FleetPlan) -> list[str]:
    """Why this plan: what binds it, how much better any other could be, what the next best would lose."""
    plan, objective = answer.plan, answer.wanted.objective
    lines = []
    full = [pool.name for pool, used in zip(answer.wanted.pools, plan.machines, strict=True) if used == pool.count]
    idle = [pool.name for pool, used in zip(answer.wanted.pools, plan.machines, strict=True) if used == 0]
    if full:
        lines.append("every machine of " + ", ".join(full) + " is used")
    if idle:
        lines.append("nothing of " + ", ".join(idle) + " pays")
    for name, spent, cap in (
        ("hourly budget", plan.usd_per_hour, objective.hourly_usd),
        ("budget", answer.total_usd or 0.0, objective.total_usd),
    ):
        if cap is not None and spent > 0.9 * cap:
            lines.append(f"the {name} of ${cap:.2f} is spent to {spent / cap:.0%}")
    if objective.deadline_s is not None and answer.finish_s and answer.finish_s > 0.9 * objective.deadline_s:
        lines.append(f"the deadline is used to {answer.finish_s / objective.deadline_s:.0%}")
    if plan.runners_up:
        other = plan.runners_up[0]
        lines.append(f"without pipeline {other.without} the best plan is {1 - other.merit / plan.merit:.1%} worse")
    lines.append(f"no plan is more than {plan.gap:.2%} better ({plan.method})")
    return lines


def _show(answer: FleetPlan) -> None:
    from rich.console import Console
    from rich.table import Table

    from shuntserve.core.planning.relax import duration

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPED_WIDTH)
    plan, wanted = answer.plan, answer.wanted
    facts = to_json(answer)
    console.print(
        f"{wanted.model.name} ({wanted.precision.weights} weights, {wanted.precision.kv} KV cache) under "
        f"{wanted.engine.name}, {wanted.workload.mean_input:.0f} tokens in, {wanted.workload.mean_output:.0f} out"
    )
    console.print(
        f"{plan.throughput_rps:.3f} requests/s, {facts['output_tok_s']:.0f} output tokens/s for "
        f"${plan.usd_per_hour:.2f} an hour: ${facts['usd_per_million_tokens']:.3f} per million tokens (prompts counted)"
    )
    if answer.finish_s is not None and answer.total_usd is not None:
        console.print(
            f"{wanted.objective.requests:,.0f} requests in {duration(answer.finish_s)} for ${answer.total_usd:.2f}, "
            f"start-up of {duration(wanted.objective.startup_s)} and drain of {duration(answer.drain_s)} included"
        )
    table = Table("pipeline", "stage", "machine", "tp", "layers", "prefill ms", "decode ms", "busy", box=None)
    for number, pipeline in enumerate(facts["pipelines"]):
        for at, stage in enumerate(pipeline["stages"]):
            name = f"{number}: {pipeline['throughput_rps']:.3f} req/s, {pipeline['max_concurrency']:.0f} seats"
            table.add_row(
                name if at == 0 else "",
                str(at),
                f"{stage['pool']} #{stage['machine']}",
                str(stage["tp"]),
                str(stage["layers"]),
                f"{stage['prefill_s'] * 1e3:.1f}",
                f"{stage['decode_s'] * 1e3:.1f}",
                f"{stage['utilisation']:.0%}",
            )
    console.print(table)
    pools = Table("pool", "used", "$ an hour", "carries", "one more adds", box=None)
    for row in facts["pools"]:
        more = f"{row['one_more_rps']:.3f} req/s for ${row['usd_per_hour']:.2f}"
        pools.add_row(
            row["pool"], f"{row['used']} of {row['count']}", f"{row['used'] * row['usd_per_hour']:.2f}",
            f"{row['throughput_share']:.0%}", more,
        )  # fmt: skip
    console.print(pools)
    for line in facts["why"]:
        console.print("- " + line)

"""`shuntserve estimate`: what pipelines would deliver, from the catalogue alone."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shuntserve.core.catalog import Catalog
    from shuntserve.core.engine_profile import EngineProfile, Precision
    from shuntserve.core.estimate import PipelineEstimate
    from shuntserve.core.finite_job import JobEstimate, PipelineSpec
    from shuntserve.core.model_shape import ModelShape
    from shuntserve.core.stage_text import StageText
    from shuntserve.core.workload import Workload

DTYPE_ALIASES = {
    "bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "fp8_e4m3": "fp8", "gptq-int4": "int4",
    "awq": "int4", "gptq": "int4", "nvfp4": "fp4",
}  # fmt: skip
"""What vLLM and published tables call the same types."""
MOST_SIMULATED = 1_000_000
_PIPED_WIDTH = 160
"""A program or a file that reads the table is given whole lines."""

AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(estimate)


def estimate(
    model: Annotated[str, typer.Option("--model", help="A model of the catalogue, or the path of a config.json.")],
    workload: Annotated[str, typer.Option("--workload", help="PROMPT:OUTPUT tokens, or a CSV or Parquet of lengths.")],
    stage: Annotated[
        list[str] | None,
        typer.Option("--stage", help="INSTANCE:tp=N:layers=N or gpu=NAME:tp=N:layers=N; repeat for a pipeline."),
    ] = None,
    pipeline: Annotated[
        list[str] | None, typer.Option("--pipeline", help="A whole replica: stages joined by commas; repeatable.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", help="Fixed number of requests at a time instead of as many as fit.")
    ] = None,
    requests: Annotated[
        int | None, typer.Option("--requests", help="Also simulate a job of this many requests: makespan and rate.")
    ] = None,
    dispatch: Annotated[
        str, typer.Option("--dispatch", help="How a job's requests are dealt out: pull or wrr.")
    ] = "pull",
    weights: Annotated[str | None, typer.Option("--weights", help="For wrr: one number per pipeline, as 2,1.")] = None,
    in_flight: Annotated[
        int | None, typer.Option("--in-flight", help="A job's client keeps at most so many requests unanswered.")
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="Engine profile; see `shuntserve catalog engines`.")] = "vllm",
    dtype: Annotated[str, typer.Option("--dtype", help="Weights: auto, bf16, fp16, fp8, int8, int4, fp4.")] = "auto",
    kv_dtype: Annotated[str, typer.Option("--kv-dtype", help="KV cache: auto, bf16, fp16, fp8.")] = "auto",
    memory_utilization: Annotated[
        float | None, typer.Option("--gpu-memory-utilization", help="Share of GPU memory the engine takes.")
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option("--max-num-seqs", help="Most sequences per micro-batch; default as the engine's.")
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option("--max-num-batched-tokens", help="Token budget of a step; default as the engine's.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict throughput, latency and memory of pipelines, and how long a finite job takes on them.

    Neighbouring stages of one instance type share a machine while it has GPUs left; write `:machine=NAME` to say
    otherwise.
    """
    from shuntserve.catalog import load_catalog, user_directory
    from shuntserve.core.estimate import pipeline_estimate
    from shuntserve.workload_file import read_workload

    catalog = load_catalog(user_directory())
    shape = find_model(catalog, model)
    load = read_workload(workload)
    written = _written(stage or [], pipeline or [])
    specs = _build(catalog, written, shape)
    profile = _engine(catalog, engine, specs, memory_utilization, max_num_seqs, max_num_batched_tokens)
    precision = choose_precision(shape, specs, profile, dtype, kv_dtype)
    _check_counts(**{"--batch": batch, "--requests": requests, "--in-flight": in_flight})
    estimates = [
        pipeline_estimate(shape, spec.stages, load, profile, precision, batch=batch, same_machine=spec.same_machine)
        for spec in specs
    ]
    job = None
    if requests is None:
        _check_no_job(**{"--weights": weights, "--in-flight": in_flight, "--dispatch": dispatch.replace("pull", "")})
    else:
        job = _job(shape, specs, load, profile, precision, requests, batch, dispatch, weights, in_flight)
    warnings = []
    if load.max_total > shape.max_context:
        warnings.append(
            f"requests of up to {load.max_total:,} tokens exceed {shape.name}'s context of {shape.max_context:,}: "
            "vLLM would refuse them"
        )
    if as_json:
        found = to_json(shape, profile, precision, load, specs, estimates, job)
        print(json.dumps({**found, "warnings": warnings}, indent=1))
    else:
        _show(shape, profile, precision, load, specs, estimates, job)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def find_model(catalog: Catalog, name: str) -> ModelShape:
    """A catalogue model, or the shape in a `config.json` (the file, or a directory that holds it)."""
    from pathlib import Path

    from shuntserve.core.hf_config import shape_from_hf_config
    from shuntserve.errors import InvalidInput, NotFound

    path = Path(name)
    if path.is_dir() and (path / "config.json").is_file():
        path = path / "config.json"
    if path.suffix == ".json" and not path.is_file():
        raise NotFound(f"model {name!r}", "there is no such file", "name a Hugging Face config.json")
    if path.suffix != ".json" or not path.is_file():
        return catalog.model(name)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(str(path), f"it is not JSON: {error}", "give a Hugging Face config.json") from error
    if not isinstance(config, dict):
        raise InvalidInput(str(path), "it is not a JSON object", "give a Hugging Face config.json")
    return shape_from_hf_config(config, path.parent.name or path.name)


def choose_precision(
    shape: ModelShape, specs: Sequence[PipelineSpec], profile: EngineProfile, dtype: str, kv_dtype: str
) -> Precision:
    """Types to run with. "auto" is the checkpoint's own type, in fp16 where a GPU has no bf16, as vLLM does.

    Raises `InvalidInput` when vLLM does not run the type on one of the GPUs.
    """
    from shuntserve.errors import InvalidInput

    gpus = {spec.gpu.name: spec.gpu for pipe in specs for spec in pipe.stages}.values()
    dtype, kv_dtype = (DTYPE_ALIASES.get(name.lower(), name.lower()) for name in (dtype, kv_dtype))
    weights = shape.weights if dtype == "auto" else dtype
    if dtype == "auto" and weights == "bf16" and any("bf16" not in gpu.weight_dtypes for gpu in gpus):
        weights = "fp16"
    precision = profile.precision(weights, kv_dtype)
    if weights == "fp16" and precision.kv == "bf16":
        precision = profile.precision(weights, "fp16")
    for gpu in gpus:
        if weights == "bf16" and "bf16" not in gpu.flops:
            raise InvalidInput(f"bf16 weights on {gpu.name}", "it has no bf16 arithmetic", "use --dtype fp16")
        if not profile.name.startswith("vllm"):
            continue
        for what, kind, runs in (
            ("weights", precision.weights, gpu.weight_dtypes),
            ("KV cache", precision.kv, gpu.kv_dtypes),
        ):
            if kind not in runs:
                raise InvalidInput(
                    f"{kind} {what} on {gpu.name}",
                    "vLLM does not run this type there",
                    "use " + ", ".join(sorted(runs)),
                )
    return precision


def _written(stages: list[str], pipelines: list[str]) -> list[list[StageText]]:
    from shuntserve.core.stage_text import parse_pipeline, parse_stage
    from shuntserve.errors import InvalidInput

    if bool(stages) == bool(pipelines):
        cause = "both --stage and --pipeline are given" if stages else "neither --stage nor --pipeline is given"
        raise InvalidInput("pipelines", cause, "repeat --stage for one pipeline, or --pipeline for several")
    return [[parse_stage(text) for text in stages]] if stages else [parse_pipeline(text) for text in pipelines]


def _build(catalog: Catalog, written: list[list[StageText]], shape: ModelShape) -> list[PipelineSpec]:
    from shuntserve.core.stage_text import build_pipeline

    return [build_pipeline(catalog, stages, shape.num_layers) for stages in written]


def _engine(
    catalog: Catalog,
    name: str,
    specs: Sequence[PipelineSpec],
    memory_utilization: float | None,
    max_num_seqs: int | None,
    max_num_batched_tokens: int | None,
) -> EngineProfile:
    from dataclasses import replace

    profile = catalog.engine(name).tuned_for(spec.gpu for pipe in specs for spec in pipe.stages)
    chosen = {
        "memory_utilization": memory_utilization,
        "max_seqs": max_num_seqs,
        "max_batched_tokens": max_num_batched_tokens,
    }
    return replace(profile, **{key: value for key, value in chosen.items() if value is not None})  # type: ignore[arg-type]


def _check_counts(**counts: int | None) -> None:
    from shuntserve.errors import InvalidInput

    for option, value in counts.items():
        if value is not None and value < 1:
            raise InvalidInput(option, f"{value} is not positive", "give 1 or more")


def _check_no_job(**options: object) -> None:
    from shuntserve.errors import InvalidInput

    for option, value in options.items():
        if value:
            raise InvalidInput(option, "it says how a job's requests are dealt out", "add --requests N")


def _job(
    shape: ModelShape,
    specs: Sequence[PipelineSpec],
    load: Workload,
    profile: EngineProfile,
    precision: Precision,
    requests: int,
    batch: int | None,
    dispatch: str,
    weights: str | None,
    in_flight: int | None,
) -> JobEstimate:
    from dataclasses import replace

    from shuntserve.core.finite_job import DISPATCHES, job_estimate
    from shuntserve.errors import InvalidInput

    if requests > MOST_SIMULATED:
        raise InvalidInput(
            "--requests",
            f"{requests:,} would take too long to simulate",
            f"give at most {MOST_SIMULATED:,}; a longer job takes its requests / throughput_rps",
        )
    how = next((known for known in DISPATCHES if known == dispatch), None)
    if how is None:
        raise InvalidInput("--dispatch", f"{dispatch!r} is unknown", "use pull or wrr")
    shares: list[float] | None = None
    if weights is not None:
        if dispatch != "wrr":
            raise InvalidInput("--weights", "they have no meaning when pipelines pull", "add --dispatch wrr")
        try:
            shares = [float(part) for part in weights.split(",")]
        except ValueError as error:
            raise InvalidInput("--weights", str(error), "give numbers separated by commas, as 2,1") from error
    capped = [replace(spec, max_concurrency=batch) for spec in specs]
    return job_estimate(
        shape, capped, load.requests(requests), profile, precision, dispatch=how, weights=shares, in_flight=in_flight
    )


def to_json(
    shape: ModelShape,
    profile: EngineProfile,
    precision: Precision,
    load: Workload,
    specs: Sequence[PipelineSpec],
    estimates: Sequence[PipelineEstimate],
    job: JobEstimate | None,
) -> dict[str, Any]:
    """Totals over all pipelines at the top (latencies of the slowest), each pipeline and all stages below."""
    pipelines = [_pipeline_json(e) for e in estimates]
    result: dict[str, Any] = {
        "model": shape.name,
        "engine": profile.name,
        "weights": precision.weights,
        "kv_cache": precision.kv,
        "workload": {"mean_input": load.mean_input, "mean_output": load.mean_output},
        "throughput_rps": sum(e.throughput_rps for e in estimates),
        "output_tok_s": sum(e.output_tok_s for e in estimates),
        "batch_latency_s": max(e.batch_latency_s for e in estimates),
        "max_concurrency": sum(e.max_concurrency for e in estimates),
        "kv_blocks": sum(e.kv_blocks for e in estimates),
        "ttft_s": max(e.ttft_s for e in estimates),
        "tpot_s": max(e.tpot_s for e in estimates),
        "stages": [{"pipeline": k, **stage} for k, pipe in enumerate(pipelines) for stage in pipe["stages"]],
        "pipelines": pipelines,
    }
    if job is not None:
        result |= {
            "makespan_s": job.makespan_s,
            "job_rps": job.job_rps,
            "job_output_tok_s": job.output_tok_s,
            "job_ttft_s": job.ttft_mean_s,
        }
        for pipe, run in zip(pipelines, job.pipelines, strict=True):
            pipe |= {"requests": run.requests, "finish_s": run.finish_s, "preemptions": run.preemptions}
    return result


def _pipeline_json(e: PipelineEstimate) -> dict[str, Any]:
    return {
        "throughput_rps": e.throughput_rps,
        "output_tok_s": e.output_tok_s,
        "batch_latency_s": e.batch_latency_s,
        "max_concurrency": e.max_concurrency,
        "kv_blocks": e.kv_blocks,
        "ttft_s": e.ttft_s,
        "tpot_s": e.tpot_s,
        "binds": e.binds,
        "stages": [
            {
                "instance_type": s.spec.instance_type or None,
                "gpu": s.spec.gpu.name,
                "gpus": s.spec.tp,
                "tp": s.spec.tp,
                "layers": s.spec.layers,
                "first_layer": s.spec.first,
                "prefill_s": s.prefill_s,
                "decode_s": s.decode_s,
                "step_s": s.step_s,
                "transfer_s": s.transfer_s,
                "utilisation": s.utilisation,
                "weight_gb_per_gpu": s.cost.weight_bytes / 1e9,
                "kv_tokens": s.cost.kv_tokens,
                "bottleneck": s.bottleneck,
            }
            for s in e.stages
        ],
    }


def _show(
    shape: ModelShape,
    profile: EngineProfile,
    precision: Precision,
    load: Workload,
    specs: Sequence[PipelineSpec],
    estimates: Sequence[PipelineEstimate],
    job: JobEstimate | None,
) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPED_WIDTH)
    console.print(
        f"{shape.name} ({precision.weights} weights, {precision.kv} KV cache) under {profile.name}, "
        f"{load.mean_input:.0f} tokens in, {load.mean_output:.0f} out"
    )
    for index, e in enumerate(estimates):
        table = Table(
            *("stage", "layers", "prefill ms", "decode ms", "send ms", "busy", "GB/GPU", "KV tokens", "mostly"),
            box=None,
        )
        for s in e.stages:
            table.add_row(
                s.spec.place,
                f"{s.spec.first}-{s.spec.end - 1}",
                f"{s.prefill_s * 1e3:.1f}",
                f"{s.decode_s * 1e3:.1f}",
                f"{s.transfer_s * 1e3:.1f}",
                f"{s.utilisation:.0%}",
                f"{s.cost.weight_bytes / 1e9:.1f}",
                f"{s.cost.kv_tokens:,}",
                s.bottleneck,
            )
        console.print(table)
        console.print(
            f"pipeline {index}: {e.throughput_rps:.3f} requests/s, {e.output_tok_s:.1f} output tokens/s, "
            f"{e.max_concurrency:.0f} at a time, first token {e.ttft_s:.2f} s, then {e.tpot_s * 1e3:.0f} ms each; "
            f"bound by {e.binds}"
        )
    if len(estimates) > 1:
        console.print(f"together {sum(e.throughput_rps for e in estimates):.3f} requests/s")
    if job is not None:
        ends = ", ".join(f"{run.finish_s:.0f} s" for run in job.pipelines)
        console.print(f"job: {job.makespan_s:.0f} s, {job.job_rps:.3f} requests/s; pipelines end after {ends}")


def _main() -> None:
    app = typer.Typer(add_completion=False)
    register(app)
    app()


if __name__ == "__main__":
    _main()

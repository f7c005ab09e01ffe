"""`shuntserve estimate`: what pipelines would deliver, from the catalogue alone."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shuntserve.core.catalog import Catalog
    from shuntserve.core.engine_profile import EngineProfile, Precision
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
    from shuntserve.cli.estimate_output import show, to_json
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
        show(shape, profile, precision, load, specs, estimates, job)
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


def _main() -> None:
    app = typer.Typer(add_completion=False)
    register(app)
    app()


if __name__ == "__main__":
    _main()

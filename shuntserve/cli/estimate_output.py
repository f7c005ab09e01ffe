"""What `shuntserve estimate` prints: JSON for programs, a table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shuntserve.core.engine_profile import EngineProfile, Precision
    from shuntserve.core.estimate import PipelineEstimate
    from shuntserve.core.finite_job import JobEstimate, PipelineSpec
    from shuntserve.core.model_shape import ModelShape
    from shuntserve.core.workload import Workload

_PIPED_WIDTH = 160
"""A program or a file that reads the table is given whole lines."""


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


def show(
    shape: ModelShape,
    profile: EngineProfile,
    precision: Precision,
    load: Workload,
    specs: Sequence[PipelineSpec],
    estimates: Sequence[PipelineEstimate],
    job: JobEstimate | None,
) -> None:
    """A table of stages for each pipeline, what binds it, and the job."""
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

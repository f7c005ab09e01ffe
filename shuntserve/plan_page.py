"""A plan as one self-contained HTML page: a bar per stage, as long as its share of the pipeline's period."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from shuntserve.drawing import SERIES, page, svg, table, text

if TYPE_CHECKING:
    from shuntserve.core.planning.plan import PlannedPipeline
    from shuntserve.fleet_plan import FleetPlan

_WIDTH, _LABEL, _ROW = 900, 300, 22

_STYLE = ".period { stroke: var(--ink); stroke-dasharray: 4 3; } .whole { min-width: 40rem; }"


def plan_page(answer: FleetPlan) -> str:
    """The page; it loads nothing from anywhere."""
    plan, wanted = answer.plan, answer.wanted
    types = sorted({stage.kind.instance_type for pipeline in plan.pipelines for stage in pipeline.stages})
    colour = {name: f"var({SERIES[number % len(SERIES)]})" for number, name in enumerate(types)}
    summary = (
        f"{plan.throughput_rps:.3f} requests/s for ${plan.usd_per_hour:.2f} an hour; "
        f"no plan is more than {plan.gap:.2%} better"
    )
    legend = " ".join(f'<span style="color:{colour[name]}">&#9632;</span> {escape(name)}&nbsp;' for name in types)
    parts = [
        f"<h1>{escape(wanted.model.name)}: {escape(summary)}</h1>",
        "<p>Each bar is what a stage does with one micro-batch in steady state, decoding and prefill together. A round",
        " of the pipeline cannot be shorter than its longest bar; the dashed line is the period it reaches.</p>",
        f"<p>{legend}</p>",
    ]
    for number, pipeline in enumerate(plan.pipelines):
        parts.append(_pipeline(answer, number, pipeline, colour))
    rows = [
        (escape(pool.name), f"{used} of {pool.count}", f"{pool.usd_per_h:.3f}", f"{more:.3f} requests/s")
        for pool, used, more in zip(wanted.pools, plan.machines, plan.one_more_rps, strict=True)
    ]
    parts.append("<h2>Pools</h2>" + table(("pool", "used", "$ an hour each", "one more adds"), rows))
    return page(f"Plan for {wanted.model.name}", "\n".join(parts), _STYLE)


def _pipeline(answer: FleetPlan, number: int, pipeline: PlannedPipeline, colour: dict[str, str]) -> str:
    estimate = answer.times.estimate(pipeline.seats)
    in_flight = min(float(len(estimate.stages)), estimate.max_concurrency)
    period_s = estimate.cycle_s / in_flight
    scale = (_WIDTH - _LABEL - 90) / max(period_s, *(stage.step_s for stage in estimate.stages))
    height = _ROW * len(pipeline.stages) + 24
    end = _LABEL + period_s * scale
    title = f"Pipeline {number}: {pipeline.throughput_rps:.3f} requests/s, {estimate.max_concurrency:.0f} seats"
    lines = [
        f"<h2>{title}, bound by {escape(estimate.binds)}</h2>",
    ]
    marks: list[str] = []
    for row, (stage, cost) in enumerate(zip(pipeline.stages, estimate.stages, strict=True)):
        y = row * _ROW
        label = f"{answer.wanted.pools[stage.pool].name} #{stage.machine}, tp {stage.kind.tp}, {stage.layers} layers"
        marks.append(text(0, y + 15, label))
        marks.append(
            f'<rect x="{_LABEL}" y="{y + 3}" width="{cost.step_s * scale:.1f}" height="{_ROW - 6}" '
            f'fill="{colour[stage.kind.instance_type]}"><title>{cost.step_s * 1e3:.2f} ms, then '
            f"{cost.transfer_s * 1e3:.2f} ms to the next stage</title></rect>"
        )
        marks.append(text(_LABEL + cost.step_s * scale + 5, y + 15, f"{cost.step_s * 1e3:.1f} ms"))
    marks.append(f'<line class="period" x1="{end:.1f}" x2="{end:.1f}" y1="0" y2="{height - 20}"/>')
    marks.append(text(end - 60, height - 6, f"period {period_s * 1e3:.1f} ms", css="soft"))
    drawn = svg(marks, _WIDTH, height, f"Stage times of pipeline {number}")
    lines.append(f'<div class="scroll" tabindex="0">{drawn}</div>')
    return "\n".join(lines)

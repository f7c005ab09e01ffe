"""A plan as one self-contained HTML page: a bar per stage, as long as its share of the pipeline's period."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shuntserve.core.planning.plan import PlannedPipeline
    from shuntserve.fleet_plan import FleetPlan

_COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#9d755d", "#eeca3b")
_WIDTH, _LABEL, _ROW = 900, 300, 22

_STYLE = """body{font:14px system-ui,sans-serif;margin:2em;color:#222}
h1{font-size:1.3em}h2{font-size:1.05em;margin-top:1.6em}
svg{display:block}text{font-size:12px;fill:#222}.period{stroke:#222;stroke-dasharray:4 3}.axis{fill:#666}
table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ddd}"""


def plan_page(answer: FleetPlan) -> str:
    """The page; it loads nothing from anywhere."""
    plan, wanted = answer.plan, answer.wanted
    types = sorted({stage.kind.instance_type for pipeline in plan.pipelines for stage in pipeline.stages})
    colour = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(types)}
    summary = (
        f"{plan.throughput_rps:.3f} requests/s for ${plan.usd_per_hour:.2f} an hour; "
        f"no plan is more than {plan.gap:.2%} better"
    )
    legend = " ".join(f'<span style="color:{colour[name]}">&#9632;</span> {escape(name)}&nbsp;' for name in types)
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        f"<title>Plan for {escape(wanted.model.name)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(wanted.model.name)}: {escape(summary)}</h1>",
        "<p>Each bar is what a stage does with one micro-batch in steady state, decoding and prefill together. A round",
        " of the pipeline cannot be shorter than its longest bar; the dashed line is the period it reaches.</p>",
        f"<p>{legend}</p>",
    ]
    for number, pipeline in enumerate(plan.pipelines):
        parts.append(_pipeline(answer, number, pipeline, colour))
    parts.append(
        "<h2>Pools</h2><table><tr><th>pool</th><th>used</th><th>$ an hour each</th><th>one more adds</th></tr>"
    )
    for pool, used, more in zip(wanted.pools, plan.machines, plan.one_more_rps, strict=True):
        parts.append(
            f"<tr><td>{escape(pool.name)}</td><td>{used} of {pool.count}</td><td>{pool.usd_per_h:.3f}</td>"
            f"<td>{more:.3f} requests/s</td></tr>"
        )
    parts.append("</table></body></html>")
    return "\n".join(parts)


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
        f'<svg width="{_WIDTH}" height="{height}" role="img" aria-label="Stage times of pipeline {number}">',
    ]
    for row, (stage, cost) in enumerate(zip(pipeline.stages, estimate.stages, strict=True)):
        y = row * _ROW
        label = f"{answer.wanted.pools[stage.pool].name} #{stage.machine}, tp {stage.kind.tp}, {stage.layers} layers"
        lines.append(f'<text x="0" y="{y + 15}">{escape(label)}</text>')
        lines.append(
            f'<rect x="{_LABEL}" y="{y + 3}" width="{cost.step_s * scale:.1f}" height="{_ROW - 6}" '
            f'fill="{colour[stage.kind.instance_type]}"><title>{cost.step_s * 1e3:.2f} ms, then '
            f"{cost.transfer_s * 1e3:.2f} ms to the next stage</title></rect>"
        )
        lines.append(f'<text x="{_LABEL + cost.step_s * scale + 5:.1f}" y="{y + 15}">{cost.step_s * 1e3:.1f} ms</text>')
    lines.append(f'<line class="period" x1="{end:.1f}" x2="{end:.1f}" y1="0" y2="{height - 20}"/>')
    lines.append(f'<text class="axis" x="{end - 60:.1f}" y="{height - 6}">period {period_s * 1e3:.1f} ms</text></svg>')
    return "\n".join(lines)

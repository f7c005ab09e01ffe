"""The report page's sections about machines: what was interrupted, who lived when, which plan ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from shuntserve.drawing import table
from shuntserve.job import report_charts
from shuntserve.job.report_charts import KIND_NAMES, Clock, Mark
from shuntserve.readable import duration, usd

Json = Mapping[str, Any]

_LISTED = 200
"""Interruptions in the page's table; `report.json` has more."""
_LANES = 40


def section(title: str, *parts: str) -> str:
    """A part of the page under a heading."""
    slug = title.lower().replace(" ", "-")
    return f'<section aria-labelledby="{slug}"><h2 id="{slug}">{escape(title)}</h2>{"".join(parts)}</section>'


def note(words: str) -> str:
    """A soft line of text."""
    return f'<p class="note">{escape(words)}</p>'


def words_of(one: Json) -> str:
    where = one["node"] or (f"worker {one['worker'][:8]}" if one["worker"] else "")
    parts = [KIND_NAMES.get(one["kind"], one["kind"]), where, one["detail"]]
    return f"{duration(one['at_s'])}: " + ", ".join(part for part in parts if part)


def _where(one: Json) -> str:
    name = one["node"] or (one["worker"] or "")[:8]
    return f'<code class="id">{escape(name)}</code> <span class="detail">{escape(one["detail"])}</span>'


def interruptions(report: Json, clock: Clock, marks: Sequence[Mark]) -> str:
    found, machines = report["interruptions"], report["machines"]
    listed = found["listed"]
    parts = []
    if not found["total"] and not found["unseen"]:
        parts.append(note("Nothing was interrupted."))
    if found["unseen"]:
        parts.append(note(f"{found['unseen']:,} more happened while nobody watched; when is not known."))
    parts += _lanes(machines, listed, clock, marks)
    if listed:
        rows = [
            (
                escape(duration(one["at_s"])),
                f'<span class="key {escape(one["kind"])}"></span>{escape(KIND_NAMES.get(one["kind"], one["kind"]))}',
                _where(one),
                escape(one["time"]),
            )
            for one in listed[:_LISTED]
        ]
        parts.append(f'<div class="happened">{table(("after", "what", "where", "time"), rows)}</div>')
        if found["total"] > len(rows):
            parts.append(note(f"{found['total'] - len(rows):,} more are in report.json or were only counted."))
    kind = "node" if any(one["kind"] == "node" for one in machines["lanes"]) else "worker"
    return section("Machines and interruptions" if kind == "node" else "Workers and interruptions", *parts)


def plan_table(report: Json) -> str:
    plan = report["plan"]
    if plan is None:
        return ""
    rows = [
        (
            f"<code>{escape(str(pipeline['id']))}</code>",
            f"{pipeline['generation']:,}",
            " → ".join(_stage(stage) for stage in pipeline["stages"]),
        )
        for pipeline in plan["pipelines"][:_LANES]
    ]
    words = f"Plan {plan['number']:,}, the newest of {plan['plans']:,} that ran anything."
    if len(plan["pipelines"]) > len(rows):
        words += f" {len(plan['pipelines']) - len(rows):,} more pipelines are in report.json."
    return section("Plan", note(words), table(("pipeline", "generation", "stages"), rows, numeric=(1,)))


def _stage(stage: Json) -> str:
    layers = "all layers" if stage["layers"] is None else f"layers {stage['layers'][0]}–{stage['layers'][1] - 1}"
    tp = f", TP {stage['tp']}" if stage["tp"] > 1 else ""
    return f"<code>{escape(stage['node'])}</code> ({layers}{tp})"


def _lanes(machines: Json, listed: Sequence[Json], clock: Clock, marks: Sequence[Mark]) -> list[str]:
    lanes = [one for one in machines["lanes"] if one["begin_s"] is not None][:_LANES]
    drawn = []
    for one in lanes:
        mine = [
            mark
            for mark, event in zip(marks, listed, strict=True)
            if one["id"] in (event["node"] if one["kind"] == "node" else event["worker"], event["node"])
        ]
        end_s = one["end_s"] if one["end_s"] is not None else clock.length_s
        lived = f"{duration(max(0.0, end_s - one['begin_s']))}, {one['state']}"
        if one["kind"] == "node":
            words = f"{one['id']}: {lived}, {usd(one['usd_per_h'])}/h, {one['tokens']:,} tokens"
            who = f"<code>{escape(one['id'])}</code> {escape(one['place'])}"
        else:
            words = f"{one['id'][:8]}: {lived}, {one['rows']:,} rows, {one['tokens']:,} tokens"
            who = f"<code>{escape(one['id'][:8])}</code> {escape(one['place'])}"
        drawn.append(report_charts.lane(clock, who, one["begin_s"], end_s, one["end_s"] is not None, words, mine))
    if not drawn:
        return []
    drawn.append(f'<div class="lane lane-axis"><span class="who"></span><div class="axis">{clock.axis()}</div></div>')
    if machines["total"] > len(lanes):
        drawn.append(note(f"and {machines['total'] - len(lanes):,} more"))
    return ["".join(drawn)]

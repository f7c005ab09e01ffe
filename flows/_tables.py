"""What a job's status says, as the rows and texts of Prefect artifacts. No prompt and no output is ever among them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]

_NOT_SHOWN = ("schema_version", "writer", "approval_needed")
_KEY = re.compile(r"[^a-z0-9]+")


def artifact_key(job_name: str, what: str) -> str:
    """The same for every run of a job of this name, so that Prefect shows them as versions of one thing."""
    return f"shuntserve-{_KEY.sub('-', job_name.lower()).strip('-') or 'job'}-{what}"


def percent(status: Mapping[str, Any]) -> float:
    """Share of rows that have ended, in percent."""
    rows = status["rows"]
    total = rows.get("total") or 0
    return round(100.0 * (rows.get("ended") or 0) / total, 1) if total else 0.0


def progress_text(status: Mapping[str, Any]) -> str:
    """One line on how far the job is."""
    rows, cost, finish = status["rows"], status["cost"], status["finish"]
    parts = [f"{status['state']}: {_number(rows.get('ended'))} of {_number(rows.get('total'))} rows"]
    if rows.get("rejected"):
        parts.append(f"{_number(rows['rejected'])} rejected")
    if cost.get("spent_usd"):
        parts.append(f"{_usd(cost['spent_usd'])} spent")
    if finish.get("eta"):
        parts.append(f"expected to end {finish['eta']}")
    return ", ".join(parts)


def plan_rows(status: Mapping[str, Any]) -> list[Row]:
    """What is planned and what stands: the proposal's own numbers, then a row for each machine."""
    proposal = (status.get("approval") or {}).get("proposal") or {}
    planned = [{"what": name.replace("_", " "), "value": _cell(value)} for name, value in _flat(proposal)]
    nodes = [
        {"what": f"node {node['id']}", "value": f"{node['pool']}, {node['market']}, {node['state']}"}
        for node in status.get("nodes") or ()
    ]
    return planned + nodes


def proposal_text(status: Mapping[str, Any]) -> str:
    """What somebody who is asked to agree needs to know, as Markdown."""
    cap, rows = status["cost"].get("cap_usd"), _number(status["rows"].get("total"))
    return "\n".join(
        [
            f"**{status['name']}** ({rows} rows) waits for approval to launch machines.",
            "",
            f"Cost cap: {_usd(cap)}." if cap else "No cost cap is set.",
            "",
            "| plan | |",
            "|---|---|",
            *(f"| {row['what']} | {row['value']} |" for row in plan_rows(status)),
        ]
    )


def cost_rows(status: Mapping[str, Any]) -> list[Row]:
    """Dollars: spent, forecast, cap, and what on-demand machines would have cost."""
    cost = status["cost"]
    named = (
        ("spent", "spent_usd"),
        ("forecast", "forecast_usd"),
        ("cap", "cap_usd"),
        ("the same on-demand", "on_demand_usd"),
        ("now, per hour", "usd_per_h"),
    )
    return [{"what": what, "usd": cost[name]} for what, name in named if cost.get(name) is not None]


def interruption_rows(status: Mapping[str, Any]) -> list[Row]:
    """The interruptions in order of time."""
    found = status.get("interruptions") or ()
    return [
        {"time": one["time"], "kind": one["kind"], "node": one.get("node") or "", "detail": one.get("detail") or ""}
        for one in sorted(found, key=lambda one: str(one["time"]))
    ]


def reject_rows(batches: Iterable[Sequence[Mapping[str, Any]]], most: int = 20) -> list[Row]:
    """Rejects by code: how many, and where the first one is. Of at most `most` codes, the commonest first."""
    counts: dict[str, int] = {}
    first: dict[str, str] = {}
    for batch in batches:
        for row in batch:
            code = str(row["code"])
            counts[code] = counts.get(code, 0) + 1
            first.setdefault(code, f"{row['source_file']}, row {row['source_row']}")
    ordered = sorted(counts, key=lambda code: (-counts[code], code))[:most]
    return [{"code": code, "rows": counts[code], "first": first[code]} for code in ordered]


def report_text(status: Mapping[str, Any], report: Mapping[str, Any] | None) -> str:
    """The end of a job in Markdown: its numbers, and where the rest is."""
    rows, tokens, cost = status["rows"], status["tokens"], status["cost"]
    answered = f"{_number(rows.get('ok'))} of {_number(rows.get('total'))} rows answered"
    generated = f"{_number(tokens.get('generated'))} tokens generated"
    kept, again = _number(tokens.get("kept")), _number(tokens.get("regenerated"))
    lines = [
        f"# {status['name']}: {status['state']}",
        f"{answered}, {_number(rows.get('rejected'))} rejected.",
        f"{generated}, {kept} kept across interruptions, {again} generated again.",
        f"{_usd(cost.get('spent_usd'))} spent; on-demand machines: {_usd(cost.get('on_demand_usd'))}.",
        f"Output: `{status['output']}`",
    ]
    if report is not None:
        lines.append(f"The report lies beside the job: `jobs/{status['id']}/report.html`.")
    if status.get("next_step"):
        lines.append(f"Next: {status['next_step']}")
    return "\n\n".join(lines)


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, item in value.items():
        if name in _NOT_SHOWN or item is None:
            continue
        if isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", item


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, list | tuple):
        return "; ".join(_cell(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {_cell(item)}" for name, item in value.items())
    return str(value)


def _number(value: Any) -> str:
    return "?" if value is None else f"{value:,}"


def _usd(value: Any) -> str:
    return "unknown" if value is None else f"${value:,.2f}"

"""A report as one HTML page that needs nothing but a browser: no network, no script, light and dark, desk and phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from shuntserve import drawing
from shuntserve.core.states import JobState
from shuntserve.drawing import table
from shuntserve.job import report_charts
from shuntserve.job.report_charts import Clock, Curve, Mark
from shuntserve.job.report_machines import interruptions, note, plan_table, section, words_of
from shuntserve.readable import compact, duration, moment, share, size, usd

_LEAST_CHART_S = 1.0

_STATES = {
    JobState.COMPLETED: ("good", "Completed"),
    JobState.COMPLETED_WITH_REJECTS: ("warn", "Completed with rejects"),
    JobState.PARTIAL: ("warn", "Partial"),
    JobState.FAILED: ("bad", "Failed"),
}

_STYLE = """
.eyebrow { color: var(--soft); font-size: .85rem; margin: 0 0 .2rem; }
.state { display: inline-block; font-weight: 600; font-size: .9rem; padding: .12rem .65rem; border-radius: 1rem;
  border: 1.5px solid currentColor; margin: 0 .6rem .4rem 0; white-space: nowrap; }
.state.good { color: var(--good); } .state.warn { color: var(--warn); } .state.bad { color: var(--bad); }
.state.soft { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .7rem; margin: 1.2rem 0; }
.tile { background: var(--card); border-radius: .5rem; padding: .75rem .95rem; min-width: 0; }
.tile dt { color: var(--soft); font-size: .84rem; } .tile dd { margin: 0; }
.tile .big { font-size: 1.45rem; font-weight: 650; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile .small { color: var(--soft); font-size: .84rem; overflow-wrap: anywhere; }
dl { margin: 0; } .facts { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; }
.happened td:first-child, .happened td:last-child, .id { white-space: nowrap; } .detail { color: var(--soft); }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 0 3rem; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--soft); }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
@media (max-width: 40rem) { .happened th:last-child, .happened td:last-child { display: none; }
  .happened { font-size: .86rem; } .pair { grid-template-columns: 1fr; }
  body { padding: 1.2rem .9rem 3rem; } .facts { grid-template-columns: 1fr; }
  .facts dd { margin-bottom: .4rem; } .tiles { grid-template-columns: 1fr 1fr; gap: .5rem; }
  .tile { padding: .6rem .75rem; } .tile .big { font-size: 1.2rem; } }
@media print { body { max-width: none; padding: 0; } .tile { border: 1px solid var(--line); } }
"""

Json = Mapping[str, Any]


def render(report: Json) -> str:
    """The page of a `report.json`."""
    clock = Clock(max(_LEAST_CHART_S, report["time"]["elapsed_s"]), report["throughput"]["bin_s"])
    marks = [Mark(one["at_s"], one["kind"], words_of(one)) for one in report["interruptions"]["listed"]]
    sections = [
        _throughput(report, clock, marks),
        _phases(report, clock),
        interruptions(report, clock, marks),
        plan_table(report),
        f'<div class="pair">{_rows(report)}{_tokens(report)}</div>',
        _cost(report),
        _outputs(report),
        _facts(report),
    ]
    name = report["job"]["name"] or report["job"]["id"]
    body = f"{_head(report, name)}\n<main>\n" + "\n".join(part for part in sections if part) + "\n</main>"
    return drawing.page(f"{name}: report", body, report_charts.STYLE + _STYLE)


def _facts_list(facts: Sequence[tuple[str, str]]) -> str:
    """(name, markup) as a list of facts."""
    return '<dl class="facts">' + "".join(f"<dt>{escape(a)}</dt><dd>{b}</dd>" for a, b in facts) + "</dl>"


# -- head --------------------------------------------------------------------------------------------------------------


def _head(report: Json, name: str) -> str:
    job, time = report["job"], report["time"]
    colour, state = _STATES.get(job["state"], ("soft", "Under way"))
    if job["stopped_by"]:
        state += f" ({job['stopped_by']})"
    when = moment(time["began_unix_s"])
    when += f" → {moment(time['began_unix_s'] + time['elapsed_s'])}" if time["ended"] else ", not ended yet"
    return (
        f'<header><p class="eyebrow">ShuntServe report</p><h1>{escape(name)}</h1>'
        f'<p><span class="state {colour}">{escape(state)}</span> <code>{escape(job["id"])}</code></p>'
        f'<p class="note">{escape(when)} · {escape(_short_model(job["model"]))}</p>{_tiles(report)}</header>'
    )


def _short_model(model: str) -> str:
    return model.rstrip("/").rsplit("/", 1)[-1] if model.startswith("/") else model


def _tiles(report: Json) -> str:
    rows, tokens, speed = report["rows"], report["tokens"], report["throughput"]
    interruptions, cost = report["interruptions"], report["cost"]
    tiles = [
        ("Rows answered", f"{rows['ok']:,}", f"of {rows['total']:,}; {rows['rejected']:,} rejected"),
        ("Elapsed", duration(report["time"]["elapsed_s"]), f"{duration(speed['running_s'])} generating"),
    ]
    if speed["tokens_per_s"] is not None:
        tiles.append(
            ("Throughput", f"{compact(speed['tokens_per_s'])} tok/s", f"{compact(speed['rows_per_s'])} rows/s")
        )
    kept = f"{tokens['kept']:,} tokens kept"
    lost = "" if tokens["regenerated"] is None else f", {tokens['regenerated']:,} made again"
    tiles.append(("Interruptions", f"{interruptions['count'] + interruptions['unseen']:,}", kept + lost))
    if cost is not None:
        beside = "" if cost["on_demand_usd"] is None else f"on demand {usd(cost['on_demand_usd'])}"
        tiles.append(("Cost", usd(cost["spent_usd"]), beside))
    drawn = "".join(
        f'<div class="tile"><dt>{escape(title)}</dt><dd class="big">{escape(big)}</dd>'
        f'<dd class="small">{escape(small)}</dd></div>'
        for title, big, small in tiles
    )
    return f'<dl class="tiles">{drawn}</dl>'


# -- over time ---------------------------------------------------------------------------------------------------------


def _throughput(report: Json, clock: Clock, marks: Sequence[Mark]) -> str:
    speed = report["throughput"]
    series = speed["series"]
    if all(value is None for value in series["tokens_per_s"]):
        return ""
    curves = [
        (Curve("generated tokens a second", series["tokens_per_s"], "--one"), True),
        (Curve("workers alive", series["workers"], "--four", lambda value: f"{value:g}", steps=True), False),
        (
            Curve("rows ended", series["rows_ended"], "--three", scale=(0.0, max(1.0, float(report["rows"]["total"])))),
            False,
        ),
    ]
    if any(value for value in series["spent_usd"]):
        curves.append((Curve("dollars spent", series["spent_usd"], "--two", lambda value: f"${compact(value)}"), False))
    last = curves[-1][0]
    charts = [report_charts.chart(clock, curve, marks, tall=tall, axis=tall or curve is last) for curve, tall in curves]
    words = (
        f"Time since {moment(report['time']['began_unix_s'])}; each point is the mean of {duration(speed['bin_s'])}."
    )
    if marks:
        words += " Dashed lines are interruptions."
    return section(
        "Throughput",
        note(words),
        report_charts.keys_of(report["interruptions"]["by_kind"]),
        *charts,
        _series_table(report),
    )


def _series_table(report: Json) -> str:
    """The same as numbers, for those who do not see the charts: at most 40 lines."""
    speed = report["throughput"]
    series = speed["series"]
    step = max(1, -(-len(series["tokens_per_s"]) // 40))
    rows = []
    for index in range(0, len(series["tokens_per_s"]), step):
        tokens, workers, ended = (series[name][index] for name in ("tokens_per_s", "workers", "rows_ended"))
        rows.append(
            (
                escape(duration(index * speed["bin_s"])),
                "–" if tokens is None else f"{tokens:,.1f}",
                "–" if workers is None else f"{workers:,}",
                "–" if ended is None else f"{ended:,}",
            )
        )
    found = table(("after", "tokens/s", "workers", "rows ended"), rows, numeric=(1, 2, 3))
    return f"<details><summary>These curves as numbers</summary>{found}</details>"


def _phases(report: Json, clock: Clock) -> str:
    time = report["time"]
    if not time["phases"]:
        return ""
    return section("Time per phase", report_charts.phase_strip(clock, time["phases"], time["unattended_s"]))


# -- sums --------------------------------------------------------------------------------------------------------------


def _rows(report: Json) -> str:
    rows = report["rows"]
    stopped = rows["stopped"] or 0
    rejected = rows["rejected"] - stopped
    left = rows["total"] - rows["ended"]
    words = f"Of {rows['total']:,} rows {rows['ok']:,} were answered and {rows['rejected']:,} rejected"
    shares = [("answered", rows["ok"], "--three"), ("rejected", rejected, "--bad"), ("stopped", stopped, "--warn")]
    parts = [_shares([*shares, ("not ended yet", left, "--line")], words)]
    if rows["by_code"]:
        lines = [
            (f"<code>{escape(one['code'])}</code>", f"{one['rows']:,}", share(one["rows"], rows["total"]))
            for one in rows["by_code"]
        ]
        parts.append(table(("reject code", "rows", "of all rows"), lines, numeric=(1, 2)))
    return section("Rows", *parts)


def _shares(shares: Sequence[tuple[str, int, str]], words: str) -> str:
    """(name, count, colour) as a bar with its legend; all but the first are left out where there are none."""
    whole = sum(count for _, count, _ in shares)
    shown = [one for index, one in enumerate(shares) if one[1] or index == 0]
    items = "".join(
        f'<li><span class="swatch" style="background:var({colour})"></span>{escape(name)}: {count:,} '
        f"({share(count, whole)})</li>"
        for name, count, colour in shown
    )
    return f'{report_charts.parts_of_whole(shown, words)}<ul class="keys">{items}</ul>'


def _tokens(report: Json) -> str:
    tokens = report["tokens"]
    facts = [("prompt tokens", f"{tokens['prompt']:,}")]
    if tokens["completion"] is not None:
        facts.append(("completion tokens in the output", f"{tokens['completion']:,}"))
    facts.append(("generated", f"{tokens['generated']:,}, as workers last reported"))
    if tokens["resumed_rows"]:
        facts.append(("rows that went on after an interruption", f"{tokens['resumed_rows']:,}"))
    again, bar = tokens["regenerated"], ""
    if again is not None and tokens["kept"] + again > 0:
        words = f"{tokens['kept']:,} tokens kept through interruptions, {again:,} generated again"
        bar = note("Tokens that interruptions put at stake:") + _shares(
            [("kept", tokens["kept"], "--three"), ("generated again", again, "--bad")], words
        )
    return section("Tokens", bar, _facts_list([(name, escape(words)) for name, words in facts]))


def _cost(report: Json) -> str:
    cost = report["cost"]
    if cost is None:
        return ""
    rows = [("spent", cost["spent_usd"], "--one")]
    if cost["predicted_usd"] is not None:
        rows.append(("predicted", cost["predicted_usd"], "--five"))
    if cost["on_demand_usd"] is not None:
        rows.append(("on demand", cost["on_demand_usd"], "--soft"))
    most = max(amount for _, amount, _ in rows)
    bars = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="n">{usd(amount)}</td><td style="width:70%">'
        + report_charts.share_bar(amount / most if most > 0 else 0.0, colour, f"{name} {usd(amount)}")
        + "</td></tr>"
        for name, amount, colour in rows
    )
    parts = [f'<table class="money"><tbody>{bars}</tbody></table>']
    facts = []
    if cost["saved_usd"] is not None and cost["on_demand_usd"]:
        facts.append(
            ("saved against on demand", f"{usd(cost['saved_usd'])} ({share(cost['saved_usd'], cost['on_demand_usd'])})")
        )
    if cost["usd_per_million_tokens"] is not None:
        facts.append(("per million tokens", usd(cost["usd_per_million_tokens"])))
    parts.append(_facts_list([(name, escape(words)) for name, words in facts]))
    if cost["by_pool"]:
        lines = [(escape(one["pool"]), f"{one['hours']:,.2f}", escape(usd(one["usd"]))) for one in cost["by_pool"]]
        parts.append(table(("pool", "machine hours", "cost"), lines, numeric=(1, 2)))
    return section("Cost", *parts)


# -- output ------------------------------------------------------------------------------------------------------------


def _link(url: str, words: str) -> str:
    """A link where a browser can follow it."""
    shown = f"<code>{escape(words)}</code>"
    return f'<a href="{escape(url)}">{shown}</a>' if url.startswith("file://") else shown


def _outputs(report: Json) -> str:
    outputs = report["outputs"]
    url = outputs["url"] or report["job"]["output"]
    if not url:
        return ""
    parts = [f"<p>{_link(url, url)}</p>"]
    files = [(kind, part) for kind in ("data", "rejects") for part in outputs[kind]]
    if files:
        lines = [
            (_link(f"{url.rstrip('/')}/{part['path']}", part["path"]), f"{part['rows']:,}", escape(size(part["bytes"])))
            for _, part in files
        ]
        parts.append(table(("file", "rows", "size"), lines, numeric=(1, 2)))
        if outputs["files"] > len(files):
            parts.append(note(f"and {outputs['files'] - len(files):,} more, all named in _manifest.json"))
    return section("Output", *parts)


def _facts(report: Json) -> str:
    job = report["job"]
    facts = [
        ("model", f"<code>{escape(job['model'])}</code>"),
        ("revision", escape(job["revision"] or "–")),
        ("weights (SHA-256)", f"<code>{escape(job['model_sha256'])}</code>"),
        ("submitted with", escape(f"ShuntServe {job['package_version']}, {job['engine_version'] or 'no engine'}")),
        ("input files", f"{job['inputs']:,}"),
    ]
    if job.get("parent"):
        facts.append(("retry of", f"<code>{escape(job['parent'])}</code>"))
    return section("Made with", _facts_list(facts))

"""The charts of the report page: quantities over time with interruptions marked, phases, machines, parts of a whole.

Charts over time are SVG stretched to their box; scales, labels and markers are HTML laid over it, so that they stay as
large on a phone as on a desk. Each says in words what it shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from shuntserve.drawing import stretched, ticks, time_ticks
from shuntserve.readable import compact, duration

_WIDE, _HIGH = 1000.0, 100.0
KIND_NAMES = {
    "notice": "interruption notice",
    "rebalance": "rebalance recommendation",
    "node_lost": "machine lost",
    "worker_killed": "worker killed",
    "engine_lost": "engine lost",
}
_PHASE_COLOURS = {"ingest": "--two", "plan": "--four", "run": "--one", "finalize": "--three"}

STYLE = """
.chart { position: relative; margin: 2.6rem 0 2.2rem 3.4rem; }
.chart + .chart { margin-top: 3.6rem; } .chart.plain { margin-bottom: 1rem; }
.chart.plain + .chart { margin-top: 2.6rem; }
.chart > svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.chart svg * { vector-effect: non-scaling-stroke; }
.tall { height: 15rem; } .low { height: 5.5rem; }
.y, .x { position: absolute; font-size: .78rem; line-height: 1; color: var(--soft); white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.y { right: 100%; margin-right: .5rem; transform: translateY(50%); }
.x { top: 100%; margin-top: .45rem; transform: translateX(-50%); } .x:first-of-type { transform: none; }
.what { position: absolute; bottom: 100%; left: -3.4rem; margin-bottom: .85rem; font-size: .84rem; line-height: 1.1;
  font-weight: 600; }
.grid { stroke: var(--line); stroke-width: 1; } .idle { fill: var(--line); opacity: .55; }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; } .area { opacity: .14; }
.bin { fill: transparent; } .bin:hover { fill: var(--ink); opacity: .1; }
.interruption { stroke-width: 1.5; stroke-dasharray: 3 3; stroke: var(--bad); }
.interruption.notice, .interruption.rebalance { stroke: var(--warn); }
.interruption.engine_lost { stroke: var(--four); }
.pin { position: absolute; bottom: 100%; width: .62rem; height: .62rem; margin: 0 0 1px -.31rem;
  background: var(--bad); }
.key { display: inline-block; width: .62rem; height: .62rem; margin-right: .4rem; background: var(--bad); }
.notice.pin, .notice.key, .rebalance.pin, .rebalance.key { background: var(--warn); transform: rotate(45deg); }
.rebalance.pin, .rebalance.key { background: var(--paper); border: 2px solid var(--warn); }
.engine_lost.pin, .engine_lost.key { background: var(--four); border-radius: 50%; }
.node_lost.pin, .node_lost.key { clip-path: polygon(50% 100%, 0 0, 100% 0); }
.keys { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; margin: 0 0 .4rem; padding: 0; list-style: none;
  font-size: .87rem; } .keys li { white-space: nowrap; }
.swatch { display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem; border-radius: 2px;
  vertical-align: -.05rem; }
.strip { height: 1.7rem; margin: .7rem 0 1.9rem; position: relative; background: var(--card); }
.strip > svg, .lane svg { width: 100%; height: 100%; display: block; }
.whole-bar { height: 1.1rem; margin: .7rem 0 .5rem; background: var(--card); }
.share-bar { height: .9rem; margin-top: .3rem; } .share-bar > svg,
.whole-bar > svg { width: 100%; height: 100%; display: block; }
.lane { display: grid; grid-template-columns: 15rem 1fr; gap: .8rem; align-items: center; margin: .15rem 0;
  font-size: .84rem; }
.lane .who { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.lane .bar { height: 1.15rem; background: var(--card); position: relative; }
.lane .pin { top: 50%; bottom: auto; margin: -.31rem 0 0 -.31rem; outline: 2px solid var(--paper); }
.axis { position: relative; height: 1.2rem; } .axis .x { top: 0; margin-top: .1rem; }
.lane-axis { margin-bottom: 1.3rem; }
@media (max-width: 40rem) { .tall { height: 12rem; } .chart { margin-left: 2.9rem; } .what { left: -2.9rem; }
  .x.odd { display: none; } .lane { grid-template-columns: 1fr; gap: .1rem; margin: .5rem 0; }
  .lane-axis span.who { display: none; } }
@media print { .bin { display: none; } }
"""


@dataclass(frozen=True, slots=True)
class Mark:
    """An interruption on a chart over time."""

    at_s: float
    kind: str
    words: str


@dataclass(frozen=True, slots=True)
class Curve:
    """A quantity over time, one value a bin; None where nothing is known. `colour` is a CSS variable."""

    name: str
    values: Sequence[float | None]
    colour: str
    words: Callable[[float], str] = compact
    steps: bool = False
    scale: Sequence[float] | None = None
    """Values at which there are lines, from 0 to the top; made from the values when None."""


@dataclass(frozen=True, slots=True)
class Clock:
    """The time axis that all charts of a report share: bins of equal width from 0 to `length_s`."""

    length_s: float
    bin_s: float

    def percent(self, at_s: float) -> float:
        """Where a moment is, in percent of the width."""
        return 100 * min(1.0, max(0.0, at_s / self.length_s)) if self.length_s > 0 else 0.0

    def x(self, at_s: float) -> float:
        """The same in a stretched drawing's units."""
        return self.percent(at_s) * _WIDE / 100

    def axis(self) -> str:
        """Labels under a chart."""
        found = time_ticks(self.length_s) if self.length_s > 0 else [(0.0, "0")]
        return "".join(
            f'<span class="x{" odd" if index % 2 else ""}" style="left:{self.percent(at):.2f}%">{escape(label)}</span>'
            for index, (at, label) in enumerate(found)
        )


def chart(clock: Clock, curve: Curve, marks: Sequence[Mark], *, tall: bool, axis: bool = True) -> str:
    """One curve over time with every interruption as a line; a tall one has their symbols on top."""
    known = [value for value in curve.values if value is not None]
    scale = curve.scale or ticks(max(known, default=0.0), 4 if tall else 2)
    top = scale[-1]
    points = [(index, None if value is None else _HIGH * (1 - value / top)) for index, value in enumerate(curve.values)]
    parts = [f'<line class="grid" x1="0" x2="{_WIDE:.0f}" y1="{y:.1f}" y2="{y:.1f}"/>' for y in _heights(scale)]
    for stretch in _stretches(points):
        parts += _curve(clock, curve, stretch)
    parts += [
        f'<line class="interruption {escape(mark.kind)}" x1="{clock.x(mark.at_s):.1f}" x2="{clock.x(mark.at_s):.1f}" '
        f'y1="0" y2="{_HIGH:.0f}"/>'
        for mark in marks
    ]
    parts += [_bin(clock, curve, index, value) for index, value in enumerate(curve.values)]
    most = max(known, default=None)
    said = f"{curve.name} over {duration(clock.length_s)}"
    said += f", at most {curve.words(most)}" if most is not None else ", unknown"
    said += f"; {len(marks)} interruptions" if marks else ""
    labels = "".join(
        f'<span class="y" style="bottom:{100 * value / top:.1f}%">{escape(curve.words(value))}</span>'
        for value in scale
    )
    css = f"chart {'tall' if tall else 'low'}{'' if axis else ' plain'}"
    return (
        f'<div class="{css}"><span class="what">{escape(curve.name)}</span>'
        f"{stretched(parts, _WIDE, _HIGH, said)}{labels}{pinned(clock, marks) if tall else ''}"
        f"{clock.axis() if axis else ''}</div>"
    )


def _heights(scale: Sequence[float]) -> list[float]:
    return [_HIGH * (1 - value / scale[-1]) for value in scale]


def _stretches(points: Sequence[tuple[int, float | None]]) -> list[list[tuple[int, float]]]:
    """Runs of neighbouring bins of which something is known."""
    found: list[list[tuple[int, float]]] = []
    before = -2
    for index, y in points:
        if y is None:
            continue
        if index != before + 1:
            found.append([])
        found[-1].append((index, y))
        before = index
    return found


def _curve(clock: Clock, curve: Curve, stretch: Sequence[tuple[int, float]]) -> list[str]:
    """Line and area over one stretch: levels across whole bins for counts, else through their middles."""
    at: list[tuple[float, float]] = []
    for index, y in stretch:
        left, right = clock.x(index * clock.bin_s), clock.x((index + 1) * clock.bin_s)
        at += [(left, y), (right, y)] if curve.steps else [((left + right) / 2, y)]
    if not curve.steps:  # to the outer edges of the first and the last bin
        at = [(clock.x(stretch[0][0] * clock.bin_s), at[0][1]), *at]
        at += [(clock.x((stretch[-1][0] + 1) * clock.bin_s), at[-1][1])]
    path = " ".join(f"{x:.1f},{y:.2f}" for x, y in at)
    base = f"{at[0][0]:.1f},{_HIGH:.0f} {path} {at[-1][0]:.1f},{_HIGH:.0f}"
    return [
        f'<polygon class="area" points="{base}" fill="var({curve.colour})"/>',
        f'<polyline class="curve" points="{path}" stroke="var({curve.colour})"/>',
    ]


def _bin(clock: Clock, curve: Curve, index: int, value: float | None) -> str:
    """What the pointer finds over one bin."""
    left, right = clock.x(index * clock.bin_s), clock.x((index + 1) * clock.bin_s)
    words = "nobody worked" if value is None else curve.words(value)
    return (
        f'<rect class="bin" x="{left:.1f}" y="0" width="{right - left:.1f}" height="{_HIGH:.0f}">'
        f"<title>{escape(duration(index * clock.bin_s))}: {escape(words)}</title></rect>"
    )


def pinned(clock: Clock, marks: Sequence[Mark]) -> str:
    """Symbols of interruptions, each with its words."""
    return "".join(
        f'<span class="pin {escape(mark.kind)}" style="left:{clock.percent(mark.at_s):.2f}%" '
        f'title="{escape(mark.words)}"></span>'
        for mark in marks
    )


def keys_of(by_kind: Mapping[str, int]) -> str:
    """What the symbols mean, with how many there are."""
    items = "".join(
        f'<li><span class="key {escape(kind)}"></span>{escape(KIND_NAMES.get(kind, kind))}: {count:,}</li>'
        for kind, count in by_kind.items()
    )
    return f'<ul class="keys">{items}</ul>' if items else ""


def phase_strip(clock: Clock, phases: Sequence[Mapping[str, Any]], unattended_s: float) -> str:
    """When the job was in which phase; where nothing is drawn, nobody worked on it."""
    parts = [
        f'<rect x="{clock.x(a):.1f}" y="0" width="{max(1.5, clock.x(b) - clock.x(a)):.1f}" height="{_HIGH:.0f}" '
        f'fill="var({_PHASE_COLOURS.get(str(one["phase"]), "--five")})"><title>{escape(str(one["phase"]))}: '
        f"{escape(duration(b - a))}</title></rect>"
        for one in phases
        for a, b in one["spans_s"]
    ]
    items = [
        f'<li><span class="swatch" style="background:var({_PHASE_COLOURS.get(str(one["phase"]), "--five")})"></span>'
        f"{escape(str(one['phase']))}: {escape(duration(one['seconds']))}</li>"
        for one in phases
    ]
    if unattended_s >= 1:
        items.append(
            f'<li><span class="swatch" style="background:var(--card);outline:1px solid var(--line)"></span>'
            f"nobody at work: {escape(duration(unattended_s))}</li>"
        )
    said = "Phases over time: " + ", ".join(f"{one['phase']} {duration(one['seconds'])}" for one in phases)
    return (
        f'<div class="strip">{stretched(parts, _WIDE, _HIGH, said)}{clock.axis()}</div>'
        f'<ul class="keys">{"".join(items)}</ul>'
    )


def lane(clock: Clock, who: str, begin_s: float, end_s: float, ended: bool, words: str, marks: Sequence[Mark]) -> str:
    """One machine's or worker's life as a bar, with what happened to it. `who` is markup."""
    left, right = clock.x(begin_s), clock.x(end_s)
    bar = (
        f'<rect x="{left:.1f}" y="15" width="{max(2.0, right - left):.1f}" height="70" fill="var(--one)" '
        f'opacity="{0.55 if ended else 0.9}"><title>{escape(words)}</title></rect>'
    )
    return (
        f'<div class="lane"><span class="who">{who}</span><div class="bar">{stretched([bar], _WIDE, _HIGH, words)}'
        f"{pinned(clock, marks)}</div></div>"
    )


def parts_of_whole(parts: Sequence[tuple[str, float, str]], label: str) -> str:
    """(name, amount, colour) as one bar of which each is its share. What is there at all is wide enough to be seen."""
    whole = sum(amount for _, amount, _ in parts)
    x, drawn = 0.0, []
    for name, amount, colour in parts:
        if amount <= 0 or whole <= 0:
            continue
        width = max(3.0, _WIDE * amount / whole)
        drawn.append(
            f'<rect x="{min(x, _WIDE - width):.1f}" y="0" width="{width:.1f}" height="{_HIGH:.0f}" '
            f'fill="var({colour})"><title>{escape(name)}: {amount:,.0f}</title></rect>'
        )
        x += _WIDE * amount / whole
    return f'<div class="whole-bar">{stretched(drawn, _WIDE, _HIGH, label)}</div>'


def share_bar(fraction: float, colour: str, label: str) -> str:
    """A bar as long as its share of the room it has."""
    width = max(2.0, _WIDE * min(1.0, fraction))
    drawn = f'<rect x="0" y="0" width="{width:.1f}" height="{_HIGH:.0f}" fill="var({colour})"/>'
    return f'<div class="share-bar">{stretched([drawn], _WIDE, _HIGH, label)}</div>'

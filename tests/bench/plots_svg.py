"""Three kinds of SVG charts as text: bars, dumbbells (two values a row) and scatters on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from shuntserve.drawing import SERIES, legend, svg, text

WIDTH, LABELS, ROW, RIGHT = 900, 250, 24, 90


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart: `text` stands behind the bar, `goal` is a mark to stay below."""

    name: str
    value: float
    text: str
    goal: float | None = None
    strong: bool = True


@dataclass(frozen=True)
class Point:
    """One mark of a scatter; `group` gives it its colour, `note` stands beside it."""

    x: float
    y: float
    group: str
    note: str = ""


def bars(rows: Sequence[Bar], axis: str, percent: bool = False) -> str:
    """Horizontal bars from zero."""
    longest = max(len(row.text) for row in rows)
    room = WIDTH - LABELS - max(RIGHT, 7 * longest)
    most = max([row.value for row in rows] + [row.goal or 0.0 for row in rows])
    scale = room / most if most > 0 else 0.0
    parts = _grid(most, scale, len(rows), percent)
    for index, row in enumerate(rows):
        y = ROW * index + 4
        opacity = 1.0 if row.strong else 0.55
        parts.append(text(LABELS - 8, y + 12, row.name, "end"))
        width = max(row.value * scale, 0.5)
        parts.append(
            f'<rect x="{LABELS}" y="{y}" width="{width:.1f}" height="{ROW - 8}" fill="var(--one)" opacity="{opacity}"/>'
        )
        parts.append(text(LABELS + width + 6, y + 12, row.text))
        if row.goal is not None:
            x = LABELS + row.goal * scale
            parts.append(
                f'<line x1="{x:.1f}" y1="{y - 3}" x2="{x:.1f}" y2="{y + ROW - 5}" class="goal" stroke-width="2"/>'
            )
    height = ROW * len(rows) + 38
    parts.append(text(LABELS, height - 4, axis, css="soft"))
    return svg(parts, WIDTH, height + 6, f"Bar chart: {axis}", top=-4)


def dumbbells(
    rows: Sequence[tuple[str, float, float]],
    names: tuple[str, str],
    goal: float | None = None,
    percent: bool = True,
    unit: str = "",
) -> str:
    """Two marks on a line for each row."""
    room = WIDTH - LABELS - RIGHT
    most = max(max(a, b) for _, a, b in rows)
    scale = room / most if most > 0 else 0.0
    parts = _grid(most, scale, len(rows), percent)
    for index, (name, first, second) in enumerate(rows):
        y = ROW * index + 12
        a, b = LABELS + first * scale, LABELS + second * scale
        words = f"{second:.1%}" if percent else f"{second:,.0f} {unit}, {second / first - 1:+.0%}"
        parts.append(text(LABELS - 8, y + 4, name, "end"))
        parts.append(
            f'<line x1="{a:.1f}" y1="{y}" x2="{b:.1f}" y2="{y}" stroke="var(--soft)" stroke-width="2" opacity="0.6"/>'
        )
        parts.append(f'<circle cx="{a:.1f}" cy="{y}" r="5" fill="var(--one)"/>')
        parts.append(f'<circle cx="{b:.1f}" cy="{y}" r="5" fill="var(--two)"/>')
        parts.append(text(max(a, b) + 9, y + 4, words, css="soft"))
    height = ROW * len(rows) + 38
    if goal is not None:
        x = LABELS + goal * scale
        parts.append(
            f'<line x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{ROW * len(rows)}" class="goal" stroke-dasharray="4 3"/>'
        )
    parts += legend([(name, SERIES[i]) for i, name in enumerate(names)], LABELS, height - 4)
    return svg(parts, WIDTH, height + 6, f"{names[0]} and {names[1]} by row", top=-4)


def scatter(points: Sequence[Point], unit: str, x_unit: str = "", diagonal: bool = True, side: int = 520) -> str:
    """Points on logarithmic axes; with `diagonal` both axes are alike and equality is drawn."""
    usable = [p for p in points if p.x > 0 and p.y > 0]
    xs, ys = [p.x for p in usable], [p.y for p in usable]
    if diagonal:
        xs = ys = xs + ys
    left, top, width, height = 70, 8, (side if diagonal else WIDTH - 330), side if diagonal else 300
    x_low, x_high, y_low, y_high = *_decades(xs), *_decades(ys)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - x_low) / (x_high - x_low)
        up = (math.log10(y) - y_low) / (y_high - y_low)
        return left + across * width, top + (1 - up) * height

    parts = [f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" class="grid"/>']
    for power in range(math.ceil(x_low), math.floor(x_high) + 1):
        x, _ = at(10.0**power, 10**y_low)
        parts.append(f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{top + height}" class="grid"/>')
        parts.append(text(x, top + height + 16, f"{10.0**power:g}", "middle", "soft"))
    for power in range(math.ceil(y_low), math.floor(y_high) + 1):
        _, y = at(10**x_low, 10.0**power)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + width}" y2="{y:.1f}" class="grid"/>')
        parts.append(text(left - 6, y + 4, f"{10.0**power:g}", "end", "soft"))
    if diagonal:
        for factor, dash in ((1.0, ""), (1.2, "4 4"), (1 / 1.2, "4 4")):
            low = 10 ** (x_low + max(0.0, -math.log10(factor)))
            high = 10 ** (x_high - max(0.0, math.log10(factor)))
            (x1, y1), (x2, y2) = at(low, low * factor), at(high, high * factor)
            parts.append(
                f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="var(--soft)"'
                f' stroke-dasharray="{dash}"/>'
            )
    groups = list(dict.fromkeys(p.group for p in usable))
    colour = {group: SERIES[i % len(SERIES)] for i, group in enumerate(groups)}
    for p in usable:
        x, y = at(p.x, p.y)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="var({colour[p.group]})" opacity="0.65"/>')
        if p.note:
            parts.append(text(x + 7, y + 4, p.note, css="soft"))
    x_name, y_name = (f"measured, {unit}", f"predicted, {unit}") if diagonal else (x_unit, unit)
    parts.append(text(left + width / 2, top + height + 34, x_name, "middle"))
    parts.append(
        f'<text x="14" y="{top + height / 2}" text-anchor="middle"'
        f' transform="rotate(-90 14 {top + height / 2})">{escape(y_name)}</text>'
    )
    if len(groups) > 1:
        for i, group in enumerate(groups):
            parts += legend([(group, colour[group])], left + width + 20, top + 16 + 20 * i)
    return svg(parts, WIDTH, top + height + 44 + 6, f"{y_name} against {x_name}", top=-4)


def _decades(values: Sequence[float]) -> tuple[float, float]:
    """Bounds of a logarithmic axis, as powers of ten, in tenths of a decade and never empty."""
    low, high = math.log10(min(values)), math.log10(max(values))
    return math.floor(low * 10 - 1) / 10, math.ceil(high * 10 + 1) / 10


def _grid(most: float, scale: float, rows: int, percent: bool) -> list[str]:
    """Vertical lines at round values."""
    if most <= 0:
        return []
    step = 10 ** math.floor(math.log10(most))
    step = step / 5 if most / step < 2 else step / 2 if most / step < 5 else step
    parts = []
    for index in range(int(most / step) + 1):
        value, x = index * step, LABELS + index * step * scale
        parts.append(f'<line x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{ROW * rows}" class="grid"/>')
        label = f"{value:.0%}" if percent else f"{value:g}"
        parts.append(text(x, ROW * rows + 14, label, "middle", "soft"))
    return parts

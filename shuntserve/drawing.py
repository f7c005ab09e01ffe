"""The pages and SVG marks of everything this package draws: one shell, one palette, light and dark, no script.

A page is one file that loads nothing. Colours are CSS variables, so a drawing names `var(--one)` and is right in both
modes. Two kinds of drawings: `svg` scales as a whole (text and all); `stretched` fills whatever box it is given, for
charts whose texts are HTML beside it and stay readable on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

SERIES = ("--one", "--two", "--three", "--four", "--five", "--six")
"""Colours of series, in the order in which they are given out."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --soft: #5c6b7a; --line: #d9e0e7; --paper: #ffffff; --card: #f6f8fa;
  --one: #2f6db3; --two: #c65a1e; --three: #2a8562; --four: #8a5fb0; --five: #8f7710; --six: #b04a6c;
  --goal: #b3261e; --good: #1f7a4d; --warn: #a86200; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e9ef; --soft: #9dacbb; --line: #323d48; --paper: #14191f;
  --card: #1c232b; --one: #6fa8e6; --two: #ef935c; --three: #5fc29b; --four: #b994dc; --five: #cdb653; --six: #e27f9f;
  --goal: #f2766d; --good: #5fc48d; --warn: #e6a94e; --bad: #f2766d; } }
*, *::before, *::after { box-sizing: border-box; }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto,
  sans-serif; max-width: 64rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; -webkit-text-size-adjust: 100%; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.12rem; margin: 2.4rem 0 .3rem; }
p { margin: .2rem 0 .8rem; } .note { color: var(--soft); }
a { color: var(--one); } code { font: .92em ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
svg { font: 12px system-ui, sans-serif; } svg text { fill: var(--ink); }
svg.whole { width: 100%; height: auto; display: block; }
svg .soft { fill: var(--soft); } svg .grid { stroke: var(--line); } svg .goal { stroke: var(--goal); }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem .35rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--soft); font-size: .87rem; }
td.n, th.n { text-align: right; } td.n { white-space: nowrap; }
"""


def page(title: str, body: str, style: str = "") -> str:
    """A whole HTML page around `body`; well-formed XML too. `title` is text, `body` and `style` are markup."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        '<meta name="color-scheme" content="light dark"/><link rel="icon" href="data:,"/>'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def svg(parts: Sequence[str], width: float, height: float, label: str, top: float = 0.0) -> str:
    """A drawing as wide as the page lets it be; `label` says what it shows to those who do not see it."""
    return (
        f'<svg class="whole" viewBox="0 {top:.0f} {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def stretched(parts: Sequence[str], width: float, height: float, label: str) -> str:
    """A drawing that fills its box in both directions; lines keep their width, so it must hold no text."""
    return (
        f'<svg class="stretched" viewBox="0 0 {width:.0f} {height:.0f}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def text(x: float, y: float, words: str, anchor: str = "start", css: str = "") -> str:
    """A line of text whose baseline is at y."""
    shown = f' class="{css}"' if css else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{shown}>{escape(words)}</text>'


def legend(entries: Sequence[tuple[str, str]], x: float, y: float) -> list[str]:
    """Names beside dots of their colours (CSS variables), in one line."""
    parts = []
    for name, colour in entries:
        parts.append(f'<circle cx="{x + 5:.1f}" cy="{y - 4:.1f}" r="5" fill="var({colour})"/>')
        parts.append(text(x + 14, y, name))
        x += 30 + 7 * len(name)
    return parts


def ticks(most: float, about: int = 4) -> list[float]:
    """Round values from 0 to the first at or above `most`, about that many steps of 1, 2 or 5 times a power of ten."""
    if most <= 0 or not math.isfinite(most):
        return [0.0, 1.0]
    raw = most / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.9999)
    return [index * step for index in range(math.ceil(most / step * 0.9999) + 1)]


_TIME_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)


def time_ticks(length_s: float, about: int = 6) -> list[tuple[float, str]]:
    """(seconds, label) from 0 on, at round times of a clock that starts with the drawing."""
    raw = length_s / about
    step = next((step for step in _TIME_STEPS_S if step >= raw), None)
    if step is None:
        step = 86400 * math.ceil(raw / 86400)
    return [(at, _clock(at, step)) for at in range(0, int(length_s) + 1, int(step))]


def _clock(at_s: int, step_s: float) -> str:
    if at_s == 0:
        return "0"
    if step_s < 60:
        return f"{at_s} s" if at_s < 60 else f"{at_s // 60}:{at_s % 60:02}"
    if step_s < 3600:
        return f"{at_s // 60} min" if at_s < 3600 else f"{at_s // 3600}:{at_s // 60 % 60:02} h"
    return f"{at_s // 3600} h" if step_s < 86400 else f"{at_s // 86400} d"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = (), caption: str = "") -> str:
    """Rows of markup under headings of text; columns in `numeric` stand to the right. Scrolls by itself when wide."""

    def css(column: int) -> str:
        return ' class="n"' if column in numeric else ""

    heading = "".join(f'<th scope="col"{css(i)}>{escape(name)}</th>' for i, name in enumerate(head))
    body = "".join("<tr>" + "".join(f"<td{css(i)}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>" for row in rows)
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0"><table>{said}<thead><tr>{heading}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )

"""From a job's history to what is drawn of it: phases as spans of time, and rates in bins of equal width."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from shuntserve.job.timeline import History, Sample

MOST_BINS = 240
LEAST_BIN_S = 1.0

Span = tuple[float, float]
"""[begin, end) in Unix seconds."""


@dataclass(frozen=True, slots=True)
class Series:
    """Columns over `bins` bins of `bin_s` seconds each from `began_unix_s` on. None: nobody worked, or nobody knows."""

    began_unix_s: float
    bin_s: float
    tokens_per_s: tuple[float | None, ...]
    rows_per_s: tuple[float | None, ...]
    rows_ended: tuple[int | None, ...]
    workers: tuple[int | None, ...]
    spent_usd: tuple[float | None, ...]


def bounds(history: History) -> Span | None:
    """When the history begins and when it ends; None when it is empty."""
    times = [unix_s for unix_s, _ in (*history.samples[:1], *history.samples[-1:])]
    times += [event.unix_s for event in (*history.events[:1], *history.events[-1:])]
    return (min(times), max(times)) if times else None


def phases(history: History, end_unix_s: float | None = None) -> dict[str, tuple[Span, ...]]:
    """For each phase, in the order in which they first began, the time in which somebody was in it.

    A phase without an end was cut off: it lasts until something else began, or else as long as anything was told;
    with `end_unix_s` (now) the newest phase is still under way.
    """
    span = bounds(history)
    if span is None:
        return {}
    last_unix_s = span[1] if end_unix_s is None else end_unix_s
    begun: dict[tuple[str, str], float] = {}
    found: dict[str, list[Span]] = {}
    starts = [event.unix_s for event in history.events if event.kind == "phase_started"]
    for event in history.events:
        phase = str(event.fields.get("phase"))
        if event.kind == "phase_started":
            begun[event.writer, phase] = event.unix_s
            found.setdefault(phase, [])
        elif event.kind == "phase_ended" and (event.writer, phase) in begun:
            found[phase].append((begun.pop((event.writer, phase)), event.unix_s))
    for (_, phase), begin in begun.items():
        later = bisect_right(starts, begin)
        cut = _last_told(history, begin, starts[later]) if later < len(starts) else last_unix_s
        found[phase].append((begin, max(begin, cut)))
    return {phase: union(spans) for phase, spans in found.items()}


def _last_told(history: History, begin: float, end: float) -> float:
    """The last moment in [begin, end) at which anybody told anything."""
    told = [unix_s for unix_s, _ in history.samples if begin <= unix_s < end]
    told += [event.unix_s for event in history.events if begin <= event.unix_s < end]
    return max(told, default=begin)


def union(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same time in as few spans as possible, in order."""
    merged: list[Span] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return tuple(merged)


def length_s(spans: Sequence[Span]) -> float:
    """How long these disjoint spans are together."""
    return sum(end - begin for begin, end in spans)


def series(history: History, span: Span, working: Sequence[Span], least_bin_s: float = LEAST_BIN_S) -> Series:
    """The history in at most `MOST_BINS` bins; rates are known only in the spans in which the job was worked on.

    `least_bin_s`: how often workers report; narrower bins would show their reports, not their work. Sums may fall a
    little when a worker dies between two reports; here they never do.
    """
    began, ended = span
    bin_s = max(LEAST_BIN_S, least_bin_s, (ended - began) / MOST_BINS)
    count = max(1, math.ceil((ended - began) / bin_s - 1e-9))
    edges = [began + index * bin_s for index in range(count + 1)]
    worked = [_overlap(working, a, b) for a, b in pairwise(edges)]
    times = [unix_s for unix_s, _ in history.samples]
    samples = [sample for _, sample in history.samples]

    def rate(of: Callable[[Sample], int]) -> tuple[float | None, ...]:
        sums = _rising([of(sample) for sample in samples])
        at = [_interpolated(times, sums, edge) for edge in edges]
        return tuple(
            max(0.0, b - a) / max(seconds, 0.5 * bin_s) if seconds > 0 and a is not None and b is not None else None
            for (a, b), seconds in zip(pairwise(at), worked, strict=True)
        )

    newest = [bisect_right(times, edge) - 1 for edge in edges[1:]]
    rows = _rising([sample.rows_ended for sample in samples])
    return Series(
        began_unix_s=began,
        bin_s=bin_s,
        tokens_per_s=rate(lambda sample: sample.tokens_generated),
        rows_per_s=rate(lambda sample: sample.rows_ended),
        rows_ended=tuple(int(rows[index]) if index >= 0 else None for index in newest),
        workers=tuple(
            samples[index].workers if index >= 0 and seconds > 0 else None
            for index, seconds in zip(newest, worked, strict=True)
        ),
        spent_usd=tuple(samples[index].spent_usd if index >= 0 else None for index in newest),
    )


def _overlap(spans: Sequence[Span], begin: float, end: float) -> float:
    return sum(max(0.0, min(end, b) - max(begin, a)) for a, b in spans)


def _rising(values: Sequence[float]) -> list[float]:
    top, rising = 0.0, []
    for value in values:
        top = max(top, value)
        rising.append(top)
    return rising


def _interpolated(times: Sequence[float], values: Sequence[float], at: float) -> float | None:
    """Linear between neighbours; the nearest value outside; None where there is none at all."""
    if not times:
        return None
    index = bisect_right(times, at)
    if index == 0 or index == len(times):
        return values[min(index, len(times) - 1)]
    before, after = times[index - 1], times[index]
    part = (at - before) / (after - before)
    return values[index - 1] + part * (values[index] - values[index - 1])

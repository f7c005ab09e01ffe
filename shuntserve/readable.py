"""Numbers as people read them: counts, rates, money, durations, moments."""

from __future__ import annotations

from datetime import UTC, datetime

_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def duration(seconds: float) -> str:
    """`3.2 s`, `4 min 05 s`, `2 h 03 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02} min"


def compact(value: float) -> str:
    """Three significant digits: `0.42`, `7.3`, `981`, `12.3k`, `4.56M`."""
    for size, unit in _UNITS:
        if abs(value) >= 0.9995 * size:
            return f"{_three_digits(value / size)}{unit}"
    return _three_digits(value)


def _three_digits(value: float) -> str:
    size = abs(value)
    digits = 0 if size >= 99.95 else 1 if size >= 9.995 else 2
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def usd(value: float) -> str:
    """`$1,234`, `$12.34`, `$0.0042`."""
    size = abs(value)
    digits = 0 if size >= 1000 else 2 if size >= 0.1 or size == 0 else 4
    return f"{'-' if value < 0 else ''}${size:,.{digits}f}"


def share(part: float, whole: float) -> str:
    """A percentage that says 100 % (or 0 %) only when it is exactly that."""
    if whole <= 0:
        return "–"
    fraction = part / whole
    if fraction in (0.0, 1.0):
        return f"{fraction:.0%}"
    for digits in (1, 2, 3):
        if 0 < round(100 * fraction, digits) < 100:
            return f"{fraction:.{digits}%}"
    return "<0.001%" if fraction < 0.5 else ">99.999%"


def moment(unix_s: float) -> str:
    """`2030-01-31 18:00:05 UTC`."""
    return datetime.fromtimestamp(unix_s, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso(unix_s: float) -> str:
    """`2030-01-31T18:00:05Z`: a moment for programs, to the second."""
    return datetime.fromtimestamp(unix_s, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def size(size_bytes: int) -> str:
    """`812 B`, `1.2 MB`."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size_bytes >= factor:
            return f"{_three_digits(size_bytes / factor)} {unit}"
    return f"{size_bytes} B"

"""Numbers as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuntserve.readable import compact, duration, iso, moment, share, size, usd


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.42, "0.42"), (7.3, "7.3"), (99.96, "100"), (981, "981"), (999.9, "1k"), (12_345, "12.3k"),
     (4_560_000, "4.56M"), (999_999_999, "1B"), (2.5e13, "25T")],
)  # fmt: skip
def test_counts_have_three_digits(value: float, text: str) -> None:
    """Rounded to three significant digits, with the unit that the rounded value has."""
    assert compact(value) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 5, "0%"), (5, 5, "100%"), (1, 3, "33.3%"), (1, 1_000, "0.1%"), (1, 10_000, "0.01%"), (1, 10**7, "<0.001%"),
     (9_999, 10_000, "99.99%"), (10**9 - 1, 10**9, ">99.999%"), (0, 0, "–")],
)  # fmt: skip
def test_a_share_is_all_or_nothing_only_when_it_is(part: float, whole: float, text: str) -> None:
    """One row missing of a billion is not 100 %, and one of a billion is not 0 %."""
    assert share(part, whole) == text


@given(st.integers(1, 10**12), st.integers(0, 10**12))
def test_no_part_reads_as_the_whole(whole: int, part: int) -> None:
    """`100%` and `0%` are said exactly when they are true."""
    part = min(part, whole)

    assert (share(part, whole) == "100%") == (part == whole)
    assert (share(part, whole) == "0%") == (part == 0)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "$0.00"), (0.0042, "$0.0042"), (12.345, "$12.35"), (1234.5, "$1,234"), (-3, "-$3.00")]
)
def test_money_has_cents_where_they_matter(value: float, text: str) -> None:
    """Tiny amounts keep their digits, large ones lose their cents."""
    assert usd(value) == text


def test_times_and_sizes() -> None:
    """Durations in two units, moments in UTC, sizes in decimal units."""
    assert [duration(one) for one in (3.24, 245, 7380)] == ["3.2 s", "4 min 05 s", "2 h 03 min"]
    assert (moment(1893456000), iso(1893456000)) == ("2030-01-01 00:00:00 UTC", "2030-01-01T00:00:00Z")
    assert [size(one) for one in (812, 1_234, 118_000_000, 5_000_000_000)] == ["812 B", "1.23 kB", "118 MB", "5 GB"]

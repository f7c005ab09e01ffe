"""What a job may launch: pools, the market rule and the kind of fleet, as one table; and what is refused."""

from __future__ import annotations

import pytest

from shuntserve.core.offers import Offer, Want, read_offers
from shuntserve.errors import InvalidInput


def names(wants: tuple[Want, ...]) -> list[list[tuple[str, float | None]]]:
    """Every want's offers, in order, with their prices."""
    return [[(offer.name, offer.usd_per_h) for offer in want.offers] for want in wants]


@pytest.mark.parametrize(
    ("fleet", "pool", "rule", "offers"),
    [
        ("ec2", "g6/a=1@2", "prefer_spot", [("g6/a/spot", 2.0), ("g6/a/on-demand", None)]),
        ("ec2", "g6/a=1@2", "spot", [("g6/a/spot", 2.0)]),
        ("ec2", "g6/a=1@2", "on_demand", [("g6/a/on-demand", 2.0)]),
        ("ec2", "g6/a=1", "prefer_spot", [("g6/a/spot", None), ("g6/a/on-demand", None)]),
        ("ec2", "g6/spot=1@2", "prefer_spot", [("g6/spot", 2.0)]),
        ("ec2", "g6/spot=1@2", "spot", [("g6/spot", 2.0)]),
        ("ec2", "g6/spot=1@2", "on_demand", None),
        ("ec2", "g6/on-demand=1@2", "prefer_spot", [("g6/on-demand", 2.0)]),
        ("ec2", "g6/on-demand=1@2", "spot", None),
        ("ec2", "g6/on-demand=1@2", "on_demand", [("g6/on-demand", 2.0)]),
        ("local", "local=1", "prefer_spot", [("local/spot", 0.0)]),
        ("local", "local=1@2", "prefer_spot", [("local/spot", 2.0)]),
        ("local", "local=1@2", "spot", [("local/spot", 2.0)]),
        ("local", "local=1@2", "on_demand", [("local/on-demand", 2.0)]),
        ("local", "local/on-demand=1@2", "prefer_spot", [("local/on-demand", 2.0)]),
        ("local", "local/on-demand=1@2", "spot", None),
        ("local", "local/spot=1@2", "on_demand", None),
    ],
)
def test_which_offers_a_pool_becomes(
    fleet: str, pool: str, rule: str, offers: list[tuple[str, float | None]] | None
) -> None:
    """Market rule × pool × fleet. A given price is that of the market it is meant for, never of the fallback."""
    if offers is None:
        with pytest.raises(InvalidInput, match=f"none may be used with market {rule}"):
            read_offers(fleet, (pool,), rule)  # type: ignore[arg-type]
        return

    assert names(read_offers(fleet, (pool,), rule)) == [offers]  # type: ignore[arg-type]


def test_a_local_fleet_is_one_free_machine_unless_said_otherwise() -> None:
    """No pools at all: one process of this machine, at no price."""
    assert read_offers("local", (), "prefer_spot") == (Want("local", 1, (Offer("local", "", "spot", 0.0),)),)


def test_pools_keep_their_order_and_count() -> None:
    """The first pool is filled first; one that the market rule forbids is left out as long as another remains."""
    wants = read_offers("ec2", ("p5/on-demand=2", "g6/spot=3@1", "g5=4@2"), "spot")

    assert [(want.name, want.count) for want in wants] == [("g6/spot", 3), ("g5", 4)]


@pytest.mark.parametrize(
    ("fleet", "pools", "told"),
    [
        ("ec2", (), "needs at least one"),
        ("ec2", ("local=2",), "is not of a ec2 fleet"),
        ("local", ("g6.xlarge=2",), "is not of a local fleet"),
        ("ec2", ("g6=2", "g6=1@3"), "is given twice"),
        ("ec2", ("g6",), "is not TYPE"),
        ("ec2", ("g6=0",), "not positive"),
        ("ec2", ("g6=-1",), "not positive"),
        ("ec2", ("g6=two",), "not a whole number"),
        ("ec2", ("g6=1.5",), "not a whole number"),
        ("ec2", ("g6=2@free",), "not a number"),
        ("ec2", ("g6=2@-1",), "not a positive number"),
        ("ec2", ("g6=2@nan",), "not a positive number"),
        ("ec2", ("g6=2@inf",), "not a positive number"),
        ("ec2", ("",), "is not TYPE"),
        ("ec2", ("g6/a/b/spot=1",), "is not TYPE"),
        ("ec2", ("g6/spot/a=1",), "is not TYPE"),
    ],
)
def test_a_pool_that_cannot_be_is_refused_by_name(fleet: str, pools: tuple[str, ...], told: str) -> None:
    """Each mistake is told with the pool as written, its cause and what to write instead."""
    with pytest.raises(InvalidInput) as refused:
        read_offers(fleet, pools, "prefer_spot")

    assert told in refused.value.cause
    assert refused.value.next_step

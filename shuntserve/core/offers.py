"""What a job's fleet may launch: the user's pools, each with the ways of buying that may fill it, best first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shuntserve.core.pools import Market, parse_pool
from shuntserve.errors import InvalidInput

MarketRule = Literal["prefer_spot", "spot", "on_demand"]
LOCAL = "local"
"""The instance type of a local fleet's machines: processes beside the controller."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One way to buy one machine. `usd_per_h` is None until a price has been looked up."""

    instance_type: str
    zone: str
    market: Market
    usd_per_h: float | None

    @property
    def name(self) -> str:
        """As a pool is written."""
        return "/".join(part for part in (self.instance_type, self.zone, self.market) if part)


@dataclass(frozen=True, slots=True)
class Want:
    """Up to `count` machines, each bought through the first of `offers` that can be had."""

    name: str
    count: int
    offers: tuple[Offer, ...]


def read_offers(fleet: str, pools: Sequence[str], market: MarketRule) -> tuple[Want, ...]:
    """The job's pools as wants. A pool that names no market is spot with on-demand behind it, as far as `market` lets.

    Raises InvalidInput for a pool that cannot be read, that the fleet does not have, or when no pool is left.
    """
    if not pools and fleet == "local":
        pools = (f"{LOCAL}=1",)
    if not pools:
        raise InvalidInput("pools", f"a fleet of {fleet} needs at least one", "for instance g6.xlarge/spot=4")
    wants: list[Want] = []
    for text in pools:
        pool = parse_pool(text)
        if (fleet == "local") != (pool.instance_type == LOCAL):
            raise InvalidInput(
                f"pool {text!r}",
                f"is not of a {fleet} fleet",
                f"write {LOCAL}=COUNT[@PRICE]" if fleet == "local" else "name an EC2 type, or set fleet to local",
            )
        price = pool.usd_per_h if fleet != "local" else pool.usd_per_h or 0.0
        offers: list[Offer] = []
        if pool.market != "on-demand" and market != "on_demand":
            offers.append(Offer(pool.instance_type, pool.zone, "spot", price))
        if pool.market == "on-demand" and market != "spot":
            offers.append(Offer(pool.instance_type, pool.zone, "on-demand", price))
        if pool.market is None and market != "spot" and fleet != "local":
            offers.append(Offer(pool.instance_type, pool.zone, "on-demand", price if market == "on_demand" else None))
        if pool.market is None and market == "on_demand" and fleet == "local":
            offers.append(Offer(pool.instance_type, pool.zone, "on-demand", price))
        name = "/".join(part for part in (pool.instance_type, pool.zone, pool.market) if part)
        if any(want.name == name for want in wants):
            raise InvalidInput(f"pool {name}", "is given twice", "give it once with the whole count")
        if offers:
            wants.append(Want(name, pool.count, tuple(offers)))
    if not wants:
        raise InvalidInput("pools", f"none may be used with market {market}", "change market, or name other pools")
    return tuple(wants)

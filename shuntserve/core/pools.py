"""Capacity pools: how many machines of one type can be had in one zone under one way of buying, at what price and risk.

A pool is written `TYPE[/ZONE][/spot|on-demand]=COUNT[@USD_PER_H]`, for instance `g6.12xlarge/us-east-1a/spot=3@1.94`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from shuntserve.errors import InvalidInput

Market = Literal["spot", "on-demand"]
MARKETS: tuple[Market, ...] = ("spot", "on-demand")

_POOL = re.compile(
    r"(?P<type>[^/=@\s]+)(?:/(?P<zone>(?!spot\b|on-demand\b)[^/=@\s]+))?(?:/(?P<market>spot|on-demand))?"
    r"=(?P<count>[^@\s]+)(?:@(?P<price>\S+))?"
)


@dataclass(frozen=True)
class Pool:
    """Up to `count` machines of `instance_type`, each costing `usd_per_h` and lost `losses_per_h` times an hour.

    An empty `zone` is a place of its own, shared by all pools that name no zone. `losses_per_h` is the hazard of one
    running machine being reclaimed, zero on demand.
    """

    instance_type: str
    count: int
    usd_per_h: float
    zone: str = ""
    market: Market = "spot"
    losses_per_h: float = 0.0

    def __post_init__(self) -> None:
        if not self.instance_type:
            raise InvalidInput("pool", "has no instance type", "name one, for instance g6.12xlarge=3")
        if self.market not in MARKETS:
            raise InvalidInput(f"pool {self.instance_type}", f"market {self.market!r} is unknown", "spot or on-demand")
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise InvalidInput(
                f"pool {self.name}", f"count {self.count} is not a positive whole number", "give 1 or more"
            )
        if not (math.isfinite(self.usd_per_h) and self.usd_per_h > 0):
            raise InvalidInput(
                f"pool {self.name}", f"price {self.usd_per_h} is not a positive number", "give $ per hour"
            )
        if not (math.isfinite(self.losses_per_h) and self.losses_per_h >= 0):
            raise InvalidInput(
                f"pool {self.name}",
                f"loss rate {self.losses_per_h} is not a number ≥ 0",
                "give losses per machine-hour",
            )

    @property
    def name(self) -> str:
        """The pool as a user writes it, without count and price."""
        return "/".join(part for part in (self.instance_type, self.zone, self.market) if part)


@dataclass(frozen=True)
class PoolText:
    """What a user wrote for one pool; what is absent comes from the catalogue."""

    instance_type: str
    zone: str
    market: Market | None
    count: int
    usd_per_h: float | None


def parse_pool(text: str) -> PoolText:
    """Read one `--pool` value; raises InvalidInput that says which part is wrong."""
    match = _POOL.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(
            f"pool {text!r}",
            "is not TYPE[/ZONE][/spot|on-demand]=COUNT[@PRICE]",
            "for instance g5.12xlarge/us-east-1a/spot=2@2.29",
        )
    try:
        count = int(match["count"])
    except ValueError:
        raise InvalidInput(
            f"pool {text!r}", f"count {match['count']!r} is not a whole number", "give 1 or more"
        ) from None
    if count < 1:
        raise InvalidInput(f"pool {text!r}", f"count {count} is not positive", "give 1 or more, or leave the pool out")
    price = None
    if match["price"] is not None:
        try:
            price = float(match["price"].lstrip("$"))
        except ValueError:
            raise InvalidInput(
                f"pool {text!r}", f"price {match['price']!r} is not a number", "give $ per hour"
            ) from None
        if not (math.isfinite(price) and price > 0):
            raise InvalidInput(f"pool {text!r}", f"price {price} is not a positive number", "give $ per hour")
    market: Market | None = match["market"]  # type: ignore[assignment]
    return PoolText(match["type"], match["zone"] or "", market, count, price)


def merged(pools: Iterable[Pool]) -> tuple[Pool, ...]:
    """The pools in the order given; the same pool named twice at one price is one pool, at two prices an error."""
    by_name: dict[str, Pool] = {}
    for pool in pools:
        seen = by_name.get(pool.name)
        if seen is None:
            by_name[pool.name] = pool
        elif (seen.usd_per_h, seen.losses_per_h) != (pool.usd_per_h, pool.losses_per_h):
            raise InvalidInput(
                f"pool {pool.name}", "is given twice with different prices or risks", "give it once, or name its zone"
            )
        else:
            by_name[pool.name] = Pool(
                pool.instance_type, seen.count + pool.count, pool.usd_per_h, pool.zone, pool.market, pool.losses_per_h
            )
    return tuple(by_name.values())

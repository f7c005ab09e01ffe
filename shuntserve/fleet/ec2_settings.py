"""What ShuntServe must be told of an AWS account before it can launch machines there.

    region: us-east-1
    image: ami-0123456789abcdef0            # has ShuntServe and the GPU driver installed
    instance_profile: shuntserve-node       # lets its machines read and write the bucket
    security_groups: [sg-0123456789abcdef0]
    subnets:                                # one for each zone that may be used
      us-east-1a: subnet-0123456789abcdef0
    python: /opt/shuntserve/bin/python      # on the image; this is the default

A YAML file, `ec2.yaml` in the user's configuration directory or where SHUNTSERVE_EC2 points. It holds no secret:
credentials are AWS's own matter (environment, profile, instance role).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from shuntserve.core.near_miss import did_you_mean
from shuntserve.core.offers import Offer
from shuntserve.errors import InvalidInput, NotFound


@dataclass(frozen=True, slots=True)
class Ec2Settings:
    """The facts of one account and region."""

    region: str
    image: str
    instance_profile: str
    security_groups: tuple[str, ...]
    subnets: Mapping[str, str]
    """Zone → subnet."""
    python: str = "/opt/shuntserve/bin/python"

    def subnets_of(self, offer: Offer) -> tuple[str, ...]:
        """Where a machine of this offer may be: its zone's subnet, or any when it names no zone."""
        if not offer.zone:
            return tuple(self.subnets[zone] for zone in sorted(self.subnets))
        if offer.zone not in self.subnets:
            raise InvalidInput(
                f"pool {offer.name}", f"zone {offer.zone} has no subnet in the EC2 settings", "add it to `subnets`"
            )
        return (self.subnets[offer.zone],)


def read_ec2_settings(path: Path) -> Ec2Settings:
    """Read the file. Raises NotFound or InvalidInput that names what is missing or wrong in it."""
    thing = f"EC2 settings {path}"
    names = {field.name for field in fields(Ec2Settings)}
    needed = {field.name for field in fields(Ec2Settings) if field.default is MISSING}
    try:
        told: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        wanted = ", ".join(sorted(needed))
        raise NotFound(thing, "are not there", f"write a YAML file with {wanted}; see the README, EC2") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInput(thing, f"cannot be read: {error}", "correct the file") from error
    if not isinstance(told, dict):
        raise InvalidInput(thing, "are not names with values", f"write {', '.join(sorted(needed))}")
    for name in told:
        if name not in names:
            raise InvalidInput(thing, f"{name!r} is not known", did_you_mean(str(name), names))
    missing = sorted(name for name in needed if not told.get(name))
    if missing:
        raise InvalidInput(thing, f"lack {', '.join(missing)}", "add them; see the README, EC2")
    texts = {name: _text(thing, name, told[name]) for name in told if name not in ("security_groups", "subnets")}
    groups, subnets = told["security_groups"], told["subnets"]
    if not isinstance(groups, list):
        raise InvalidInput(thing, "security_groups is no list", "write [sg-…]")
    if not isinstance(subnets, dict):
        raise InvalidInput(thing, "subnets does not map zones to subnets", "write {us-east-1a: subnet-…}")
    return Ec2Settings(
        **texts,
        security_groups=tuple(_text(thing, "security_groups", group) for group in groups),
        subnets={_text(thing, "subnets", zone): _text(thing, "subnets", subnet) for zone, subnet in subnets.items()},
    )


def _text(thing: str, name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidInput(thing, f"{name}: {value!r} is no text", "correct it")
    return value

"""A flow's parameters as settings of a job: dates in paths, the cap of the whole installation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from shuntserve.core.specs import JobSpec
from shuntserve.errors import InvalidInput

Market = Literal["prefer_spot", "spot", "on_demand"]
Approval = Literal["never", "over_budget", "always"]

_DATE = re.compile(r"\{as_of(?::([^{}]*))?\}")


def dated(text: str, as_of: datetime) -> str:
    """`dt={as_of:%Y-%m-%d}` with the date in it; whatever else is in braces stays."""
    return _DATE.sub(lambda match: as_of.strftime(match[1]) if match[1] else as_of.isoformat(), text)


def capped(asked_usd: float | None, cap_usd: float | None) -> float | None:
    """The cost that this run may reach: what it asks for, at most the installation's cap. Raises InvalidInput."""
    if cap_usd is None:
        return asked_usd
    if asked_usd is not None and asked_usd > cap_usd:
        raise InvalidInput(
            f"max_cost_usd {asked_usd:g}",
            f"is above the cap of {cap_usd:g} set by the variable shuntserve_max_cost_usd",
            "ask for less, or have the variable raised",
        )
    return cap_usd if asked_usd is None else asked_usd


def job_spec(
    given: Mapping[str, Any], more: Mapping[str, Any], as_of: datetime, cap_usd: float | None, run_id: str
) -> JobSpec:
    """The job of a flow run. `given`: its parameters (None: not given), `more`: any other settings of a JobSpec.

    `rerun: true` means one more job for this flow run, however often its process is started. Raises InvalidInput.
    """
    twice = sorted(name for name in more if given.get(name) is not None)
    if twice:
        raise InvalidInput(f"settings: {twice[0]!r}", "is a parameter of its own and given there too", "keep one")
    whole = {**more, **{name: value for name, value in given.items() if value is not None}}
    for name in ("input", "output"):
        match whole.get(name):
            case str() as text:
                whole[name] = dated(text, as_of)
            case list() | tuple() as texts:
                whole[name] = [dated(str(text), as_of) for text in texts]
    whole["max_cost_usd"] = capped(whole.get("max_cost_usd"), cap_usd)
    if whole.get("rerun") is True:
        whole["rerun"] = run_id
    return JobSpec(**whole)

"""Why there is no plan: which limit stands in the way, and how far it must give way."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from shuntserve.core.planning.stage_times import FIRST, LAST, MIDDLE, ONLY, StageTimes
from shuntserve.errors import InvalidInput

if TYPE_CHECKING:
    from shuntserve.core.planning.fleet_search import Answer
    from shuntserve.core.planning.plan import PlanRequest

Solve = Callable[["PlanRequest"], "Answer"]


def no_plan(request: PlanRequest, solve: Solve) -> InvalidInput:
    """The error for a request without a plan: limits are taken away one after the other until one appears."""
    unbound = replace(request.objective, name="throughput", hourly_usd=None, total_usd=None, deadline_s=None)
    free = replace(request, objective=unbound, quotas=(), share=1.0)
    answer = solve(free)
    if answer.merit <= 0 and answer.bound > 0:
        limit_s = request.time_limit_s
        return InvalidInput(f"time limit {limit_s:g} s", "no plan was found in it", f"allow {max(60, 4 * limit_s):g} s")
    if answer.merit <= 0:
        return _does_not_fit(request)
    if request.share < 1.0 and solve(replace(free, share=request.share)).merit <= 0:
        zones = len({pool.name for pool in request.pools})
        return InvalidInput(
            f"at most {request.share:.0%} of throughput on one pool",
            f"no set of pipelines over these {zones} pools keeps to it",
            "raise the share, or add pools",
        )
    if request.quotas and solve(replace(free, share=request.share, quotas=request.quotas)).merit <= 0:
        names = ", ".join(f"{quota.name} ({quota.vcpus:g} vCPUs)" for quota in request.quotas)
        return InvalidInput("quota " + names, "no pipeline fits into it", "ask EC2 for more vCPUs, or use other types")
    within = replace(free, share=request.share, quotas=request.quotas)
    return _deadline(request, within, solve) or _hourly(request, within, solve) or _total(request, within, solve)


def _deadline(request: PlanRequest, within: PlanRequest, solve: Solve) -> InvalidInput | None:
    """The deadline, when not even all machines together meet it."""
    objective = request.objective
    if objective.deadline_s is None or objective.requests is None:
        return None
    fastest = _fastest(within, solve)
    finish_s = objective.finish_s(fastest)
    if finish_s <= objective.deadline_s:
        return None
    factor = (objective.requests / fastest) / (objective.deadline_s - objective.startup_s)
    return InvalidInput(
        f"deadline {duration(objective.deadline_s)}",
        f"with every machine of these pools {objective.requests:,.0f} requests take {duration(finish_s)}",
        f"allow {duration(math.ceil(finish_s / 60) * 60)} or more, or add about {factor - 1:.0%} more capacity",
    )


def _hourly(request: PlanRequest, within: PlanRequest, solve: Solve) -> InvalidInput | None:
    """The hourly budget, when no fleet within it works or meets the deadline."""
    objective = request.objective
    if objective.hourly_usd is None:
        return None
    capped = replace(within.objective, hourly_usd=objective.hourly_usd)
    if objective.deadline_s is not None:
        capped = replace(capped, requests=objective.requests, deadline_s=objective.deadline_s)
    if solve(replace(within, objective=capped)).merit > 0:
        return None
    low, high = objective.hourly_usd, sum(pool.count * pool.usd_per_h for pool in request.pools)
    for _ in range(12):  # the least hourly budget that works, to a few per cent
        middle = math.sqrt(low * high)
        works = solve(replace(within, objective=replace(capped, hourly_usd=middle))).merit > 0
        low, high = (low, middle) if works else (middle, high)
        if high <= low * 1.02:
            break
    needed = math.ceil(high * 100) / 100
    what = " that meets the deadline" if objective.deadline_s is not None else " that holds the model"
    return InvalidInput(
        f"hourly budget ${objective.hourly_usd:.2f}",
        f"the cheapest fleet{what} costs about ${needed:.2f} an hour",
        f"allow ${needed:.2f} an hour" + (", or a later deadline" if objective.deadline_s is not None else ""),
    )


def _total(request: PlanRequest, within: PlanRequest, solve: Solve) -> InvalidInput:
    """The total budget: what the job costs at least under the other limits."""
    objective = request.objective
    cheapest = replace(
        within.objective,
        name="deadline",
        requests=objective.requests,
        deadline_s=objective.deadline_s or 1e9,
        hourly_usd=objective.hourly_usd,
    )
    answer = solve(replace(within, objective=cheapest))
    if answer.merit <= 0:
        return InvalidInput(
            "the limits together",
            "each can be met, but no plan was found that meets all of them",
            "relax the deadline, the hourly budget or the share, or allow more time to solve",
        )
    needed = math.ceil(100.0 / answer.merit) / 100
    cap, later = objective.total_usd or 0.0, ", or a later deadline" if objective.deadline_s else ""
    return InvalidInput(
        f"budget ${cap:.2f}",
        f"these requests cost at least about ${needed:.2f}" + (" by the deadline" if objective.deadline_s else ""),
        f"allow ${needed:.2f}, or {cap / needed:.0%} of the requests{later}",
    )


def _fastest(within: PlanRequest, solve: Solve) -> float:
    answer = solve(within)
    return sum(column.rps for column in answer.columns)


def _does_not_fit(request: PlanRequest) -> InvalidInput:
    """The model on all these pools together: how many of its layers they would hold."""
    times = request.times
    usable = {kind.instance_type for kind in times.kinds}
    unusable = sorted({pool.instance_type for pool in request.pools} - usable)
    if not usable & {pool.instance_type for pool in request.pools}:
        return InvalidInput(
            "pools " + ", ".join(unusable),
            "; ".join(reason_for(times, name) for name in unusable),
            "choose other types, or another --dtype",
        )
    best = 0
    for zone in request.zones:
        best = max(best, sum(_layers_held(times, request, pool) for pool in zone))
    return InvalidInput(
        "the model on these pools",
        f"even all machines of one zone hold {min(best, times.layers - 1)} of its {times.layers} layers beside the "
        "cache of one request",
        "add machines or larger ones, use smaller weights (--dtype fp8 or int4), or shorter requests",
    )


def reason_for(times: StageTimes, instance_type: str) -> str:
    """Why an instance type cannot take part."""
    reasons: dict[str, str] = getattr(times, "unusable", {})
    return reasons.get(instance_type, f"{instance_type} is not usable")


def _layers_held(times: StageTimes, request: PlanRequest, number: int) -> int:
    """Most layers on the GPUs of one pool, each kind of stage on its own."""
    pool, one, most = request.pools[number], np.array([1.0]), 0
    rooms = times.regimes(2, one, one).room[0]
    for index, kind in enumerate(times.kinds):
        if kind.instance_type == pool.instance_type:
            room = int(max(rooms[position, index] for position in (FIRST, MIDDLE, LAST, ONLY)))
            most = max(most, room * pool.count * (kind.machine_gpus // kind.tp))
    return most


def duration(seconds: float) -> str:
    """A length of time as people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

"""What a job's fleet would be and cost, laid before somebody when it has to be."""

from __future__ import annotations

from typing import Any

from shuntserve.core.offers import Want
from shuntserve.core.resolved import ResolvedJob
from shuntserve.fleet.prediction import Prediction


def propose(job: ResolvedJob, wants: tuple[Want, ...], prediction: Prediction | None) -> dict[str, Any]:
    """What the fleet would be and cost, and whether somebody has to agree first."""
    usd_per_h = sum(want.count * max(offer.usd_per_h or 0.0 for offer in want.offers) for want in wants)
    cap = job.operations.max_cost_usd
    match job.operations.approval:
        case "always":
            needed = True
        case "never":
            needed = False
        case _:
            at_most = None if prediction is None else prediction.usd_at_most
            needed = usd_per_h > 0 and (cap is None or (at_most is not None and at_most > cap))
    return {
        "pools": [
            {"pool": want.name, "count": want.count, "usd_per_h": [offer.usd_per_h for offer in want.offers]}
            for want in wants
        ],
        "usd_per_h": usd_per_h,
        "max_cost_usd": cap,
        "prediction": None if prediction is None else prediction.to_json(),
        "approval_needed": needed,
    }

"""Other planners under the same estimator, for comparison: each turns stage times and pools into a `Placement`.

Pipelines stay within one zone, as the product's own do.
"""

from shuntserve.core.planning.baselines.placement import Placement, validate

__all__ = ["Placement", "validate"]

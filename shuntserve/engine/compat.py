"""Whether the installed vLLM is one that we can stand on; asked whenever an engine starts, in a few milliseconds.

An unsupported release is refused by name instead of giving subtly wrong results. Support for another one begins with
adding it to `releases.SUPPORTED` and making the contract tests and the resume matrix pass on it.
"""

from __future__ import annotations

from shuntserve.engine.releases import SUPPORTED, check_version, installed_version
from shuntserve.engine.touch_points import TOUCH_POINTS

__all__ = ["SUPPORTED", "TOUCH_POINTS", "check_touch_points", "check_version", "installed_version"]


def check_touch_points(*, v2_runner: bool) -> None:
    """Raises InvalidInput at the first touch point that does not hold, of those the engine about to start relies on."""
    for point in TOUCH_POINTS:
        if v2_runner or not point.v2_runner_only:
            point.check()

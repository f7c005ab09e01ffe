"""Every place where ShuntServe touches vLLM's insides, with the file, the reason and a check.

vLLM keeps its public interface stable, not these. All of them are here and nowhere else, one table for each part of
an engine; whoever relies on another one adds it. `tests/engine/test_contracts.py` runs each check by itself and sees
each of them fail on something else.
"""

from __future__ import annotations

from shuntserve.engine.touch_point import TouchPoint
from shuntserve.engine.touch_points.core import CORE
from shuntserve.engine.touch_points.frontend import FRONTEND
from shuntserve.engine.touch_points.pipeline import PIPELINE
from shuntserve.engine.touch_points.worker import WORKERS

TOUCH_POINTS: tuple[TouchPoint, ...] = (*FRONTEND, *CORE, *WORKERS, *PIPELINE)

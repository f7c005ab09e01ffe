"""The composition root: the only module that names concrete classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shuntserve.core.resolved import ResolvedJob
from shuntserve.engine.port import Engine
from shuntserve.engine.process import EngineProcess

STANDIN_BACKEND = "shuntserve.sim.standin:StandinBackend"


def standin_engine(job: ResolvedJob, log_dir: Path, options: Mapping[str, Any]) -> Callable[[], Engine]:
    """Makes stand-in engines: real processes without a model, for soaks and tests. `options`: see `sim.standin`."""

    def make() -> Engine:
        return EngineProcess(STANDIN_BACKEND, options, log_dir / "engine.log")

    return make

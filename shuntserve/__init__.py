"""ShuntServe: offline batch LLM inference that survives kill -9. Parquet in, Parquet out, every row exactly once.

The Python interface is imported on first use, so that `import shuntserve` costs nothing:

    from shuntserve import JobSpec, submit
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shuntserve.api import Job, JobSpec, JobStatus, RunResult, StopSwitch, submit

__all__ = ["Job", "JobSpec", "JobStatus", "RunResult", "StopSwitch", "submit"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        from shuntserve import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

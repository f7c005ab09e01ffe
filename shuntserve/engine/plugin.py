"""Entry point `vllm.general_plugins`: what vLLM calls at the start of each of its processes.

Inside an engine process of ShuntServe it ties that process's life to its parent's, before a model is loaded. In anybody
else's vLLM it does nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

from shuntserve.engine.lifeline import die_with_parent

HOST_PID_VARIABLE = "SHUNTSERVE_ENGINE_HOST_PID"
"""Set by the engine process for its descendants: process ids pass through vLLM's own process start no other way."""


def register() -> None:
    """Idempotent, as vLLM may call it several times in one process."""
    host_pid = os.environ.get(HOST_PID_VARIABLE)
    if host_pid and int(host_pid) != os.getpid():
        die_with_parent()
        if not Path("/proc", host_pid).exists() and Path("/proc/self").exists():
            os._exit(0)  # it ended before we were tied to it

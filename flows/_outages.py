"""What is done while Prefect's server is away: nothing of the job's, and the flow waits for it before it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging import get_logger

T = TypeVar("T")

AWAY = (httpx.TransportError, PrefectHTTPStatusError)
OUTAGE_S = 2 * 3600.0
"""A flow run waits this long for the server to come back before it gives up; its job goes on in any case."""


def if_reachable(call: Callable[[], T]) -> T | None:
    """The call's value, or None when the server does not answer: what it was to show will be shown by the next one."""
    try:
        return call()
    except AWAY as error:
        get_logger("shuntserve").warning("Prefect's server does not answer (%s); the job goes on", type(error).__name__)
        return None


def await_server(limit_s: float = OUTAGE_S, every_s: float = 5.0) -> bool:
    """Wait until the server answers. A flow that ends without one would be taken for crashed."""
    give_up_s = time.monotonic() + limit_s
    while time.monotonic() < give_up_s:
        with get_client(sync_client=True) as client:
            if client.api_healthcheck() is None:
                return True
        time.sleep(every_s)
    return False

"""How long the store waits and how often it tries again: every timeout and bound of the bucket in one place."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

QUICK_BYTES = 1024 * 1024
"""Writes of at most this much get the quick timeout: a silent server is then noticed in seconds."""


class Pace(Enum):
    """Which timeouts a request has."""

    QUICK = "quick"
    UPLOAD = "upload"
    READ = "read"


@dataclass(frozen=True, slots=True)
class Patience:
    """Bounds on one verb. Only the HTTP client retries single requests; only `create` repeats them above it.

    The client retries 5xx, 429, refused and closed connections and, except for creates, timeouts, waiting longer and
    longer with jitter. One request so ends within `retry_within_s + backoff_most_s` plus its own timeout, and a create
    within `create_within_s` plus twice that; what went wrong is then looked into for at most `probe_s`.

    A request has the quick timeout, a write of more than `QUICK_BYTES` the slow one. A read may take as long as the
    slow one while bytes keep coming; when none come for the quick one, it is over.
    """

    connect_s: float = 5.0
    quick_request_s: float = 10.0
    slow_request_s: float = 120.0
    retries: int = 6
    retry_within_s: float = 30.0
    backoff_first_s: float = 0.1
    backoff_most_s: float = 5.0
    create_tries: int = 4
    create_within_s: float = 60.0
    probe_s: float = 3.0

    def client(self, pace: Pace, *, allow_http: bool, root_certificate: bytes | None) -> ClientConfig:
        """These bounds as the HTTP client's options."""
        request_s = self.quick_request_s if pace is Pace.QUICK else self.slow_request_s
        options: ClientConfig = {
            "connect_timeout": timedelta(seconds=self.connect_s),
            "timeout": timedelta(seconds=request_s),
            "allow_http": allow_http,
        }
        if pace is Pace.READ:
            options["read_timeout"] = timedelta(seconds=self.quick_request_s)
        if root_certificate is not None:
            options["root_certificate"] = root_certificate
        return options

    def retry(self) -> RetryConfig:
        """These bounds as the HTTP client's retry policy."""
        return {
            "max_retries": self.retries,
            "retry_timeout": timedelta(seconds=self.retry_within_s),
            "backoff": {
                "init_backoff": timedelta(seconds=self.backoff_first_s),
                "max_backoff": timedelta(seconds=self.backoff_most_s),
                "base": 2,
            },
        }

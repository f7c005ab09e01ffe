"""How long the store waits and how often it tries again: every timeout and bound of the bucket in one place."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

QUICK_BYTES = 1024 * 1024
"""Requests that carry at most this much get the quick timeout: a silent server is then noticed in seconds."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Bounds on one verb. Only the HTTP client retries single requests; only `create` repeats them above it.

    The client retries 5xx, 429, refused connections and, for reads and overwrites, timeouts and lost replies; each
    time it waits between nothing and twice its last wait. A verb other than `create` ends within
    `retry_within_s + backoff_most_s` plus one request timeout; `create` ends within `create_within_s` plus twice that.
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

    def request_s(self, size_bytes: int | None) -> float:
        """Timeout of one request that carries `size_bytes` (None: unknown), its body included."""
        return self.quick_request_s if is_quick(size_bytes) else self.slow_request_s

    def client(self, *, quick: bool, allow_http: bool, root_certificate: bytes | None) -> ClientConfig:
        """These bounds as the HTTP client's options."""
        request_s = self.quick_request_s if quick else self.slow_request_s
        options: ClientConfig = {
            "connect_timeout": timedelta(seconds=self.connect_s),
            "timeout": timedelta(seconds=request_s),
            "allow_http": allow_http,
        }
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


def is_quick(size_bytes: int | None) -> bool:
    """Whether a request of this size (None: unknown) gets the quick timeout."""
    return size_bytes is not None and size_bytes <= QUICK_BYTES

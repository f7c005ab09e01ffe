"""What a machine's metadata endpoint says of interruptions and addresses (IMDSv2: a session token, then plain reads).

    PUT /latest/api/token                                       a token for the reads
    GET /latest/meta-data/spot/instance-action                  404, or {"action": "terminate", "time": …}
    GET /latest/meta-data/events/recommendations/rebalance      404, or {"noticeTime": …}
    GET /latest/meta-data/local-ipv4                            the machine's private address

Paths, bodies and the advice to ask every five seconds: EC2 User Guide, "Spot Instance interruption notices" and "EC2
instance rebalance recommendations".
"""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from shuntserve.errors import InvalidInput, Unavailable

EC2_ENDPOINT = "http://169.254.169.254"
TOKEN_PATH = "/latest/api/token"  # noqa: S105 -- a path, not a secret
ACTION_PATH = "/latest/meta-data/spot/instance-action"
REBALANCE_PATH = "/latest/meta-data/events/recommendations/rebalance"
ADDRESS_PATH = "/latest/meta-data/local-ipv4"
_TOKEN_TTL_S = 21600
_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Warnings:
    """What the endpoint says now: when the machine will be taken (Unix time), and whether it is at risk."""

    interruption_unix_s: float | None = None
    action: str | None = None
    rebalance: bool = False


class MetadataClient:
    """Reads one endpoint. Blocks for at most a few seconds; call it from a thread of its own."""

    def __init__(self, endpoint: str = EC2_ENDPOINT) -> None:
        parts = urlsplit(endpoint)
        if parts.scheme != "http" or parts.hostname is None:
            raise InvalidInput(f"metadata endpoint {endpoint}", "is not an http URL", f"for instance {EC2_ENDPOINT}")
        self._host, self._port = parts.hostname, parts.port or 80
        self._token: str | None = None

    def warnings(self) -> Warnings:
        """Ask. Raises Unavailable when the endpoint does not answer."""
        action = self._read(ACTION_PATH)
        rebalance = self._read(REBALANCE_PATH) is not None
        if action is None:
            return Warnings(rebalance=rebalance)
        try:
            told = json.loads(action)
            when = datetime.fromisoformat(str(told["time"]))
            return Warnings(when.timestamp(), str(told["action"]), rebalance)
        except (ValueError, KeyError, TypeError) as error:
            raise Unavailable("metadata endpoint", f"answers what cannot be read: {error}") from error

    def address(self) -> str:
        """The machine's private address. Raises Unavailable when the endpoint does not tell."""
        found = self._read(ADDRESS_PATH)
        if found is None:
            raise Unavailable("metadata endpoint", "does not tell the machine's address")
        return found.decode("ascii", "replace").strip()

    def _read(self, path: str) -> bytes | None:
        """A document; None where there is none. A token that has run out is renewed once."""
        for attempt in (1, 2):
            if self._token is None:
                status, body = self._ask("PUT", TOKEN_PATH, {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_TTL_S)})
                if status != http.client.OK:
                    raise Unavailable("metadata endpoint", f"gives no token (status {status})")
                self._token = body.decode("ascii", "replace")
            status, body = self._ask("GET", path, {"X-aws-ec2-metadata-token": self._token})
            if status == http.client.OK:
                return body
            if status == http.client.NOT_FOUND:
                return None
            self._token = None
            if attempt == 2:
                break
        raise Unavailable("metadata endpoint", f"answers with status {status}")

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read(65536)
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a token no header can hold
            raise Unavailable("metadata endpoint", f"does not answer: {error}") from error
        finally:
            connection.close()

"""An S3 server on the loopback: moto's, one request at a time.

moto looks whether an object exists and stores the new one in two steps; S3 does both at once. Serving requests one
after another restores that promise, without which no test of a race would mean anything.
"""

from __future__ import annotations

import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from shuntserve.store.s3_access import S3Options

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def one_at_a_time(app: App) -> App:
    """`app`, answering one request completely before it begins the next."""
    lock = threading.Lock()

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with lock:
            return list(app(environ, start_response))

    return serve


class S3Server:
    """moto's S3 on a free loopback port, in threads of this process, until `stop()`."""

    def __init__(self) -> None:
        app = one_at_a_time(DomainDispatcherApplication(create_backend_app))
        self._server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def options(self) -> S3Options:
        return S3Options(
            endpoint_url=self.endpoint_url, region="us-east-1", access_key_id="test", secret_access_key="test"
        )

    @property
    def environ(self) -> dict[str, str]:
        """The same options, as AWS's own settings."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }

    def make_bucket(self, name: str) -> None:
        """Create an empty bucket; an existing one stays."""
        request = urllib.request.Request(f"{self.endpoint_url}/{name}", method="PUT")
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10).close()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def main() -> None:
    """Serve until the parent goes away, in a process of its own: for benchmarks."""
    server = S3Server()
    server.make_bucket("bench")
    print(server.endpoint_url, flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()

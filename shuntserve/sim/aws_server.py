"""AWS on the loopback, for demonstrations and tests: moto's S3 and EC2, one request at a time.

    python -m shuntserve.sim.aws_server          prints its URL, serves until its standard input ends

moto looks whether an object exists and stores the new one in two steps; S3 does both at once. Serving requests one
after another restores that promise, without which no race would mean anything.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from shuntserve.errors import Unavailable

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
REGION = "us-east-1"


def one_at_a_time(app: App) -> App:
    """`app`, answering one request completely before it begins the next."""
    lock = threading.Lock()

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with lock:
            return list(app(environ, start_response))

    return serve


class AwsServer:
    """moto on a free loopback port, in threads of this process, until `stop()`."""

    def __init__(self) -> None:
        app = one_at_a_time(DomainDispatcherApplication(create_backend_app))
        self._server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def endpoint_url(self) -> str:
        """Where it answers, for every service."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environ(self) -> dict[str, str]:
        """AWS's own settings for it, to be put into a process's environment."""
        return environ_of(self.endpoint_url)

    def make_bucket(self, name: str) -> None:
        """Create an empty bucket; an existing one stays."""
        make_bucket(self.endpoint_url, name)

    def stop(self) -> None:
        """Answer nothing any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class AwsProcess:
    """The same in a process of its own, until `stop()` or the end of the process that started it."""

    def __init__(self, log: Path) -> None:
        with log.open("ab") as file:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "shuntserve.sim.aws_server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,  # a Ctrl-C is for who started it
            )
        assert self._child.stdout is not None
        self.endpoint_url = self._child.stdout.readline().decode().strip()
        if not self.endpoint_url:
            raise Unavailable("AWS on the loopback", "does not start", f"see {log}")

    @property
    def environ(self) -> dict[str, str]:
        """AWS's own settings for it, to be put into a process's environment."""
        return environ_of(self.endpoint_url)

    def stop(self) -> None:
        """Close its standard input, which ends it."""
        self._child.communicate()


def environ_of(endpoint_url: str) -> dict[str, str]:
    """AWS's own settings for a server at this URL."""
    return {
        "AWS_ENDPOINT_URL_S3": endpoint_url,
        "AWS_ENDPOINT_URL_EC2": endpoint_url,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }


def make_bucket(endpoint_url: str, name: str) -> None:
    """Create an empty bucket; an existing one stays."""
    request = urllib.request.Request(f"{endpoint_url}/{name}", method="PUT")  # noqa: S310 -- our own server
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10).close()


def main() -> None:
    """Serve until the parent goes away, in a process of its own."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # else a line for each request
    server = AwsServer()
    sys.stdout.write(server.endpoint_url + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()

"""The S3 server that tests use: moto's on the loopback, with its address and keys as options of ours."""

from __future__ import annotations

import sys

from shuntserve.sim.aws_server import REGION, AwsServer
from shuntserve.store.s3_access import S3Options


class S3Server(AwsServer):
    """moto's S3 on a free loopback port, in threads of this process, until `stop()`."""

    @property
    def options(self) -> S3Options:
        return S3Options(endpoint_url=self.endpoint_url, region=REGION, access_key_id="test", secret_access_key="test")


def main() -> None:
    """Serve until the parent goes away, in a process of its own: for benchmarks."""
    server = S3Server()
    server.make_bucket("bench")
    print(server.endpoint_url, flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()

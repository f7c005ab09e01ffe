"""An EC2 server on the loopback and a provider on it. Each test is a job of its own, or begins with no instances."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shuntserve.catalog import load_catalog
from shuntserve.fleet import ec2
from shuntserve.fleet.ec2 import Ec2Provider
from shuntserve.fleet.ec2_settings import Ec2Settings
from shuntserve.fleet.local_provider import AgentCommand
from shuntserve.sim.aws_server import REGION, AwsServer


@pytest.fixture(scope="session")
def aws() -> Iterator[AwsServer]:
    server = AwsServer()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def fresh_account(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of the test before, and no proxy or credentials of this machine are used."""
    for name, value in {**aws.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    request = urllib.request.Request(f"{aws.endpoint_url}/moto-api/reset", method="POST")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10).close()


@pytest.fixture
def client(aws: AwsServer) -> Any:
    """The account as its owner sees it."""
    return ec2.connect(REGION)


@pytest.fixture
def account(client: Any) -> Ec2Settings:
    """Two zones of moto's default network."""
    subnets = {one["AvailabilityZone"]: one["SubnetId"] for one in client.describe_subnets()["Subnets"]}
    return Ec2Settings(
        REGION,
        "ami-0123456789abcdef0",
        "shuntserve-node",
        ("sg-0123456789abcdef0",),
        {zone: subnets[zone] for zone in ("us-east-1a", "us-east-1b")},
    )


@pytest.fixture
def command(tmp_path: Path) -> AgentCommand:
    return AgentCommand("s3://bucket/root", tmp_path)


@pytest.fixture
def provider(client: Any, account: Ec2Settings, command: AgentCommand) -> Ec2Provider:
    return Ec2Provider(client, account, command, load_catalog())

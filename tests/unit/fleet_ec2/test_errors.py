"""EC2's error codes, each with what it means for who asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from shuntserve.catalog import load_catalog
from shuntserve.core.offers import Offer
from shuntserve.errors import InvalidInput, Unavailable
from shuntserve.fleet.ec2 import Ec2Provider
from shuntserve.fleet.ec2_settings import Ec2Settings
from shuntserve.fleet.local_provider import AgentCommand
from shuntserve.fleet.provider import Launch, NoCapacity

LAUNCH = Launch("n0001", "job", "g6.xlarge", Offer("g6.xlarge", "us-east-1a", "spot", 0.3))

CODES = [
    ("InsufficientInstanceCapacity", 500, NoCapacity, "no capacity"),
    ("UnfulfillableCapacity", 500, NoCapacity, "no capacity"),
    ("InsufficientFreeAddressesInSubnet", 400, NoCapacity, "no capacity"),
    ("SpotMaxPriceTooLow", 400, NoCapacity, "no capacity"),
    ("MaxSpotInstanceCountExceeded", 400, NoCapacity, "quota"),
    ("VcpuLimitExceeded", 400, NoCapacity, "quota"),
    ("InstanceLimitExceeded", 400, NoCapacity, "quota"),
    ("RequestLimitExceeded", 503, Unavailable, "EC2 answered"),
    ("InternalError", 500, Unavailable, "EC2 answered"),
    ("IdempotentParameterMismatch", 400, Unavailable, "EC2 answered"),
    ("SomethingNew", 503, Unavailable, "EC2 answered"),
    ("SomethingNew", 400, InvalidInput, "does not accept"),
    ("InvalidParameterValue", 400, InvalidInput, "does not accept"),
    ("InvalidSubnetID.NotFound", 400, InvalidInput, "does not accept"),
    ("Unsupported", 400, InvalidInput, "does not accept"),
    ("UnauthorizedOperation", 403, InvalidInput, "refused"),
    ("AuthFailure", 401, InvalidInput, "refused"),
    ("PendingVerification", 400, InvalidInput, "refused"),
]


@pytest.fixture
def stubbed() -> Any:
    """A client that asks nobody, and what it is to be answered."""
    client = boto3.client("ec2", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
    with Stubber(client) as stubber:
        stubber.add_response("describe_instances", {"Reservations": []})
        yield client, stubber


def provider(client: Any) -> Ec2Provider:
    account = Ec2Settings("us-east-1", "ami-1", "p", ("sg-1",), {"us-east-1a": "subnet-1"})
    return Ec2Provider(client, account, AgentCommand("s3://bucket", Path("data")), load_catalog())


@pytest.mark.parametrize(("code", "status", "error", "cause"), CODES)
def test_a_code_says_elsewhere_later_or_never(
    stubbed: Any, code: str, status: int, error: type[Exception], cause: str
) -> None:
    """Each code of a refused request becomes the error that says what to do, naming code and next step. The text of
    EC2's message decides nothing."""
    client, stubber = stubbed
    stubber.add_response("create_launch_template", {})
    stubber.add_client_error("create_fleet", code, "Unfulfillable text that means nothing", status)

    with pytest.raises(error) as caught:
        provider(client).launch(LAUNCH)

    assert type(caught.value) is error
    assert cause in str(caught.value)
    assert code in str(caught.value)
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("codes", "error"),
    [
        (["InsufficientInstanceCapacity"], NoCapacity),
        (["InvalidParameterValue"], InvalidInput),
        (["InvalidParameterValue", "UnfulfillableCapacity"], NoCapacity),
        (["InternalError"], NoCapacity),
        ([], NoCapacity),
    ],
)
def test_a_fleet_without_a_machine_raises_why(stubbed: Any, codes: list[str], error: type[Exception]) -> None:
    """An `instant` fleet answers 200 and lists what it met: surely none was made, so it is never left open whether one
    was. It is worth another try if any of what it met may pass."""
    client, stubber = stubbed
    stubber.add_response("create_launch_template", {})
    met = [{"ErrorCode": code, "ErrorMessage": "text"} for code in codes]
    stubber.add_response("create_fleet", {"FleetId": "fleet-1", "Errors": met, "Instances": []})

    with pytest.raises(error):
        provider(client).launch(LAUNCH)


def test_the_request_is_an_instant_fleet_of_one_with_the_launch_as_token(stubbed: Any) -> None:
    """The same launch gives the same token, another launch or job another; at most 64 characters."""
    client, stubber = stubbed
    tokens = []

    def capture(params: dict[str, Any], **_: Any) -> None:
        tokens.append(params["ClientToken"])
        assert params["Type"] == "instant"
        assert params["TargetCapacitySpecification"] == {
            "TotalTargetCapacity": 1,
            "DefaultTargetCapacityType": "spot",
        }
        assert params["SpotOptions"]["AllocationStrategy"] == "price-capacity-optimized"

    client.meta.events.register("provide-client-params.ec2.CreateFleet", capture)
    launches = [LAUNCH, LAUNCH, Launch("n0002", "job", "p", LAUNCH.offer), Launch("n0001", "job2", "p", LAUNCH.offer)]
    for number, launch in enumerate(launches):
        if number:
            stubber.add_response("describe_instances", {"Reservations": []})
        stubber.add_response("create_launch_template", {})
        stubber.add_response("create_fleet", {"Instances": [{"InstanceIds": ["i-1"]}]})
        provider(client).launch(launch)

    assert tokens[0] == tokens[1]
    assert len(set(tokens)) == 3
    assert all(len(token) <= 64 for token in tokens)


@pytest.mark.parametrize("code", ["UnauthorizedOperation", "InvalidParameterValue", "InternalError"])
def test_machines_are_never_taken_to_be_gone_because_ec2_refused(code: str) -> None:
    """Whatever hinders the list, its error is Unavailable: the machines may be there and cost money."""
    client = boto3.client("ec2", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
    with Stubber(client) as stubber:
        stubber.add_client_error("describe_instances", code, "", 403)

        with pytest.raises(Unavailable):
            provider(client).machines("job")


def test_a_template_that_another_controller_made_is_used(stubbed: Any) -> None:
    """Two controllers in turn make the same template; the second finds it there."""
    client, stubber = stubbed
    stubber.add_client_error("create_launch_template", "InvalidLaunchTemplateName.AlreadyExistsException", "", 400)
    stubber.add_response("create_fleet", {"Instances": [{"InstanceIds": ["i-1"]}]})

    provider(client).launch(LAUNCH)

    stubber.assert_no_pending_responses()

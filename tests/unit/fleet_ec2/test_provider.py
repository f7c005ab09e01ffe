"""What the EC2 provider promises, over an EC2 server on the loopback."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest

from shuntserve.catalog import load_catalog
from shuntserve.core.offers import Offer
from shuntserve.errors import InvalidInput, NotFound, Unavailable
from shuntserve.fleet.ec2 import Ec2Provider, connect
from shuntserve.fleet.ec2_settings import Ec2Settings
from shuntserve.fleet.local_provider import AgentCommand
from shuntserve.fleet.provider import Launch

SPOT = Offer("g6.xlarge", "us-east-1b", "spot", 0.3)
ON_DEMAND = Offer("g6.xlarge", "", "on-demand", 0.8)


def launch(number: int, offer: Offer = SPOT, job_id: str = "job") -> Launch:
    return Launch(f"n{number:04d}", job_id, "g6.xlarge", offer)


def instances(client: Any) -> list[dict[str, Any]]:
    """Every instance of the account, ended ones too."""
    return [one for found in client.describe_instances()["Reservations"] for one in found["Instances"]]


def template_data(client: Any) -> list[dict[str, Any]]:
    """What each launch template of the account says."""
    names = [one["LaunchTemplateName"] for one in client.describe_launch_templates()["LaunchTemplates"]]
    versions = [client.describe_launch_template_versions(LaunchTemplateName=name) for name in names]
    return [one["LaunchTemplateVersions"][0]["LaunchTemplateData"] for one in versions]


def test_a_launch_repeated_is_one_instance(provider: Ec2Provider, client: Any) -> None:
    """However often a launch is asked for, by this provider or another, there is one instance of it."""
    for _ in range(3):
        provider.launch(launch(1))
    provider.launch(launch(2))

    assert len(instances(client)) == 2
    assert [machine.id for machine in provider.machines("job")] == ["n0001", "n0002"]


def test_a_launch_whose_instance_has_ended_is_not_made_again(provider: Ec2Provider, client: Any) -> None:
    """A late repetition of a launch does not bring a machine back that was terminated."""
    provider.launch(launch(1))
    provider.terminate("job", "n0001")

    provider.launch(launch(1))

    assert len(instances(client)) == 1
    assert not provider.machines("job")


def test_the_machine_is_what_the_offer_says(provider: Ec2Provider, client: Any) -> None:
    """Type, zone, market and tags of the instance are those of the launch."""
    provider.launch(launch(1))
    provider.launch(launch(2, ON_DEMAND))

    spot, on_demand = instances(client)
    assert (spot["InstanceType"], spot["Placement"]["AvailabilityZone"]) == ("g6.xlarge", "us-east-1b")
    assert spot["InstanceLifecycle"] == "spot"
    assert "InstanceLifecycle" not in on_demand
    tags = {tag["Key"]: tag["Value"] for tag in spot["Tags"]}
    assert (tags["shuntserve:job"], tags["shuntserve:launch"]) == ("job", "n0001")


def test_machines_of_a_job_are_its_own_and_those_that_may_cost_money(provider: Ec2Provider, client: Any) -> None:
    """Stopped instances still have disks that are paid for and count; terminated ones and other jobs' do not."""
    for number in range(1, 4):
        provider.launch(launch(number))
    provider.launch(launch(1, job_id="another"))
    ids = {machine.id: machine.machine_id for machine in provider.machines("job")}
    client.stop_instances(InstanceIds=[ids["n0002"]])
    client.terminate_instances(InstanceIds=[ids["n0003"]])

    seen = {machine.id: machine.running for machine in provider.machines("job")}

    assert seen == {"n0001": True, "n0002": False}
    assert len(provider.machines("another")) == 1


def test_machines_are_told_of_over_more_than_one_page(client: Any, account: Ec2Settings, command: AgentCommand) -> None:
    """A list that EC2 gives in pages is read to its end."""

    class InPages:
        """The same client, whose pages hold five reservations."""

        def __getattr__(self, name: str) -> Any:
            return getattr(client, name)

        def get_paginator(self, name: str) -> Any:
            pages = client.get_paginator(name)

            class Pages:
                def paginate(self, **arguments: Any) -> Any:
                    return pages.paginate(**arguments, PaginationConfig={"PageSize": 5})

            return Pages()

    provider = Ec2Provider(InPages(), account, command, load_catalog())
    for number in range(1, 13):
        provider.launch(launch(number))

    assert len({machine.id for machine in provider.machines("job")}) == 12


@pytest.mark.parametrize("at_once", [False, True])
def test_terminate_ends_one_machine_and_may_be_repeated(provider: Ec2Provider, *, at_once: bool) -> None:
    """Only the machine named ends; ending it again, or one that never was, is fine."""
    provider.launch(launch(1))
    provider.launch(launch(2))

    for _ in range(2):
        provider.terminate("job", "n0001", at_once=at_once)
    provider.terminate("job", "n0009", at_once=at_once)

    assert [machine.id for machine in provider.machines("job")] == ["n0002"]


def test_instances_end_on_shutdown_and_give_their_metadata_to_sessions_only(provider: Ec2Provider, client: Any) -> None:
    """The template makes shutdown terminate and IMDSv2 required, and the launch's tag readable on the machine."""
    provider.launch(launch(1))

    (data,) = template_data(client)
    assert data["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert data["MetadataOptions"]["HttpTokens"] == "required"
    assert data["MetadataOptions"]["InstanceMetadataTags"] == "enabled"
    assert data["IamInstanceProfile"]["Name"] == "shuntserve-node"


def test_user_data_holds_no_secret(provider: Ec2Provider, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever credentials the controller has, none of them are in what an instance can be asked for."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setenv("HF_TOKEN", "very-secret")

    provider.launch(launch(1))

    (instance,) = instances(client)
    told = client.describe_instance_attribute(InstanceId=instance["InstanceId"], Attribute="userData")
    script = base64.b64decode(told["UserData"]["Value"]).decode()
    assert "s3://bucket/root" in script
    assert "very-secret" not in script


def test_a_template_is_made_once_for_a_job(provider: Ec2Provider, client: Any) -> None:
    """Launches of a job share its template; another job has its own."""
    for number in range(1, 4):
        provider.launch(launch(number))
    provider.launch(launch(1, job_id="another"))

    assert len(template_data(client)) == 2


def test_the_price_is_the_users_else_the_catalogues(provider: Ec2Provider) -> None:
    """A price in the pool stands; without one the catalogue's spot or on-demand price is taken."""
    instance = load_catalog().instance("g6.xlarge")

    assert provider.price(SPOT).usd_per_h == 0.3
    assert provider.price(Offer("g6.xlarge", "", "spot", None)).usd_per_h == instance.spot_usd_per_h
    assert provider.price(Offer("g6.xlarge", "", "on-demand", None)).usd_per_h == instance.ondemand_usd_per_h
    assert provider.on_demand_usd_per_h(SPOT) == instance.ondemand_usd_per_h
    assert provider.on_demand_usd_per_h(Offer("x9.huge", "", "spot", 1.0)) is None


@pytest.mark.parametrize(
    ("offer", "error"),
    [
        (Offer("g6.xlrge", "", "spot", None), NotFound),
        (Offer("g6.xlarge", "us-east-1e", "spot", None), InvalidInput),
        (Offer("g6.xlarge", "us-east-1e", "spot", 0.3), InvalidInput),
    ],
)
def test_an_offer_that_can_never_be_had_is_refused_before_anything_is_bought(
    provider: Ec2Provider, offer: Offer, error: type[InvalidInput]
) -> None:
    """A type nobody knows a price of, or a zone without a subnet, is the user's to change."""
    with pytest.raises(error) as caught:
        provider.price(offer)

    assert caught.value.next_step


def test_a_subnet_that_is_not_there_is_the_users_to_change(
    client: Any, account: Ec2Settings, command: AgentCommand
) -> None:
    """What EC2 does not accept is InvalidInput, not something to wait for, and names the machine."""
    wrong = replace(account, subnets={"us-east-1b": "subnet-00000000000000000"})

    with pytest.raises(InvalidInput) as caught:
        Ec2Provider(client, wrong, command, load_catalog()).launch(launch(1))

    assert "n0001" in caught.value.thing
    assert "InvalidSubnetID.NotFound" in caught.value.cause
    assert not instances(client)


def test_a_server_that_does_not_answer_is_unavailable(account: Ec2Settings, command: AgentCommand) -> None:
    """Nobody answers: later. Also for `machines`, which may not pretend that there are none."""
    nobody = connect("us-east-1", "http://127.0.0.1:9")
    provider = Ec2Provider(nobody, account, command, load_catalog())

    for ask in (
        lambda: provider.machines("job"),
        lambda: provider.launch(launch(1)),
        lambda: provider.terminate("job", "n0001"),
    ):
        with pytest.raises(Unavailable):
            ask()

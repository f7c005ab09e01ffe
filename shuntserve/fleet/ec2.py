"""The fleet on EC2: each machine an instance of its own, bought through a CreateFleet of type `instant`.

`instant` answers at once with the machine or with why there is none, and leaves nothing behind that would buy more by
itself. The launch's id is the request's ClientToken and the instance's tag, so that a repeated launch, by whomever,
finds the machine of the first one. Instances end for good when they shut down; they hold no secret.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from shuntserve.core.catalog import Catalog
from shuntserve.core.offers import Offer
from shuntserve.errors import InvalidInput, NotFound, Unavailable
from shuntserve.fleet import ec2_errors
from shuntserve.fleet.ec2_settings import Ec2Settings
from shuntserve.fleet.local_provider import AgentCommand
from shuntserve.fleet.provider import Launch, Machine, NoCapacity, Patience
from shuntserve.fleet.user_data import JOB_TAG, LAUNCH_TAG, node_script

_PAID = ("pending", "running", "stopping", "stopped")
"""States in which an instance, or its disk, costs money."""
_TEMPLATE_THERE = "InvalidLaunchTemplateName.AlreadyExistsException"
_MOST_TEMPLATE_NAME = 128


def connect(region: str, endpoint_url: str | None = None) -> Any:
    """A client of EC2. Raises InvalidInput when the AWS configuration is wrong."""
    config = Config(retries={"mode": "standard", "total_max_attempts": 4}, connect_timeout=5, read_timeout=30)
    return asked("EC2", lambda: boto3.client("ec2", region_name=region, endpoint_url=endpoint_url, config=config))


class Ec2Provider:
    """Machines as EC2 instances. `command` is what their agents run, `client` boto3's of EC2."""

    def __init__(self, client: Any, settings: Ec2Settings, command: AgentCommand, catalog: Catalog) -> None:
        self._client = client
        self._settings = settings
        self._command = command
        self._catalog = catalog

    @property
    def patience(self) -> Patience:
        """DescribeInstances lags seconds behind; a boot takes minutes, though drivers and packages are on the image."""
        return Patience(machine_s=60.0, agent_s=900.0)

    # -- prices ------------------------------------------------------------------------------------------------------

    def price(self, offer: Offer) -> Offer:
        """The offer with the user's own price, else the catalogue's. Raises InvalidInput when neither is known."""
        self._settings.subnets_of(offer)
        if offer.usd_per_h is not None:
            return offer
        instance = self._catalog.instance(offer.instance_type)
        if offer.market == "spot":
            usd = self._catalog.spot_usd_per_h(instance.name, offer.zone)
        else:
            usd = instance.ondemand_usd_per_h
        if usd is None:
            raise InvalidInput(
                f"pool {offer.name}",
                f"the catalogue has no {offer.market} price of {instance.name}",
                "write …=COUNT@USD_PER_HOUR, or run `shuntserve catalog refresh`",
            )
        return Offer(instance.name, offer.zone, offer.market, usd)

    def on_demand_usd_per_h(self, offer: Offer) -> float | None:
        """The catalogue's on-demand price; None for a type it does not have."""
        try:
            return self._catalog.instance(offer.instance_type).ondemand_usd_per_h
        except NotFound:
            return None

    # -- machines ----------------------------------------------------------------------------------------------------

    def launch(self, launch: Launch) -> None:
        """Buy the machine, unless that was done before, whatever has become of it since."""
        thing = f"machine {launch.id} ({launch.offer.name})"
        if any(True for _ in self._instances(thing, launch.job_id, launch.id)):
            return
        template = self._template(launch.job_id)
        overrides = [
            {"InstanceType": launch.offer.instance_type, "SubnetId": subnet}
            for subnet in self._settings.subnets_of(launch.offer)
        ]
        tags = {JOB_TAG: launch.job_id, LAUNCH_TAG: launch.id, "Name": f"shuntserve {launch.job_id} {launch.id}"}
        answer = asked(
            thing,
            lambda: self._client.create_fleet(
                Type="instant",
                ClientToken=_token(launch.job_id, launch.id),
                LaunchTemplateConfigs=[
                    {
                        "LaunchTemplateSpecification": {"LaunchTemplateName": template, "Version": "$Default"},
                        "Overrides": overrides,
                    }
                ],
                TargetCapacitySpecification={
                    "TotalTargetCapacity": 1,
                    "DefaultTargetCapacityType": launch.offer.market,
                },
                SpotOptions={
                    "AllocationStrategy": "price-capacity-optimized",
                    "InstanceInterruptionBehavior": "terminate",
                },
                OnDemandOptions={"AllocationStrategy": "lowest-price"},
                TagSpecifications=[{"ResourceType": "instance", "Tags": _tags(tags)}],
            ),
        )
        if not any(group.get("InstanceIds") for group in answer.get("Instances", ())):
            codes = [str(error.get("ErrorCode", "unknown")) for error in answer.get("Errors", ())]
            raise _refusal(thing, codes)

    def machines(self, job_id: str) -> Sequence[Machine]:
        """Instances that may cost money. Raises Unavailable, whatever the reason: they may be there all the same."""
        thing = f"machines of job {job_id}"
        with_launch = self._instances(thing, job_id, None, _PAID)
        try:
            return tuple(
                Machine(_tag(instance, LAUNCH_TAG), instance["InstanceId"], instance["State"]["Name"] == "running")
                for instance in with_launch
            )
        except InvalidInput as error:
            raise Unavailable(error.thing, error.cause, error.next_step) from error

    def terminate(self, job_id: str, launch_id: str, *, at_once: bool = False) -> None:
        """Terminate the launch's instances. Their systems shut down in order, agents first, unless `at_once`."""
        thing = f"machine {launch_id}"
        try:
            ids = [instance["InstanceId"] for instance in self._instances(thing, job_id, launch_id, _PAID)]
            if ids:
                how = {"SkipOsShutdown": True} if at_once else {}
                asked(thing, lambda: self._client.terminate_instances(InstanceIds=ids, **how))
        except InvalidInput as error:
            raise Unavailable(error.thing, error.cause, error.next_step) from error

    def _instances(
        self, thing: str, job_id: str, launch_id: str | None, states: Sequence[str] = ()
    ) -> Iterator[Mapping[str, Any]]:
        filters = [{"Name": f"tag:{JOB_TAG}", "Values": [job_id]}]
        if launch_id is not None:
            filters.append({"Name": f"tag:{LAUNCH_TAG}", "Values": [launch_id]})
        if states:
            filters.append({"Name": "instance-state-name", "Values": list(states)})
        pages = self._client.get_paginator("describe_instances").paginate(Filters=filters)
        for page in asked(thing, lambda: list(pages)):
            for reservation in page["Reservations"]:
                yield from reservation["Instances"]

    # -- launch template ---------------------------------------------------------------------------------------------

    def _template(self, job_id: str) -> str:
        """The job's launch template, made unless it is there; its name says what is in it."""
        data = self._template_data(job_id)
        digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]
        name = f"shuntserve-{job_id}"[: _MOST_TEMPLATE_NAME - 13] + f"-{digest}"
        tags = [{"ResourceType": "launch-template", "Tags": _tags({JOB_TAG: job_id})}]
        try:
            self._client.create_launch_template(
                LaunchTemplateName=name, LaunchTemplateData=data, TagSpecifications=tags, ClientToken=_token(name)
            )
        except ClientError as error:
            if ec2_errors.code_of(error) != _TEMPLATE_THERE:
                raise ec2_errors.translated(f"launch template {name}", error) from error
        except BotoCoreError as error:
            raise ec2_errors.translated(f"launch template {name}", error) from error
        return name

    def _template_data(self, job_id: str) -> dict[str, Any]:
        settings = self._settings
        script = node_script(self._command, job_id, python=settings.python, region=settings.region)
        return {
            "ImageId": settings.image,
            "IamInstanceProfile": {"Name": settings.instance_profile},
            "SecurityGroupIds": list(settings.security_groups),
            "InstanceInitiatedShutdownBehavior": "terminate",
            "MetadataOptions": {
                "HttpEndpoint": "enabled",
                "HttpTokens": "required",
                "HttpPutResponseHopLimit": 1,
                "InstanceMetadataTags": "enabled",
            },
            "UserData": base64.b64encode(script.encode()).decode(),
        }


def asked(thing: str, ask: Callable[[], Any]) -> Any:
    """The answer to a request, its errors translated. Raises InvalidInput or Unavailable."""
    try:
        return ask()
    except (ClientError, BotoCoreError) as error:
        raise ec2_errors.translated(thing, error) from error


def _refusal(thing: str, codes: Sequence[str]) -> InvalidInput | NoCapacity:
    """One error for all that a fleet without a machine met: it is worth another try if any of that is."""
    found = [ec2_errors.of_code(thing, code, 400) for code in dict.fromkeys(codes)]
    found = found or [NoCapacity(thing, "EC2 gave no machine and no reason", "try again later")]
    best = next((error for error in found if isinstance(error, Unavailable)), found[0])
    if isinstance(best, InvalidInput):
        return best
    return NoCapacity(best.thing, best.cause, best.next_step)


def _token(*parts: str) -> str:
    """A ClientToken: at most 64 characters, the same for the same thing."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def _tag(instance: Mapping[str, Any], key: str) -> str:
    return next((str(tag["Value"]) for tag in instance.get("Tags", ()) if tag["Key"] == key), "")

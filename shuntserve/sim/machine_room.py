"""Plays the hardware behind an EC2 server that has none (moto's): a process for each of our instances.

    python -m shuntserve.sim.machine_room --endpoint URL --data-dir DIRECTORY [--machines 2]

It looks at EC2 as anybody may, through its API. An instance of ours that is to run gets a machine (`local_machine`)
with the agent that its user data asks for; a machine that shuts down terminates its instance, and an instance that was
terminated through the API has its machine shut down. Interruptions are announced on a machine's own metadata endpoint:
see `MachineRoom.interrupt`. `--machines` instances share this computer. The room's end cuts the power of them all.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shuntserve.core.offers import Offer
from shuntserve.errors import ShuntServeError
from shuntserve.fleet import ec2, local_machine
from shuntserve.fleet.local_provider import AgentCommand, LocalProvider
from shuntserve.fleet.provider import Launch
from shuntserve.fleet.user_data import JOB_TAG, LAUNCH_TAG, agent_options

LOOK_S = 0.5
_NEVER_STARTED_S = 60.0
_ALIVE = ("pending", "running")
_log = logging.getLogger("shuntserve.machine_room")


@dataclass(frozen=True, slots=True)
class Machine:
    """One instance's machine. `slot` is its share of this computer."""

    provider: LocalProvider
    job_id: str
    launch_id: str
    slot: int
    started_s: float

    @property
    def directory(self) -> Path:
        """Where its files are."""
        return self.provider.directory(self.job_id, self.launch_id)

    def ended(self, now_s: float) -> bool:
        """Whether it has shut down, lost power, or never started."""
        if (self.directory / "ended").exists():
            return not local_machine.is_running(self.directory)
        if local_machine.where(self.directory) is None:
            return now_s - self.started_s >= _NEVER_STARTED_S
        return not local_machine.is_running(self.directory)


class MachineRoom:
    """Machines for the instances that one EC2 endpoint tells of. `tick` again and again."""

    def __init__(self, client: Any, data_dir: Path, machines: int) -> None:
        self._client = client
        self._data_dir = data_dir
        self._shares = machines
        self._machines: dict[str, Machine] = {}
        """By instance id; one that has ended stays, so that it is not started again."""

    def tick(self, now_s: float) -> None:
        """Look once, and make machines and instances agree."""
        for instance in self._instances():
            instance_id, state = instance["InstanceId"], instance["State"]["Name"]
            machine = self._machines.get(instance_id)
            if state not in _ALIVE:
                if machine is not None and local_machine.is_running(machine.directory):
                    machine.provider.terminate(machine.job_id, machine.launch_id)
            elif machine is None:
                self._machines[instance_id] = self._start(instance, now_s)
            elif machine.ended(now_s):
                self._terminate(instance_id)

    def interrupt(self, launch_id: str, in_s: float) -> bool:
        """Announce that a machine will be taken; False when there is none of that launch."""
        for machine in self._machines.values():
            if machine.launch_id == launch_id and local_machine.is_running(machine.directory):
                local_machine.interrupt(machine.directory, in_s)
                return True
        return False

    def cut_power(self) -> None:
        """End every machine at once, then their instances. Raises Unavailable, but only after the machines."""
        for machine in self._machines.values():
            machine.provider.terminate(machine.job_id, machine.launch_id, at_once=True)
        if self._machines:
            ids = list(self._machines)
            ec2.asked("instances", lambda: self._client.terminate_instances(InstanceIds=ids))

    def _terminate(self, instance_id: str) -> None:
        ec2.asked(instance_id, lambda: self._client.terminate_instances(InstanceIds=[instance_id]))

    def _start(self, instance: Mapping[str, Any], now_s: float) -> Machine:
        tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
        launch_id, job_id = tags[LAUNCH_TAG], tags[JOB_TAG]
        describe = self._client.describe_instance_attribute
        answer = ec2.asked("user data", lambda: describe(InstanceId=instance["InstanceId"], Attribute="userData"))
        options = agent_options(base64.b64decode(answer["UserData"]["Value"]).decode())
        provider = LocalProvider(
            AgentCommand(
                store_url=options["--store"],
                data_dir=self._data_dir,
                log_level=options["--log-level"],
                engine=options.get("--engine"),
                engine_options=json.loads(options.get("--engine-options", "{}")),
                notice_interval_s=float(options["--notice-interval"]),
            )
        )
        slot = self._free_slot()
        offer = Offer(instance["InstanceType"], "", "spot", None)
        provider.launch(Launch(launch_id, job_id, "", offer, slot, self._shares))
        return Machine(provider, job_id, launch_id, slot, now_s)

    def _free_slot(self) -> int:
        taken = {one.slot for one in self._machines.values() if local_machine.is_running(one.directory)}
        return next((slot for slot in range(self._shares) if slot not in taken), 0)

    def _instances(self) -> Iterator[Mapping[str, Any]]:
        pages = self._client.get_paginator("describe_instances").paginate(
            Filters=[{"Name": "tag-key", "Values": [LAUNCH_TAG]}]
        )
        for page in ec2.asked("EC2", lambda: list(pages)):
            for reservation in page["Reservations"]:
                yield from reservation["Instances"]


def main() -> int:
    """Run the room until it is told to stop, or its parent is gone."""
    parser = argparse.ArgumentParser(prog="machine_room", description=__doc__)
    parser.add_argument("--endpoint", required=True, help="the EC2 server")
    parser.add_argument("--data-dir", type=Path, required=True, help="where machines and logs are kept")
    parser.add_argument("--machines", type=int, default=2, help="how many share this computer")
    parser.add_argument("--region", default="us-east-1")
    parser.add_argument("--parent", type=int, default=None, help="end when this process is gone")
    arguments = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s")
    client = ec2.connect(arguments.region, arguments.endpoint)
    room = MachineRoom(client, arguments.data_dir, arguments.machines)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stop.set())
    try:
        while not stop.wait(LOOK_S) and arguments.parent in (None, os.getppid()):
            try:
                room.tick(time.monotonic())
            except ShuntServeError as error:
                _log.warning("%s", error)
    finally:
        with contextlib.suppress(ShuntServeError):  # the server may be gone already
            room.cut_power()
    return 0


if __name__ == "__main__":
    sys.exit(main())

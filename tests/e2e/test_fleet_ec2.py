"""A job on EC2's API: the controller buys instances from an EC2 server, a machine room gives them life."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
import s3fs
import yaml

from shuntserve.fleet import ec2, local_machine
from shuntserve.fleet.local_provider import AgentCommand, LocalProvider
from shuntserve.job.status import JobStatus, job_status
from shuntserve.sim.aws_server import REGION, AwsProcess, make_bucket
from shuntserve.store.open import open_bucket
from shuntserve.store.s3_access import S3Options
from tests.support.command import Workplace, prompts

STORE = "s3://shunt/store"
ENGINE = "--worker-engine=shuntserve.wiring:standin_engine"
ENGINE_OPTIONS = '--worker-engine-options={"seats": 8, "step_s": 0.02, "stream_interval": 2}'
SETTINGS = ("checkpoint_interval_s=0.5", "lease_s=3", "spending_lease_s=20", "max_length_finish_fraction=1", "seed=7")


class Cloud:
    """An account on an EC2 and S3 server, and the room where its instances run."""

    def __init__(self, directory: Path) -> None:
        self.aws = AwsProcess(directory / "aws.log")
        make_bucket(self.aws.endpoint_url, "shunt")
        self.room_data = directory / "data" / "room"
        self.client = ec2.connect(REGION, self.aws.endpoint_url)
        subnets = {one["AvailabilityZone"]: one["SubnetId"] for one in self.client.describe_subnets()["Subnets"]}
        account = {
            "region": REGION,
            "image": "ami-0123456789abcdef0",
            "instance_profile": "shuntserve-node",
            "security_groups": ["sg-0123456789abcdef0"],
            "subnets": subnets,
        }
        (directory / "ec2.yaml").write_text(yaml.safe_dump(account))
        self.place = Workplace(
            directory, {"SHUNTSERVE_EC2": str(directory / "ec2.yaml"), "SHUNTSERVE_STORE": STORE, **self.aws.environ}
        )
        command = [sys.executable, "-m", "shuntserve.sim.machine_room", "--endpoint", self.aws.endpoint_url]
        with (directory / "room.log").open("ab") as log:
            self.room = subprocess.Popen(
                [*command, "--data-dir", str(self.room_data), "--machines", "2"],
                stdin=subprocess.DEVNULL,
                stderr=log,
                env=self.place.whole_environment,
                start_new_session=True,
            )
        options = S3Options(endpoint_url=self.aws.endpoint_url, region=REGION, access_key_id="a", secret_access_key="b")
        self.bucket = open_bucket(STORE, s3=options)

    def close(self) -> None:
        self.room.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.room.wait(20)
        for process in self.place.processes():
            process.kill()
        self.aws.stop()

    def submit(self, name: str, *more: str) -> str:
        """Submit the written input on two instances; the job's id."""
        done = self.place.call(
            "submit",
            "prompts.parquet",
            f"--model={self.place.model}",
            f"--name={name}",
            "--fleet=ec2",
            "--pool=g6.xlarge/us-east-1a/spot=2@1",
            "--max-cost-usd=100",
            *(f"--set={text}" for text in SETTINGS),
            ENGINE,
            ENGINE_OPTIONS,
            "--json",
            *more,
        )
        assert done.exit_code == 0, done.stderr
        return str(done.summary["job"])

    def instances(self) -> dict[str, tuple[str, str]]:
        """Launch → (instance, state), of the whole account."""
        found = [one for page in self.client.describe_instances()["Reservations"] for one in page["Instances"]]
        tags = {one["InstanceId"]: {tag["Key"]: tag["Value"] for tag in one["Tags"]} for one in found}
        return {
            tags[one["InstanceId"]]["shuntserve:launch"]: (one["InstanceId"], one["State"]["Name"]) for one in found
        }

    def machine(self, job_id: str, launch_id: str) -> Path:
        """The directory of the machine behind an instance."""
        return LocalProvider(AgentCommand(STORE, self.room_data)).directory(job_id, launch_id)

    def until(
        self, job_id: str, what: str, condition: Callable[[JobStatus], Any], within_s: float = 200.0
    ) -> JobStatus:
        """Wait until the job's status satisfies `condition`."""
        give_up_s = time.monotonic() + within_s
        while True:
            status = job_status(self.bucket, job_id)
            if condition(status):
                return status
            if time.monotonic() > give_up_s:
                told = json.dumps(status.to_json(), default=str)
                raise AssertionError(f"waited {within_s:.0f} s in vain for {what}: {told}")
            time.sleep(0.3)

    def texts(self, job_id: str) -> dict[str, str]:
        """Output texts by id; no id may come twice."""
        files = s3fs.S3FileSystem(key="a", secret="b", endpoint_url=self.aws.endpoint_url, use_listings_cache=False)
        rows = ds.dataset(f"shunt/store/outbox/{job_id}/data", filesystem=files).to_table().to_pylist()
        texts = {row["request_id"]: row["output_text"] for row in rows}
        assert len(texts) == len(rows), "an id occurs twice"
        return texts


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    one = Cloud(tmp_path)
    yield one
    one.close()


def test_rows_are_exact_when_one_instance_is_noticed_and_another_terminated(cloud: Cloud) -> None:
    """Of two spot instances one gets an interruption notice and one is terminated through the API, both while they
    generate. Both are replaced, every row is there once with an undisturbed run's text, every instance is terminated
    in the end, and no process is left."""
    place = cloud.place
    place.write(prompts(120, max_tokens=100))
    job_id = cloud.submit("two")
    cloud.until(
        job_id,
        "two generating nodes",
        lambda status: (
            status.snapshot is not None and sum(one.count("tokens_durable") > 0 for one in status.snapshot.live) == 2
        ),
    )

    local_machine.interrupt(cloud.machine(job_id, "n0001"), 12.0)
    cloud.client.terminate_instances(InstanceIds=[cloud.instances()["n0002"][0]])
    status = cloud.until(
        job_id,
        "the end",
        lambda status: status.final is not None and not status.fleet.open_launches and not status.controller_alive,
    )

    undisturbed = place.call("run", "prompts.parquet", f"--model={place.model}", f"--output={place.directory / 'out'}",
        f"--store={place.directory / 'store'}", "--workers=2", "--max-length-finish-fraction=1", "--seed=7", ENGINE,
        '--worker-engine-options={"seats": 64}', "--json")  # fmt: skip
    assert undisturbed.exit_code == 0, undisturbed.stderr
    assert cloud.texts(job_id) == place.texts()
    assert status.final is not None
    assert status.final.totals.tokens_kept > 0
    told = {(one["kind"], one["node"]) for one in status.to_json()["interruptions"]}
    assert ("notice", "n0001") in told
    assert {state for _, state in cloud.instances().values()} == {"terminated"}
    assert len(cloud.instances()) >= 3, "nothing was replaced"
    cloud.room.send_signal(signal.SIGTERM)
    assert cloud.room.wait(20) == 0
    assert place.processes() == []


def test_the_rooms_end_cuts_the_power_of_every_machine(cloud: Cloud) -> None:
    """When the room ends, however busy its machines are, none of them is left and no instance runs."""
    cloud.place.write(prompts(300, max_tokens=200))
    job_id = cloud.submit("power")
    cloud.until(job_id, "generating", lambda status: status.snapshot is not None and status.live_workers)
    assert cloud.place.call("stop", job_id).exit_code == 0

    cloud.room.send_signal(signal.SIGTERM)
    assert cloud.room.wait(20) == 0

    assert not any(local_machine.is_running(cloud.machine(job_id, name)) for name in cloud.instances())
    assert {state for _, state in cloud.instances().values()} <= {"terminated", "shutting-down"}


def test_a_fleet_that_can_never_be_launched_is_refused_where_it_is_asked_for(cloud: Cloud, tmp_path: Path) -> None:
    """A store EC2 cannot reach, a type nobody sells, a zone without a subnet, no facts of the account: `submit` says so
    with cause and next step, and nothing is bought."""
    cloud.place.write(prompts(3))
    cases = [
        ((f"--store={tmp_path / 'here'}",), "cannot be reached from EC2"),
        (("--pool=g6.xlrge=1",), "did you mean g6.xlarge"),
        (("--pool=g6.xlarge/eu-west-1a=1",), "zone eu-west-1a has no subnet"),
        (("--pool=g6.xlarge=1",), "write a YAML file with"),
    ]

    for more, told in cases:
        if told == "write a YAML file with":
            (tmp_path / "ec2.yaml").unlink()
        refused = cloud.place.call(
            "submit", "prompts.parquet", f"--model={cloud.place.model}", "--fleet=ec2", "--pool=g6.2xlarge=1",
            "--max-cost-usd=1", *more,
        )  # fmt: skip
        assert refused.exit_code == 2, refused.stderr
        assert told in refused.stderr
        assert " — " in refused.stderr, "no next step"
    assert cloud.instances() == {}

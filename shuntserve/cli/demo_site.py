"""The demonstration's site: S3 and EC2 on the loopback, a machine room, Prefect's server and worker, all of them ended
with it.

    python -m shuntserve.cli.demo_site DIRECTORY       the warden: waits for the demonstration's end, then sweeps

Every process of the demonstration carries its directory in the environment, and so does everything it starts. Whatever
still runs with that mark at the end is killed, by the demonstration or, when that was killed itself, by its warden.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from shuntserve.cli.demo_input import MACHINES
from shuntserve.errors import Unavailable
from shuntserve.fleet import ec2
from shuntserve.fleet.local_provider import AgentCommand, LocalProvider
from shuntserve.sim.aws_server import REGION, AwsProcess, make_bucket
from shuntserve.store.open import open_bucket
from shuntserve.store.port import Bucket
from shuntserve.store.s3_access import S3Options

MARK = "SHUNTSERVE_DEMO"
STORE = "s3://shunt/store"
CHECKOUT = Path(__file__).resolve().parents[2]
_WORK_POOL = "shuntserve"
_PREFECT_ANSWERS_S = 120.0
_ORDERLY_S = 10.0
_FLEET = ("shuntserve.fleet.", "shuntserve.job.", "shuntserve.engine.", "shuntserve.cli.app", "controller")


@dataclass(slots=True)
class Site:
    """Start it with `open`, and `close` it whatever happens."""

    directory: Path
    aws: AwsProcess | None = None
    port: int = 0
    _children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    # -- beginning and end -------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Start everything but the machines."""
        self._children["warden"] = self._spawn(
            "warden", [sys.executable, "-m", "shuntserve.cli.demo_site", str(self.directory)], stdin=subprocess.PIPE
        )
        os.environ[MARK] = str(self.directory)
        self.port = _free_port()
        self._children["prefect-server"] = self._prefect_server()
        self.aws = AwsProcess(self.directory / "logs" / "aws.log")
        os.environ.update(self._environment())
        make_bucket(self.aws.endpoint_url, "shunt")
        self._write_account()
        room = [sys.executable, "-m", "shuntserve.sim.machine_room", "--endpoint", self.aws.endpoint_url]
        room += ["--data-dir", str(self.directory / "room"), "--machines", str(MACHINES), "--parent", str(os.getpid())]
        self._children["machine-room"] = self._spawn("machine-room", room)
        self.prefect("/health")
        worker = [*_prefect("worker", "start"), "--pool", _WORK_POOL, "--type", "process", "--name", "demo"]
        self._children["prefect-worker"] = self._spawn("prefect-worker", worker)
        self._deploy()

    def close(self) -> None:
        """End everything."""
        for name in ("prefect-worker", "machine-room", "prefect-server"):
            if name in self._children:
                self._children[name].send_signal(signal.SIGTERM)
        give_up_s = time.monotonic() + _ORDERLY_S
        for name, child in self._children.items():
            if name != "warden":
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(max(0.0, give_up_s - time.monotonic()))
        if self.aws is not None:
            self.aws.stop()
        sweep(self.directory)
        warden = self._children.get("warden")
        if warden is not None:
            warden.communicate()

    def fleet(self) -> list[psutil.Process]:
        """What is alive of controllers, machines, agents, workers and engines."""
        found = []
        for process in marked(self.directory):
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if any(word.startswith(_FLEET[:3]) for word in words) or set(_FLEET[3:]) <= set(words):
                    found.append(process)
        return found

    # -- what others need of it --------------------------------------------------------------------------------------

    @property
    def bucket(self) -> Bucket:
        """The store."""
        assert self.aws is not None
        keys = S3Options(self.aws.endpoint_url, REGION, access_key_id="test", secret_access_key="test")  # noqa: S106
        return open_bucket(STORE, s3=keys)

    @property
    def prefect_url(self) -> str:
        """The page of Prefect's server."""
        return f"http://127.0.0.1:{self.port}"

    def machine(self, job_id: str, launch_id: str) -> Path:
        """The directory of the machine behind an instance."""
        return LocalProvider(AgentCommand(STORE, self.directory / "room")).directory(job_id, launch_id)

    def instances(self) -> dict[str, str]:
        """State of every instance of the account."""
        assert self.aws is not None
        client = ec2.connect(REGION, self.aws.endpoint_url)
        pages = ec2.asked("EC2", lambda: list(client.get_paginator("describe_instances").paginate()))
        found = [one for page in pages for group in page["Reservations"] for one in group["Instances"]]
        return {one["InstanceId"]: one["State"]["Name"] for one in found}

    def prefect(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Ask Prefect's API, again and again while it is too busy to answer: POST with a body, else GET. Only what may
        be repeated is asked. Raises Unavailable when there is no answer for two minutes, or the server is gone."""
        give_up_s = time.monotonic() + _PREFECT_ANSWERS_S
        while True:
            try:
                return self._ask(path, body)
            except Unavailable:
                if self._children["prefect-server"].poll() is not None or time.monotonic() > give_up_s:
                    raise
            time.sleep(0.3)

    def run(self, deployment: str) -> str:
        """Start a run of a deployment now, once however often this is asked; its id."""
        found = self.prefect(f"/deployments/name/{deployment}")
        body = {"idempotency_key": f"demo {deployment}"}
        return str(self.prefect(f"/deployments/{found['id']}/create_flow_run", body)["id"])

    # -- parts -------------------------------------------------------------------------------------------------------

    def _environment(self) -> dict[str, str]:
        """What every process of the site sees: nothing of the user's AWS or Prefect."""
        assert self.aws is not None
        return {
            **self.aws.environ,
            "AWS_ENDPOINT_URL": self.aws.endpoint_url,
            "SHUNTSERVE_STORE": STORE,
            "SHUNTSERVE_EC2": str(self.directory / "ec2.yaml"),
        }

    def _write_account(self) -> None:
        assert self.aws is not None
        subnets = ec2.connect(REGION, self.aws.endpoint_url).describe_subnets()["Subnets"]
        account = {
            "region": REGION,
            "image": "ami-0123456789abcdef0",
            "instance_profile": "shuntserve-node",
            "security_groups": ["sg-0123456789abcdef0"],
            "subnets": {one["AvailabilityZone"]: one["SubnetId"] for one in subnets},
        }
        (self.directory / "ec2.yaml").write_text(yaml.safe_dump(account), encoding="utf-8")

    def _prefect_server(self) -> subprocess.Popen[bytes]:
        os.environ.update(
            PREFECT_HOME=str(self.directory / "prefect"),
            PREFECT_API_URL=f"{self.prefect_url}/api",
            PREFECT_UI_API_URL=f"{self.prefect_url}/api",
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
            PREFECT_WORKER_QUERY_SECONDS="2",
            PREFECT_CLI_COLORS="false",
        )
        command = [*_prefect("server", "start"), "--host", "127.0.0.1", "--port", str(self.port)]
        return self._spawn("prefect-server", command)

    def _ask(self, path: str, body: Mapping[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310 -- our own server
            f"{self.prefect_url}/api{path}", data=data, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
                return json.loads(answer.read() or b"null")
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise Unavailable("Prefect's server", f"{path}: {error}", f"see {self.directory / 'logs'}") from error

    def _deploy(self) -> None:
        """`prefect deploy`, once the worker has made its pool."""
        give_up_s = time.monotonic() + _PREFECT_ANSWERS_S
        while not any(pool["name"] == _WORK_POOL for pool in self.prefect("/work_pools/filter", {})):
            if self._children["prefect-worker"].poll() is not None or time.monotonic() > give_up_s:
                raise Unavailable("Prefect's worker", "does not start", f"see {self.directory / 'logs'}")
            time.sleep(0.2)
        done = subprocess.run(
            _prefect("deploy", "--all", "--no-prompt"), cwd=CHECKOUT, capture_output=True, text=True, timeout=300
        )
        (self.directory / "logs" / "prefect-deploy.log").write_text(done.stdout + done.stderr, encoding="utf-8")
        if done.returncode != 0:
            raise Unavailable("prefect deploy", f"exit code {done.returncode}", f"see {self.directory / 'logs'}")

    def _spawn(self, name: str, command: list[str], stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """A process in a session of its own, so that Ctrl-C is the demonstration's to act on."""
        log_dir = self.directory / "logs"
        log_dir.mkdir(parents=True, exist_ok=True)
        with (log_dir / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, stdin=stdin, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd=self.directory
            )


def own_environment(directory: Path) -> None:
    """Take everything of the user's AWS and Prefect out of this process's environment, and keep data in `directory`."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "PREFECT_", "SHUNTSERVE_"))]:
        del os.environ[name]
    os.environ.update(
        AWS_CONFIG_FILE=str(directory / "no-aws-config"),
        AWS_SHARED_CREDENTIALS_FILE=str(directory / "no-aws-credentials"),
        AWS_EC2_METADATA_DISABLED="true",
        XDG_DATA_HOME=str(directory / "data"),
        HF_HUB_OFFLINE="1",
        DO_NOT_TRACK="1",
        NO_PROXY="127.0.0.1,localhost",
        no_proxy="127.0.0.1,localhost",
    )


def marked(directory: Path) -> list[psutil.Process]:
    """Every living process that carries the demonstration's mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(directory) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def sweep(directory: Path) -> None:
    """Kill whatever carries the mark, and what it has started, until there is nothing."""
    while processes := marked(directory):
        for process in processes:
            with contextlib.suppress(psutil.Error):
                for one in (process, *process.children(recursive=True)):
                    one.kill()
        time.sleep(0.1)


def _prefect(*words: str) -> list[str]:
    return [str(Path(sys.executable).with_name("prefect")), *words]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    """The warden: standard input ends when the demonstration does, however it does."""
    sys.stdin.read()
    sweep(Path(sys.argv[1]))


if __name__ == "__main__":
    main()

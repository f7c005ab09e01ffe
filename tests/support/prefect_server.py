"""A real Prefect server and its process worker on the loopback, in a home of their own, killed and started at will."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.support.command import wait_for

PREFECT = str(Path(sys.executable).with_name("prefect"))
CHECKOUT = Path(__file__).resolve().parents[2]
POOL = "shuntserve"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class PrefectServer:
    """Server, worker, and what they are asked. `environment` is what the worker's flow runs see besides."""

    directory: Path
    environment: Mapping[str, str]
    port: int = field(default_factory=free_port)
    _server: subprocess.Popen[bytes] | None = None
    _worker: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The server's page."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def api_url(self) -> str:
        return f"{self.url}/api"

    @property
    def environ(self) -> dict[str, str]:
        """For any process that is to talk to this server."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "AWS_"))},
            "PREFECT_HOME": str(self.directory / "prefect"),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_UI_API_URL": self.api_url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_API_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",
            "PREFECT_CLIENT_MAX_RETRIES": "8",
            "PREFECT_CLI_COLORS": "false",
            "DO_NOT_TRACK": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            **self.environment,
        }

    # -- processes -------------------------------------------------------------------------------------------------

    def start_server(self) -> None:
        """Start it, or start it again on the same database, and wait until it answers."""
        self._server = self._spawn("server.log", "server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        wait_for("Prefect's server", self._answers)

    def start_worker(self) -> None:
        self._worker = self._spawn("worker.log", "worker", "start", "--pool", POOL, "--limit", "10")

    def kill_server(self) -> None:
        """SIGKILL, its children included."""
        _kill_tree(self._server)

    def kill_worker(self) -> None:
        """SIGKILL of the worker and of every flow run under it."""
        _kill_tree(self._worker)

    def stop(self) -> None:
        """End everything that was started here, or by what was."""
        for child in (self._worker, self._server):
            if child is not None and child.poll() is None:
                child.send_signal(signal.SIGTERM)
        for child in (self._worker, self._server):
            if child is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(15)
                _kill_tree(child)
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def processes(self) -> list[psutil.Process]:
        """Everything alive that runs in this home, whoever its parent is now."""
        home = str(self.directory / "prefect")
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("PREFECT_HOME") == home and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def flow_processes(self, run_id: str) -> list[psutil.Process]:
        """The process that executes a flow run."""
        wanted = run_id.replace("-", "")
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                here = process.environ().get("PREFECT__FLOW_RUN_ID", "").replace("-", "")
                if here == wanted and "prefect.engine" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def command(self, *arguments: str) -> str:
        """Run `prefect` in the checkout; its output. Raises AssertionError when it fails."""
        done = subprocess.run(
            [PREFECT, *arguments], env=self.environ, cwd=CHECKOUT, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"prefect {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def _spawn(self, log: str, *arguments: str) -> subprocess.Popen[bytes]:
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / log).open("ab") as file:
            return subprocess.Popen(
                [PREFECT, *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self.environ,
                cwd=self.directory,
                start_new_session=True,
            )

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self._client().get("/health").status_code == 200
        return False

    # -- questions -------------------------------------------------------------------------------------------------

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self.api_url, timeout=120, trust_env=False)

    def get(self, path: str) -> Any:
        return self._ask("GET", path).json()

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return self._ask("POST", path, dict(body or {})).json()

    def patch(self, path: str, body: Mapping[str, Any]) -> None:
        self._ask("PATCH", path, dict(body))

    def _ask(self, verb: str, path: str, body: Any = None) -> httpx.Response:
        """One request, repeated while the server's database is busy."""
        for _ in range(20):
            answer = self._client().request(verb, path, json=body)
            if answer.status_code != 503:
                return answer.raise_for_status()
            time.sleep(0.5)
        raise AssertionError(f"Prefect's server is busy all the time: {verb} {path}")

    def set_variable(self, name: str, value: Any) -> None:
        self.command("variable", "set", name, json.dumps(value), "--overwrite")

    def run(self, deployment: str, **parameters: Any) -> str:
        """Start a run of a deployment now; its id."""
        found = self.get(f"/deployments/name/{deployment}")
        made = self.post(f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters})
        return str(made["id"])

    def flow_run(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"/flow_runs/{run_id}")
        return found

    def flow_runs(self, flow: str) -> list[dict[str, Any]]:
        """All runs of a flow, oldest first."""
        found = self.post("/flow_runs/filter", {"flows": {"name": {"any_": [flow]}}, "limit": 200})
        return sorted(found, key=lambda run: str(run["created"]))

    def artifacts(self, prefix: str) -> dict[str, dict[str, Any]]:
        """The newest artifact of each key that begins so."""
        found = self.post("/artifacts/latest/filter", {"limit": 200})
        return {one["key"]: one for one in found if str(one["key"]).startswith(prefix)}

    def events(self, prefix: str) -> list[dict[str, Any]]:
        """Events whose name begins so, in order of time."""
        body = {"filter": {"event": {"prefix": [prefix]}, "order": "ASC"}, "limit": 50}
        found: list[dict[str, Any]] = self.post("/events/filter", body)["events"]
        return found

    def until(self, run_id: str, states: Sequence[str], timeout_s: float = 300.0) -> dict[str, Any]:
        """Wait for a flow run's state (by type or name)."""
        deadline_s = time.monotonic() + timeout_s
        run: dict[str, Any] = {}
        while time.monotonic() < deadline_s:
            with contextlib.suppress(httpx.TransportError, httpx.HTTPStatusError):
                run = self.flow_run(run_id)
                if run["state_type"] in states or run["state_name"] in states:
                    return run
            time.sleep(0.5)
        raise AssertionError(f"flow run {run.get('name')} is {run.get('state_name')}, not {states}: {self.log_tail()}")

    def log_tail(self) -> str:
        """The end of what worker and flow runs said."""
        path = self.directory / "worker.log"
        return path.read_text(errors="replace")[-6000:] if path.exists() else ""


def _kill_tree(child: subprocess.Popen[bytes] | None) -> None:
    if child is None:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        tree = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    child.wait()

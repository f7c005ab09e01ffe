"""The local fleet: each machine is a process on this machine (`local_machine`), in a directory of its own."""

from __future__ import annotations

import hashlib
import json
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from shuntserve.core.offers import Offer
from shuntserve.fleet import local_machine
from shuntserve.fleet.provider import Launch, Machine, NoCapacity, Patience


@dataclass(frozen=True, slots=True)
class AgentCommand:
    """How an agent is started, apart from what the machine it is on adds."""

    store_url: str
    data_dir: Path
    log_level: str = "info"
    engine: str | None = None
    engine_options: Mapping[str, object] = field(default_factory=dict)
    notice_interval_s: float = 1.0
    """The endpoint is on loopback: asking costs nothing."""

    def argv(self, launch: Launch) -> list[str]:
        """The command line of the agent of one machine."""
        argv = [sys.executable, "-m", "shuntserve.fleet.agent_main", "--store", self.store_url, "--job", launch.job_id]
        argv += ["--node", launch.id, "--share", f"{launch.slot}/{launch.slots}", "--data-dir", str(self.data_dir)]
        argv += ["--log-level", self.log_level, "--notice-interval", str(self.notice_interval_s)]
        if self.engine is not None:
            argv += ["--engine", self.engine]
        if self.engine_options:
            argv += ["--engine-options", json.dumps(dict(self.engine_options))]
        return argv


class LocalProvider:
    """Machines as processes. They outlive whoever launched them, as real ones do."""

    def __init__(self, command: AgentCommand) -> None:
        self._command = command
        # Two stores may hold the same job: their machines have nothing to do with each other.
        store = hashlib.sha256(command.store_url.encode()).hexdigest()[:8]
        self._root = command.data_dir / "machines" / store
        self._children: list[subprocess.Popen[bytes]] = []

    @property
    def patience(self) -> Patience:
        """A process is there at once; its agent imports for a while."""
        return Patience(machine_s=15.0, agent_s=120.0)

    def directory(self, job_id: str, launch_id: str) -> Path:
        """Where a machine's files are."""
        return self._root / job_id / launch_id

    def price(self, offer: Offer) -> Offer:
        """What the user said they cost."""
        return offer

    def on_demand_usd_per_h(self, offer: Offer) -> float | None:
        """There is no such market here."""
        return None

    def launch(self, launch: Launch) -> None:
        """Start the machine's process, unless it runs or has ended."""
        self._reap()
        directory = self.directory(launch.job_id, launch.id)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            config = directory / "config.json"
            if not config.exists():
                fresh = config.with_suffix(f".{secrets.token_hex(4)}")
                fresh.write_text(
                    json.dumps({"command": self._command.argv(launch), "environment": {}}), encoding="utf-8"
                )
                fresh.replace(config)
            with (directory / "machine.log").open("ab") as log:
                self._children.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "shuntserve.fleet.local_machine", str(directory)],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
        except OSError as error:
            raise NoCapacity(f"machine {launch.id}", f"cannot be started: {error}", "free memory or disk") from error

    def machines(self, job_id: str) -> Sequence[Machine]:
        """Machines whose process runs."""
        self._reap()
        root = self._root / job_id
        if not root.is_dir():
            return ()
        running = sorted(path for path in root.iterdir() if local_machine.is_running(path))
        return tuple(Machine(path.name, str(path)) for path in running)

    def terminate(self, job_id: str, launch_id: str, *, at_once: bool = False) -> None:
        """Ask the machine to power off (its agent may drain for a while), or cut the power."""
        directory = self.directory(job_id, launch_id)
        if not directory.is_dir():
            return
        (directory / "ended").touch()  # one whose process was about to start does not
        pid = local_machine.where(directory)
        if pid is None or not local_machine.is_running(directory):
            return
        try:
            process = psutil.Process(pid)
            if not at_once:
                process.send_signal(signal.SIGTERM)
                return
            for one in (process, *process.children(recursive=True)):
                one.kill()
        except psutil.NoSuchProcess:
            return

    def _reap(self) -> None:
        self._children = [child for child in self._children if child.poll() is None]

"""Starts and ends node processes of a pipeline: what a node agent calls on every host but the leader's.

The leader needs no launcher of its own: it is an ordinary engine whose options name the pipeline
(`leader_options`), run by an ordinary worker, and writes its rendezvous for the agents to publish.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shuntserve.core.rendezvous import Rendezvous
from shuntserve.core.topology import PipelineTopology
from shuntserve.engine.session import Session
from shuntserve.errors import InvalidInput, Unavailable

_BURIAL_S = 30.0


def leader_options(
    topology: PipelineTopology, generation: str, address: str, rendezvous_path: Path, *, port: int = 0, flows: int = 1
) -> dict[str, Any]:
    """The engine option `pipeline` of the worker on the leading host."""
    return {
        "topology": topology.to_json(),
        "generation": generation,
        "address": address,
        "port": port,
        "rendezvous_path": str(rendezvous_path),
        "flows": flows,
    }


class NodeProcess:
    """The ranks of one host but the leader's, for one generation. A new object for a new generation."""

    def __init__(
        self,
        rendezvous: Rendezvous,
        node: int,
        address: str,
        directory: Path,
        *,
        options: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        """`directory` takes its log and its copy of the rendezvous. `environment` is where a host says which GPUs this
        process may see (CUDA_VISIBLE_DEVICES). `prefix` comes before the command (a container's or a namespace's)."""
        self._rendezvous = rendezvous
        self._node = node
        self._address = address
        self._directory = directory
        self._options = dict(options or {})
        self._environment = dict(environment or {})
        self._prefix = tuple(prefix)
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def log_path(self) -> Path:
        return self._directory / f"node-{self._node}.log"

    def start(self) -> None:
        """Returns at once. Raises InvalidInput when the directory cannot be written."""
        rendezvous_path = self._directory / f"rendezvous-{self._rendezvous.generation}.json"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(rendezvous_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(self._rendezvous.to_json())
            log = self.log_path.open("ab")
        except OSError as error:
            cause = error.strerror or str(error)
            raise InvalidInput(f"directory {self._directory}", cause, "choose another directory") from error
        command = [
            *self._prefix,
            *(sys.executable, "-m", "shuntserve.engine.node"),
            f"--rendezvous={rendezvous_path}",
            f"--node={self._node}",
            f"--address={self._address}",
            f"--options={json.dumps(self._options)}",
            f"--log={self.log_path}",
            f"--parent={os.getpid()}",
        ]
        with log:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PYTHONFAULTHANDLER": "1", **self._environment},
            )

    def exit_status(self) -> int | None:
        """None while it lives; else see `node.Exit`, or the signal that ended it, negative. Ask about once a second: a
        node that somebody has stopped (SIGSTOP) cannot notice that its generation is over, so it is ended here."""
        if self._child is None:
            return None
        if self._child.poll() is None and Session(self._child.pid).stopped():
            self.stop()
        return self._child.poll()

    @property
    def process_ids(self) -> tuple[int, ...]:
        """Every live process of this node, the node process first."""
        return Session(self._child.pid).members() if self._child is not None else ()

    def stop(self) -> None:
        """End it and everything below it; returns when nothing is left. Idempotent. Raises Unavailable when the kernel
        does not let go of one within half a minute."""
        if self._child is None:
            return
        session = Session(self._child.pid)
        if not session.end(_BURIAL_S):
            raise Unavailable("node process", f"{session.members()} outlive SIGKILL", "reboot the machine")
        self._child.wait()

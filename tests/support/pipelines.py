"""Starts pipelines of several node processes: what node agents do on each host, from one test."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from shuntserve.core.rendezvous import Rendezvous
from shuntserve.core.topology import PipelineTopology
from shuntserve.engine.launch import NodeProcess, leader_options
from shuntserve.engine.port import EngineReady, SequenceRequest
from shuntserve.engine.process import EngineProcess
from tests.support import vllm_driver
from tests.support.netns import Hosts

PARAMS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.9},
    {"temperature": 0.9, "top_p": 0.9, "presence_penalty": 0.8},
    {"temperature": 0.0, "repetition_penalty": 1.2},
]


def rows(count: int = 12, max_tokens: int = 48) -> list[SequenceRequest]:
    """Prompts of different lengths, greedy and seeded."""
    return [
        SequenceRequest(
            f"row {row}",
            [300 + (11 * row + 17 * i) % 390 for i in range(20 + 9 * row)],
            {"max_tokens": max_tokens, "seed": row, "ignore_eos": True, **PARAMS[row % len(PARAMS)]},
        )
        for row in range(count)
    ]


class Pipeline:
    """One generation: the leader's engine on the first place, a node process on each other.

    A place is an address and how to start something there; by default everything is on loopback.
    """

    def __init__(
        self,
        model: Path,
        topology: PipelineTopology,
        directory: Path,
        *,
        hosts: Hosts | None = None,
        names: Sequence[str] = ("a", "b", "c"),
        generation: str = "first",
        pipeline: dict[str, Any] | None = None,
        **engine: Any,
    ) -> None:
        def place(node: int) -> tuple[str, Callable[[], AbstractContextManager[None]]]:
            if hosts is None:
                return "127.0.0.1", contextlib.nullcontext
            return hosts.addresses[names[node]], lambda: hosts.inside(names[node])

        self.directory = directory
        self._rendezvous_path = directory / "rendezvous.json"
        self._place = place
        self._topology = topology
        options = vllm_driver.options(model, **engine)
        options["pipeline"] = {
            **leader_options(topology, generation, place(0)[0], self._rendezvous_path),
            **(pipeline or {}),
        }
        self.engine = EngineProcess(vllm_driver.BACKEND, options, directory / "leader.log")
        self.nodes: list[NodeProcess] = []

    def start(self) -> EngineReady:
        """Everything up; says what the logs hold when it does not come up."""
        self.start_leader()
        self.start_nodes(self.rendezvous())
        events = self.engine.poll(vllm_driver.START_TIMEOUT_S)
        assert len(events) == 1, events
        assert isinstance(events[0], EngineReady), (events[0], self.logs())
        return events[0]

    def start_leader(self) -> None:
        with self._place(0)[1]():
            self.engine.start()

    def rendezvous(self) -> Rendezvous:
        deadline_s = time.monotonic() + 30
        while not self._rendezvous_path.exists():
            assert time.monotonic() < deadline_s, self.logs()
            time.sleep(0.05)
        return Rendezvous.from_json(self._rendezvous_path.read_text())

    def start_nodes(self, rendezvous: Rendezvous) -> None:
        for node in range(1, len(self._topology.node_ranks)):
            address, inside = self._place(node)
            process = NodeProcess(rendezvous, node, address, self.directory, options={"cpu_threads": 1})
            self.nodes.append(process)
            with inside():
                process.start()

    @property
    def process_ids(self) -> tuple[int, ...]:
        """Of all hosts."""
        return (*self.engine.process_ids, *(pid for node in self.nodes for pid in node.process_ids))

    def all_gone_s(self, within_s: float) -> float:
        """Seconds until no process is left anywhere; asserts that they are no more than `within_s`."""
        began_s = time.monotonic()
        while self.process_ids:
            self.engine.poll(0.05)
            for node in self.nodes:
                node.exit_status()
            assert time.monotonic() - began_s < within_s, (self.process_ids, self.logs())
        return time.monotonic() - began_s

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-2500:]}" for path in sorted(self.directory.glob("*.log")))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for node in self.nodes:
            node.stop()
        self.engine.stop()


def worker_of(pid_candidates: Sequence[int]) -> int:
    """The first of these processes that is a worker of vLLM's."""
    return next(pid for pid in pid_candidates if b"Worker" in Path(f"/proc/{pid}/comm").read_bytes())

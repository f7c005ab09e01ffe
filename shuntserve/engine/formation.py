"""The leader's side of one generation of a pipeline: who takes part, how far everybody is, and what ends it.

Lives in the engine's host process, beside the backend. Life: `open` (nodes may connect) → `admit` (all are here and get
their options) → `running` → `close`. From `admit` on a thread watches; when something is lost it ends the engine's
core and workers on this machine, so that whoever waits for them stops waiting, and keeps the cause.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shuntserve
from shuntserve import telemetry
from shuntserve.core.rendezvous import Rendezvous
from shuntserve.engine import compat
from shuntserve.engine.links import Hello, LinkWatch, Message, Refusal, Running, Trouble, Welcome, Wire
from shuntserve.engine.membership import (
    MEMBERSHIP_VARIABLE,
    Membership,
    Phase,
    family_of,
    interface_of,
    phase_of,
    serve_store,
)
from shuntserve.engine.pipeline_options import JOINING, PipelineOptions
from shuntserve.engine.port import EngineLost, LossKind
from shuntserve.engine.session import kill_below
from shuntserve.errors import Corrupt, InvalidInput, Unavailable

if TYPE_CHECKING:
    from torch.distributed import TCPStore

HELLO_TIMEOUT_S = 5.0
_NO_LIMIT_S = 7 * 24 * 3600
"""For vLLM's own limit of a start-up, which does not know its phases."""
CAUSE_GRACE_S = 1.0
"""A stage that dies makes its neighbours fail as well, and news travel on different ways: the cause is looked for among
all that has come within this time."""


class Formation:
    """One generation, led from this process."""

    def __init__(self, pipeline: PipelineOptions, clock: Callable[[], float] = time.monotonic) -> None:
        self._pipeline = pipeline
        self._generation = f"{pipeline.generation}-{secrets.token_hex(4)}"
        """No two formations share one, not even when a leader tries again with the same options."""
        self._topology = pipeline.topology
        self._clock = clock
        self._listener: socket.socket | None = None
        self._store: TCPStore | None = None
        self._watch: LinkWatch | None = None
        self._wires: dict[int, Wire] = {}
        self._phases: dict[int, tuple[Phase, float]] = {}
        self._losses: list[EngineLost] = []
        self._local_death: Callable[[], bool] = lambda: False
        self._we_ended_engine = False
        self._running = False

    # --- forming

    def open(self) -> Rendezvous:
        """Listen for the other nodes and publish where. Raises InvalidInput when the address is not ours or the port is
        taken."""
        pipeline = self._pipeline
        use_address(pipeline.address)
        use_connections(pipeline.flows)
        os.environ.setdefault("VLLM_ENGINE_READY_TIMEOUT_S", str(_NO_LIMIT_S))
        try:
            self._listener = socket.create_server(
                (pipeline.address, pipeline.port), family=family_of(pipeline.address), backlog=64
            )
        except OSError as error:
            thing = f"pipeline address {pipeline.address}:{pipeline.port}"
            raise InvalidInput(thing, error.strerror or str(error), "choose a free port, or 0") from error
        port = self._listener.getsockname()[1]
        rendezvous = Rendezvous(self._generation, pipeline.address, port, pipeline.token)
        if pipeline.rendezvous_path is not None:
            _write_whole(Path(pipeline.rendezvous_path), rendezvous.to_json())
        return rendezvous

    def admit(self, options: Mapping[str, Any]) -> None:
        """Wait for every node, then tell all of them `options` and begin to watch. Raises Unavailable when some did not
        come in time, naming them."""
        self._store = serve_store(self._generation, self._pipeline.address)
        os.environ[MEMBERSHIP_VARIABLE] = Membership(
            self._generation, self._pipeline.address, self._store.port, 0
        ).to_environment()
        self._await_nodes()
        assert self._listener is not None
        self._listener.close()
        now_s = self._clock()
        self._phases = dict.fromkeys(range(self._topology.world), (Phase.STARTING, now_s))
        self._watch = LinkWatch(self._wires, self._heard, self._lost_link, self._look_at_phases)
        self._watch.tell(Welcome(dict(options), self._store.port))
        self._watch.start()

    def running(self, local_death: Callable[[], bool]) -> None:
        """The engine is up. `local_death` says whether one of its processes here has died."""
        self._running = True
        self._local_death = local_death
        if self._watch is not None:
            self._watch.tell(Running())
            self._watch.set_running()

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        if self._watch is not None:
            self._watch.close()

    # --- the end

    def verdict(self, local: EngineLost | None = None) -> EngineLost | None:
        """What ended this generation, from what was seen on this machine and heard from the others; None when nothing
        has. Ask `CAUSE_GRACE_S` after the first sign: a kill, anywhere, explains crashes of the others."""
        seen = [*self._losses]
        if local is not None and not self._we_ended_engine:
            seen.insert(0, local)
        killed = [loss for loss in seen if loss.kind is LossKind.KILLED]
        return next(iter(killed or seen), None)

    @property
    def lost(self) -> bool:
        return bool(self._losses)

    # --- nodes

    def _await_nodes(self) -> None:
        expected = set(range(1, len(self._topology.node_ranks)))
        limit_s = self._pipeline.timeout_s(JOINING)
        deadline_s = self._clock() + limit_s
        assert self._listener is not None
        while missing := sorted(expected - self._wires.keys()):
            left_s = deadline_s - self._clock()
            if left_s <= 0:
                raise Unavailable(
                    f"pipeline generation {self._generation}",
                    f"{JOINING}: node {', '.join(map(str, missing))} did not join within {limit_s:g} s",
                    "see the logs of its agent, and whether it reaches this address",
                )
            self._listener.settimeout(left_s)
            with contextlib.suppress(TimeoutError):
                connection, _ = self._listener.accept()
                self._meet(Wire(connection))

    def _meet(self, wire: Wire) -> None:
        """One who connected: a node of this generation, or refused."""
        wire.settimeout(HELLO_TIMEOUT_S)
        peer = wire.peer
        try:
            hello = wire.first()
        except (OSError, EOFError, Corrupt):
            wire.close()
            return
        cause = self._objection(hello)
        if cause is not None:
            with contextlib.suppress(OSError):
                wire.send(Refusal(cause))
            wire.close()
            return
        assert isinstance(hello, Hello)
        wire.settimeout(None)
        if hello.node in self._wires:  # it has died and was started again meanwhile
            self._wires[hello.node].close()
        self._wires[hello.node] = wire
        telemetry.emit(telemetry.Event.PIPELINE_NODE_JOINED, generation=self._generation, node=hello.node, address=peer)

    def _objection(self, hello: Message | None) -> str | None:
        """Why this node does not belong here, in words for its log; None when it does."""
        if not isinstance(hello, Hello):
            return "it did not say hello"
        if hello.generation != self._generation:
            return f"generation {hello.generation} is not {self._generation}, which forms here"
        if not hmac.compare_digest(hello.token.encode(), self._pipeline.token.encode()):
            return "its token is wrong"
        if not 1 <= hello.node < len(self._topology.node_ranks):
            return f"there is no node {hello.node} in a pipeline of {len(self._topology.node_ranks)}"
        if hello.node in self._wires and not self._wires[hello.node].over():
            return f"node {hello.node} has joined already"
        ours = (shuntserve.__version__, compat.installed_version())
        if (hello.package, hello.engine) != ours:
            return f"it runs shuntserve {hello.package} and vLLM {hello.engine}, the leader {ours[0]} and {ours[1]}"
        return None

    # --- watching, on the links' thread

    def _heard(self, node: int, message: Message) -> None:
        if isinstance(message, Trouble):
            self._lose(node, EngineLost(LossKind(message.kind), f"{self._place(node)}: {message.detail}"))

    def _lost_link(self, node: int, cause: str) -> None:
        if not any(self._place(node) in loss.detail for loss in self._losses):  # it may have told why
            self._lose(node, EngineLost(LossKind.KILLED, f"{self._place(node)} is lost: {cause}"))

    def _lose(self, node: int | None, loss: EngineLost) -> None:
        telemetry.emit(
            telemetry.Event.PIPELINE_NODE_LOST,
            generation=self._generation,
            node=node,
            kind=loss.kind.value,
        )  # not the cause: it is quoted in the engine's loss, which is looked up in this log
        if not self._losses:
            self._we_ended_engine = not self._local_death()
        self._losses.append(loss)
        kill_below()  # the engine's core and workers here, which would wait for the lost ones

    def _look_at_phases(self, now_s: float) -> None:
        if self._losses:
            kill_below()  # what has been started since
            return
        if self._running or self._store is None:
            return
        for rank, (known, since_s) in self._phases.items():
            phase = phase_of(self._store, rank)
            if phase is not known:
                self._phases[rank] = (phase, now_s)
                telemetry.emit(
                    telemetry.Event.PIPELINE_PHASE,
                    generation=self._generation,
                    rank=rank,
                    node=self._topology.node_of(rank),
                    phase=phase.value,
                    previous_s=round(now_s - since_s, 1),
                )
            elif phase is not Phase.READY and now_s - since_s > self._pipeline.timeout_s(phase):
                self._lose(None, self._too_slow(rank, phase))
                return

    def _too_slow(self, rank: int, phase: Phase) -> EngineLost:
        stage = self._topology.stage_of(rank)
        where = f"rank {rank} (stage {stage}, node {self._topology.node_of(rank)})"
        limit_s = self._pipeline.timeout_s(phase)
        return EngineLost(LossKind.HUNG, f"{where} was {phase.value} for more than {limit_s:g} s")

    def _place(self, node: int) -> str:
        span = self._topology.node_span(node)
        stages = sorted({self._topology.stage_of(rank) for rank in span})
        return f"node {node} of the pipeline (stage {', '.join(map(str, stages))})"


def use_address(address: str) -> None:
    """Make vLLM, gloo and NCCL of this process and its children talk from this address."""
    interface = interface_of(address)
    os.environ["VLLM_HOST_IP"] = address
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    os.environ["NCCL_SOCKET_IFNAME"] = f"={interface}"


def use_connections(flows: int) -> None:
    """Let NCCL share each of its own connections between hosts out over several. What the user has set is kept."""
    if flows > 1:
        os.environ.setdefault("NCCL_SOCKET_NTHREADS", "1")
        os.environ.setdefault("NCCL_NSOCKS_PERTHREAD", str(flows))


def _write_whole(path: Path, text: str) -> None:
    """Whoever sees the file sees all of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    partial.replace(path)

"""What a process of a pipeline knows of its generation: where the others meet, and that it belongs to this one.

The leader's host process runs a small key-value store (torch's TCPStore) for the life of the generation. It is bound
to the pipeline's private address only. Workers find their process groups through it, check that it serves the
generation they were started for, and note which phase of the start-up they are in.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec
import psutil

from shuntserve.core.topology import PipelineTopology
from shuntserve.errors import Conflict, InvalidInput

if TYPE_CHECKING:
    from torch.distributed import TCPStore

MEMBERSHIP_VARIABLE = "SHUNTSERVE_PIPELINE_MEMBERSHIP"
"""Set for the worker processes of one node. Not part of vLLM's configuration, whose hash names its compile caches:
those must be found again by the next generation."""
TOPOLOGY_KEY = "shuntserve_pipeline"
"""Where the topology is in vLLM's `additional_config`: that it is hashed is right, other layers are other graphs."""

_GENERATION_KEY = "generation"
_PHASE_KEY = "phase/"
_STORE_TIMEOUT = timedelta(hours=2)
"""Beyond every start-up: it is the leader that ends one which takes too long, and it can say in which phase."""


class Phase(StrEnum):
    """What a worker is doing before it is ready, in this order."""

    STARTING = "starting processes"
    CONNECTING = "connecting the stages"
    LOADING = "loading weights"
    MEASURING = "measuring memory"
    COMPILING = "compiling and warming up"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class Membership:
    """Handed to every worker process of a node, through the environment."""

    generation: str
    store_host: str
    store_port: int
    node: int

    def to_environment(self) -> str:
        return msgspec.json.encode(self).decode()

    @staticmethod
    def from_environment() -> Membership | None:
        """None outside a pipeline."""
        raw = os.environ.get(MEMBERSHIP_VARIABLE)
        return msgspec.json.decode(raw, type=Membership) if raw else None


def serve_store(generation: str, address: str) -> TCPStore:
    """The store of a new generation, in this process, on a free port of `address`. It lives as long as the object."""
    from torch.distributed import TCPStore

    listener = socket.create_server((address, 0), family=family_of(address), backlog=128)
    port = listener.getsockname()[1]
    store = TCPStore(
        address,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=_STORE_TIMEOUT,
        master_listen_fd=listener.detach(),
    )
    store.set(_GENERATION_KEY, generation)
    return store


def join_store(membership: Membership) -> TCPStore:
    """A worker's connection to its generation's store. Raises Conflict when another generation answers there."""
    from torch.distributed import TCPStore

    store = TCPStore(
        membership.store_host, membership.store_port, is_master=False, wait_for_workers=False, timeout=_STORE_TIMEOUT
    )
    found = store.get(_GENERATION_KEY).decode()
    if found != membership.generation:
        raise Conflict(
            f"pipeline generation {membership.generation}",
            f"{membership.store_host}:{membership.store_port} serves generation {found}",
            "start this stage again from the newest plan",
        )
    return store


def note_phase(store: TCPStore, rank: int, phase: Phase) -> None:
    store.set(f"{_PHASE_KEY}{rank}", phase.value)


def phase_of(store: TCPStore, rank: int) -> Phase:
    """Never blocks; a worker that has not reported is starting."""
    key = f"{_PHASE_KEY}{rank}"
    return Phase(store.get(key).decode()) if store.check([key]) else Phase.STARTING


def topology_of(vllm_config: Any) -> PipelineTopology:
    """Of a process whose vLLM runs a pipeline of ours."""
    return PipelineTopology.from_json(vllm_config.additional_config[TOPOLOGY_KEY])


def interface_of(address: str) -> str:
    """The network interface that has this address. Raises InvalidInput, naming the addresses there are."""
    found: list[str] = []
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family in (socket.AF_INET, socket.AF_INET6):
                if entry.address.partition("%")[0] == address:
                    return name
                found.append(entry.address.partition("%")[0])
    raise InvalidInput(f"address {address}", "is not one of this machine", f"use one of {', '.join(sorted(found))}")


def family_of(address: str) -> socket.AddressFamily:
    """IPv4 or IPv6."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET

"""vLLM's process groups for stages of unlike tensor parallel sizes.

vLLM lays its ranks out as a box of (pipeline, tensor) and cuts it into groups; with unlike stages there is no box. Its
group class itself takes any lists of ranks, so only the laying out is replaced, and the pipeline group, in which vLLM
sees a chain with one virtual rank per stage.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
import vllm.distributed.parallel_state as state
from vllm.distributed.parallel_state import GroupCoordinator

from shuntserve.core.topology import PipelineTopology
from shuntserve.engine.transport import Counters, Crossing, Lines, Receiver, Sender


def relay_parts(stages: Sequence[Sequence[int]]) -> list[list[int]]:
    """All ranks in parts that hold exactly one rank of the last stage each, that one last: the groups in which sampled
    tokens go back to the earlier stages."""
    last = stages[-1]
    parts: list[list[int]] = [[] for _ in last]
    for ranks in stages[:-1]:
        for index, rank in enumerate(ranks):
            parts[index % len(last)].append(rank)
    return [[*part, rank] for part, rank in zip(parts, last, strict=True)]


class StageChain(GroupCoordinator):
    """The pipeline group: one member per stage, this rank standing for its own."""

    def __init__(self, topology: PipelineTopology, local_rank: int, backend: str, flows: int) -> None:
        stages = [list(topology.ranks_of(stage)) for stage in range(len(topology.stages))]
        parts = relay_parts(stages)
        super().__init__(parts, local_rank, backend, use_device_communicator=False, group_name="pp")
        mine = next(part for part in parts if self.rank in part)
        stage = topology.stage_of(self.rank)
        self.ranks = [
            self.rank if index == stage else next((rank for rank in ranks if rank in mine), ranks[0])
            for index, ranks in enumerate(stages)
        ]
        self.world_size = len(stages)
        self.rank_in_group = stage
        # NCCL shares its connections out by itself (`formation.use_connections`).
        crossings = _crossings(topology, stages, flows if str(backend) == "gloo" else 1)
        lines = Lines(crossings, self.rank, str(backend), self.device)
        self._sender = Sender(crossings[stage], lines, self.rank) if stage < len(crossings) else None
        self._receiver = (
            Receiver(crossings[stage - 1], lines, self.rank, self.device, _gather_in_stage) if stage > 0 else None
        )

    @property
    def counters(self) -> Counters:
        """What this rank has sent to the next stage."""
        return self._sender.counters if self._sender is not None else Counters()

    def isend_tensor_dict(self, tensor_dict: Any, *args: Any, **keywords: Any) -> list[Any]:
        """vLLM keeps all but the first handle, which is of the metadata, and waits for them before its next step."""
        assert self._sender is not None
        return [None, *self._sender.send(tensor_dict)]

    def irecv_tensor_dict(self, *args: Any, **keywords: Any) -> tuple[Any, list[Any], list[Callable[[], None]]]:
        assert self._receiver is not None
        return self._receiver.receive()

    def send_tensor_dict(self, *args: Any, **keywords: Any) -> Any:
        raise RuntimeError("stages send asynchronously: vLLM has another way than the one it was checked for")

    def recv_tensor_dict(self, *args: Any, **keywords: Any) -> Any:
        raise RuntimeError("stages receive asynchronously: vLLM has another way than the one it was checked for")

    def broadcast_tensor_dict(self, *args: Any, **keywords: Any) -> Any:
        raise RuntimeError("stages share nothing but activations and sampled tokens")


def _crossings(topology: PipelineTopology, stages: Sequence[Sequence[int]], flows: int) -> list[Crossing]:
    """Several connections only where a crossing leaves its node."""
    crossings: list[Crossing] = []
    for senders, receivers in pairwise(stages):
        inside = len({topology.node_of(rank) for rank in (*senders, *receivers)}) == 1
        crossings.append(Crossing(tuple(senders), tuple(receivers), 1 if inside else flows))
    return crossings


def _gather_in_stage(part: torch.Tensor) -> torch.Tensor:
    whole: torch.Tensor = state.get_tp_group().all_gather(part, dim=0)
    return whole


@contextlib.contextmanager
def laid_out(topology: PipelineTopology, flows: int) -> Iterator[None]:
    """While vLLM sets up its groups, they are laid out by the topology."""

    def initialize(*args: Any, backend: str | None = None, **keywords: Any) -> None:
        _initialize(topology, flows, backend or (args[4] if len(args) > 4 else None))

    original = state.initialize_model_parallel
    state.initialize_model_parallel = initialize
    try:
        yield
    finally:
        state.initialize_model_parallel = original


def _initialize(topology: PipelineTopology, flows: int, backend: str | None) -> None:
    """As vLLM's own function of this name, every rank makes every group in the same order."""
    from vllm.config import get_current_vllm_config

    config = get_current_vllm_config()
    world = state.get_world_group()
    backend = backend or torch.distributed.get_backend(world.device_group)
    stages = [list(topology.ranks_of(stage)) for stage in range(len(topology.stages))]
    alone = [[rank] for rank in range(topology.world)]

    def group(ranks: list[list[int]], name: str, **keywords: Any) -> GroupCoordinator:
        return state.init_model_parallel_group(ranks, world.local_rank, backend, group_name=name, **keywords)

    state._TP = state._ETP = group(stages, "tp", use_message_queue_broadcaster=True)
    state._DCP = group(alone, "dcp")
    state._PCP = group(alone, "pcp")
    state._PP = StageChain(topology, world.local_rank, backend, flows)
    state._DP = group(alone, "dp")
    if config.model_config is None or config.model_config.is_moe:
        state._EP = group(stages, "ep", use_all2all=config.parallel_config.use_all2all)
